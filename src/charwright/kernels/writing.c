/* cw_write: its memory, and the work between steps that does not depend on the storage type. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "variant.h"

void cw_layout(int variant, int storage, int cell, int32_t out[5]) {
    const cw_shape shape = cw_chosen(variant)->shape;
    out[0] = shape.lanes;
    out[1] = PANEL_VECTORS(cell);
    out[2] = HEAD_PANEL;
    out[3] = storage == CW_Q8 ? shape.q8_offset : 0;
    out[4] = storage == CW_Q8 ? shape.q8_swapped : 0;
}

static int last_is_read(const cw_text *text) { return text->at + 1 == text->length; }

int cw_head_needed(const cw_writing *writing) {
    for (int i = 0; i < writing->count; i++) {
        const cw_text *text = writing->texts + i;
        if (text->scores || text->logits || (text->drawing && last_is_read(text))) return 1;
    }
    return 0;
}

/* ln of the probability of an id under the model. */
static double score(const double *logits, int vocabulary, int32_t id) {
    double highest = logits[0], sum = 0;
    for (int i = 1; i < vocabulary; i++) highest = logits[i] > highest ? logits[i] : highest;
    for (int i = 0; i < vocabulary; i++) sum += exp(logits[i] - highest);
    return logits[id] - highest - log(sum);
}

void cw_read_on(const cw_writing *writing, int number, int thread) {
    cw_text *text = writing->texts + number;
    const int vocabulary = writing->model->vocabulary;
    const double *logits = writing->logits + (size_t)number * vocabulary;
    if (text->drawing && last_is_read(text)) {
        char *scratch = writing->scratch + cw_draw_bytes(vocabulary) * thread;
        text->ids[text->length] = cw_draw(&text->sampler, logits, vocabulary, text->ids, text->length, scratch);
        text->length++;
    }
    text->at++;
    if (text->scores && text->at < text->length)
        text->scores[text->at] = score(logits, vocabulary, text->ids[text->at]);
    if (text->logits) memcpy(text->logits, logits, (size_t)vocabulary * sizeof *logits);
}

int cw_write(int variant, const cw_model *model, int threads, cw_text *texts, int count, int64_t steps) {
    const size_t size = model->storage == CW_F32 ? 4 : 2; /* 8-bit activations have 16 bits on some machines */
    cw_writing writing = {.model = model, .texts = texts, .count = count, .rows = (count + 15) / 16 * 16, .steps = steps};
    writing.activations = calloc(2 * (size_t)model->layers * writing.rows * model->units, size);
    writing.logits = malloc((size_t)count * model->vocabulary * sizeof(double));
    writing.scratch = malloc(cw_draw_bytes(model->vocabulary) * threads);
    const int enough = writing.activations && writing.logits && writing.scratch;
    if (enough && count > 0) cw_parallel(threads, cw_chosen(variant)->write[model->storage], &writing);
    free(writing.scratch);
    free(writing.logits);
    free(writing.activations);
    return !enough;
}
