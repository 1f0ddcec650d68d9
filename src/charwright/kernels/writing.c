/* cw_write: its memory, and the work between steps that does not depend on the storage type. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "variant.h"

void cw_layout(int variant, int storage, int cell, int32_t out[5]) {
    const cw_shape shape = cw_chosen(variant)->shape;
    out[0] = shape.lanes;
    out[1] = PANEL_BLOCKS(cell);
    out[2] = HEAD_PANEL;
    out[3] = storage == CW_Q8 ? shape.q8_offset : 0;
    out[4] = storage == CW_Q8 ? shape.q8_swapped : 0;
}

static int last_is_read(const cw_text *text) { return text->at + 1 == text->length; }

int cw_head_needed(const cw_writing *writing) {
    for (int i = 0; i < writing->count; i++) {
        const cw_text *text = writing->texts + i;
        if (text->scores || text->likeliest || text->logits || (text->drawing && last_is_read(text))) return 1;
    }
    return 0;
}

/* The marks c_1, c_2, ... in a text's state begin here. They are floats, or int32 for 8-bit. */
static void *marks_in(const cw_model *model, const cw_text *text) {
    const size_t layer = (model->cell == CW_LSTM ? 2 : 1) * (size_t)model->units;
    return (float *)text->state + model->layers * layer; /* an int32 is as large as a float */
}

/* c_0, c_1, ... once the next id to read is known. */
static void read_marks(const cw_model *model, const cw_text *text, uint32_t marks[CW_ORDER]) {
    const void *from = marks_in(model, text);
    marks[0] = (uint32_t)text->ids[text->at] + 1;
    for (int k = 0; k + 1 < model->ngram_order; k++)
        marks[k + 1] = model->storage == CW_Q8 ? (uint32_t)((const int32_t *)from)[k]
                                               : (uint32_t)(int64_t)((const float *)from)[k];
}

static void find_offsets(const cw_writing *writing, int number) {
    const cw_model *model = writing->model;
    const cw_text *text = writing->texts + number;
    uint32_t marks[CW_ORDER];
    if (text->at == text->length) return; /* The next call brings the id. */
    read_marks(model, text, marks);
    cw_ngram_offsets(marks, model->ngram_order, model->ngram_bits, writing->offsets + number * (model->ngram_order - 1));
}

/* The id that was read in this step is among those before the next one. */
static void move_marks(const cw_model *model, const cw_text *text) {
    uint32_t marks[CW_ORDER];
    read_marks(model, text, marks);
    void *to = marks_in(model, text);
    for (int k = 0; k + 1 < model->ngram_order; k++) {
        if (model->storage == CW_Q8)
            ((int32_t *)to)[k] = (int32_t)marks[k];
        else
            ((float *)to)[k] = (float)marks[k];
    }
}

/* The largest logit, and ln of the sum of exp(logit - largest): ln p of an id is its logit less both. */
typedef struct {
    double highest, log_sum;
} totals;

/* `powers` has room for 2 V numbers, as much as a part of that for sampling. */
static totals totals_of(int variant, const double *logits, int vocabulary, double *powers) {
    double highest = logits[0];
    for (int i = 1; i < vocabulary; i++) highest = logits[i] > highest ? logits[i] : highest;
    for (int i = 0; i < vocabulary; i++)
        if (isnan(logits[i])) return (totals){NAN, NAN}; /* the exponentials would take it for an impossible id */
    memcpy(powers, logits, (size_t)vocabulary * sizeof *powers);
    double *sums = powers + vocabulary;
    cw_chosen(variant)->exponentials(powers, vocabulary, highest, 1, sums);
    return (totals){highest, log(sums[vocabulary - 1])};
}

/* The `count` most likely ids with ln p of each. Few logits exceed the least of those found so far, so this is little
 * more than one comparison for each. */
static void find_likeliest(const double *logits, int vocabulary, totals all, int count, int32_t *ids, double *scores) {
    int found = 0;
    for (int32_t id = 0; id < vocabulary; id++) {
        if (found == count && !(logits[id] > scores[count - 1])) continue;
        int at = found < count ? found++ : count - 1;
        for (; at > 0 && logits[id] > scores[at - 1]; at--) {
            ids[at] = ids[at - 1];
            scores[at] = scores[at - 1];
        }
        ids[at] = id;
        scores[at] = logits[id];
    }
    for (int i = 0; i < found; i++) scores[i] = scores[i] - all.highest - all.log_sum;
}

/* The scores of a text's next id, as far as they are wanted. */
static void score(cw_text *text, const double *logits, int vocabulary, totals all) {
    if (text->scores) text->scores[text->at] = logits[text->ids[text->at]] - all.highest - all.log_sum;
    if (text->likeliest) {
        const int64_t first = text->at * text->likeliest_count;
        find_likeliest(logits, vocabulary, all, text->likeliest_count, text->likeliest + first,
                       text->likeliest_scores + first);
    }
}

void cw_read_on(const cw_writing *writing, int number, int thread) {
    cw_text *text = writing->texts + number;
    const int vocabulary = writing->model->vocabulary;
    const double *logits = writing->logits + (size_t)number * vocabulary;
    void *scratch = writing->scratch + cw_draw_bytes(vocabulary) * thread;
    if (text->drawing && last_is_read(text)) {
        text->ids[text->length] = cw_draw(writing->variant, &text->sampler, logits, vocabulary, text->ids, text->length,
                                          scratch);
        text->length++;
    }
    if (writing->model->ngrams) move_marks(writing->model, text);
    text->at++;
    if (writing->model->ngrams) find_offsets(writing, number);
    if ((text->scores || text->likeliest) && text->at < text->length)
        score(text, logits, vocabulary, totals_of(writing->variant, logits, vocabulary, scratch));
    if (text->logits) memcpy(text->logits, logits, (size_t)vocabulary * sizeof *logits);
}

/* Whether a sum of k products of 8 bits, each at most 127 * 127, may exceed 2^30 after its multiplier and a shift by 20. */
static int may_exceed(const cw_matrix *matrix, int rows, int k) {
    int32_t largest = 0;
    for (int i = 0; i < rows; i++) largest = matrix->multipliers[i] > largest ? matrix->multipliers[i] : largest;
    return (double)largest * k * 127 * 127 >= 0x1p50 - 0x1p20;
}
static int needs_limits(const cw_model *model) {
    int found = may_exceed(model->head, model->vocabulary, model->units);
    for (int layer = 0; layer < model->layers; layer++) {
        found |= may_exceed(model->recurrent + layer, cw_product_count(model->cell) * model->units, model->units);
        if (layer) found |= may_exceed(model->inputs + layer, cw_gate_count(model->cell) * model->units, model->units);
    }
    return found;
}

/* The shares of the calling thread's last call with several threads. */
static _Thread_local cw_shares last_shares;

int cw_write(int variant, const cw_model *model, int threads, cw_text *texts, int count, int64_t steps) {
    const size_t size = model->storage == CW_F32 ? 4 : 2; /* 8-bit activations have 16 bits on some machines */
    cw_shares alone = {.threads = 0};
    cw_writing writing = {.variant = variant, .model = model, .texts = texts, .count = count,
                          .rows = (count + 15) / 16 * 16, .steps = steps,
                          .shares = threads > 1 ? &last_shares : &alone,
                          .pieces = (model->units / cw_chosen(variant)->shape.lanes + PANEL_BLOCKS(model->cell) - 1) /
                                    PANEL_BLOCKS(model->cell),
                          .limited = model->storage == CW_Q8 && needs_limits(model)};
    writing.spent = calloc((size_t)threads, sizeof *writing.spent);
    writing.activations = calloc(2 * (size_t)model->layers * writing.rows * model->units, size);
    writing.scaled = model->scale ? calloc((size_t)writing.rows * model->units, size) : NULL;
    writing.logits = malloc((size_t)count * model->vocabulary * sizeof(double));
    writing.scratch = malloc(cw_draw_bytes(model->vocabulary) * threads);
    writing.offsets = model->ngrams ? malloc((size_t)count * (model->ngram_order - 1) * sizeof(uint32_t)) : NULL;
    const int enough = writing.spent && writing.activations && writing.logits && writing.scratch &&
                       (writing.offsets || !model->ngrams) && (writing.scaled || !model->scale);
    for (int i = 0; i < count && enough && model->ngrams; i++) find_offsets(&writing, i);
    if (enough && count > 0) cw_parallel(threads, cw_chosen(variant)->write[model->storage], &writing);
    if (enough && writing.shares->steps >= CW_FEWEST_STEPS) cw_adapt_shares(writing.shares, writing.spent, writing.pieces);
    writing.shares->steps = 0;
    free(writing.spent);
    free(writing.offsets);
    free(writing.scratch);
    free(writing.logits);
    free(writing.scaled);
    free(writing.activations);
    return !enough;
}
