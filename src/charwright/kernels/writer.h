/* The network one step at a time for several texts, in one storage type, on the products of products.h.
 *
 * Each thread owns a range of each layer's units, of the head's rows, and of the texts whose next id it samples;
 * barriers separate these stages. Sums run over k in order in every tile, so that the numbers of a text depend neither
 * on the other texts nor on the threads.
 */
#define value NAME(value_t)
#define sum NAME(sum_t)

#if STORAGE == CW_Q8
typedef int32_t NAME(state_t);
#else
typedef float NAME(state_t);
#endif
#define state_t NAME(state_t)

/* Convert the state of LANES units to inputs of the products: as it is, or times a part of a row of the scale. */
#if STORAGE == CW_Q8
typedef int16_t NAME(scale_t); /* 15 fraction bits */
INLINE void NAME(narrow)(value *to, ivec h) {
    const ivec a = (h * 127 + (1 << 14)) >> 15;
#if Q8_UNSIGNED
    const qvec narrow = __builtin_convertvector(a + 128, qvec);
#elif defined(__ARM_FEATURE_DOTPROD)
    const qvec narrow = __builtin_convertvector(a, qvec);
#else
    const hvec narrow = __builtin_convertvector(a, hvec);
#endif
    memcpy(to, &narrow, sizeof narrow);
}
INLINE void NAME(activate)(value *to, const state_t *from) { NAME(narrow)(to, load_whole(from)); }
INLINE void NAME(activate_scaled)(value *to, const state_t *from, const int16_t *scale) {
    NAME(narrow)(to, (load_whole(from) * load_short(scale) + (1 << 14)) >> 15);
}
#else
typedef float NAME(scale_t);
INLINE void NAME(activate)(value *to, const state_t *from) { NAME(put)(to, load(from)); }
INLINE void NAME(activate_scaled)(value *to, const state_t *from, const float *scale) {
    NAME(put)(to, load(from) * load(scale));
}
#endif

#include "panels.h"
#include "gates.h"

/* --- The stages of a step --- */

/* Prefetch what the other threads have just written: all at once, it arrives many times faster than line by line. */
INLINE void NAME(share_values)(const value *rows, int count, size_t units, int threads) {
    if (threads == 1) return;
    for (size_t i = 0; i < count * units; i += 64 / sizeof(value)) __builtin_prefetch(rows + i, 0, 2);
}

INLINE state_t *NAME(state_of)(const cw_writing *w, int text, int layer, int part) {
    const cw_model *model = w->model;
    const int parts = model->cell == CW_LSTM ? 2 : 1;
    return (state_t *)w->texts[text].state + ((size_t)layer * parts + part) * model->units;
}
/* The activations (texts, H) of a layer, before or after the current step. */
INLINE value *NAME(activations)(const cw_writing *w, int layer, int after) {
    const size_t size = (size_t)w->rows * w->model->units;
    return (value *)w->activations + (2 * (size_t)layer + (w->turn ^ after)) * size;
}

/* The scale depends on the token of the coming step, so the thread that has found a text's next id writes this. */
static void NAME(scale_state)(const cw_writing *w, int text) {
    const cw_text *one = w->texts + text;
    if (one->at == one->length) return; /* The next call brings the id. */
    const size_t units = w->model->units;
    const NAME(scale_t) *scale = (const NAME(scale_t) *)w->model->scale + one->ids[one->at] * units;
    const state_t *h = NAME(state_of)(w, text, 0, 0);
    value *to = (value *)w->scaled + text * units;
    for (size_t unit = 0; unit < units; unit += LANES) NAME(activate_scaled)(to + unit, h + unit, scale + unit);
}

static void NAME(begin)(const cw_writing *w, int thread, int threads) {
    const int blocks = w->model->units / LANES;
    for (int layer = 0; layer < w->model->layers; layer++)
        for (int text = 0; text < w->count; text++)
            for (int block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++)
                NAME(activate)(NAME(activations)(w, layer, 0) + (size_t)text * w->model->units + block * LANES,
                               NAME(state_of)(w, text, layer, 0) + block * LANES);
    for (int text = w->count * thread / threads; w->scaled && text < w->count * (thread + 1) / threads; text++)
        NAME(scale_state)(w, text);
}

/* Both halves of the gates, for LANES units of a text. */
INLINE void NAME(first_half)(const int cell, const cw_writing *w, int layer, int text, size_t unit, sum *sums,
                             const sum *input_sums) {
    const cw_model *model = w->model;
    const cw_text *one = w->texts + text;
    const int gates = cw_gate_count(cell);
    NAME(sums_t) x[4];
    for (int g = 0; g < gates; g++) {
        const size_t row = (size_t)g * model->units + unit;
        x[g] = layer ? NAME(input_of_layer)(w, model->inputs + layer, input_sums + g * LANES, row)
                     : NAME(input_of_table)(model, (size_t)one->ids[one->at] * gates * model->units + row);
    }
    NAME(first_gates)(cell, w, model->recurrent + layer, NAME(state_of)(w, text, layer, 1), unit, sums, x);
}
INLINE void NAME(second_half)(const int cell, const cw_writing *w, int layer, int text, size_t unit, const sum *sums) {
    state_t *h = NAME(state_of)(w, text, layer, 0) + unit;
    NAME(last_gates)(cell, w->model, h, sums);
    NAME(activate)(NAME(activations)(w, layer, 1) + (size_t)text * w->model->units + unit, h);
}

/* The input of a layer's recurrent product (texts, H). */
INLINE const value *NAME(recurrent_input)(const cw_writing *w, int layer) {
    return !layer && w->scaled ? w->scaled : NAME(activations)(w, layer, 0);
}
/* Prefetch what the other threads have written of a layer's inputs. */
INLINE void NAME(share_inputs)(const cw_writing *w, int layer, int threads) {
    const int units = w->model->units;
    NAME(share_values)(NAME(recurrent_input)(w, layer), w->count, units, threads);
    if (layer) NAME(share_values)(NAME(activations)(w, layer - 1, 1), w->count, units, threads);
}

INLINE void NAME(write_cells)(const int cell, const cw_writing *w, int layer, int thread) {
    const int units = w->model->units, blocks = units / LANES;
    const int gates = cw_gate_count(cell), products = cw_product_count(cell);
    const int wide = PANEL_BLOCKS(cell), panels = (blocks + wide - 1) / wide;
    const int most_rows = gates == 4 ? ROWS_OF_4 : products == 2 && !layer && STORAGE != CW_Q8 ? ROWS_OF_2 : ROWS;
    const cw_matrix *recurrent = w->model->recurrent + layer, *inputs = w->model->inputs + layer;
    const value *before = NAME(recurrent_input)(w, layer), *below = layer ? NAME(activations)(w, layer - 1, 1) : NULL;
    sum sums[ROWS * MOST_VECTORS * LANES] __attribute__((aligned(64)));
    sum input_sums[ROWS * MOST_VECTORS * LANES] __attribute__((aligned(64)));
    const int begin = cw_share(w->shares, panels, thread), end = cw_share(w->shares, panels, thread + 1);
    for (int i = 0; i < end - begin; i++) {
        NAME(place) at = NAME(place_at)(i, begin, end, w->turn, wide, blocks);
        /* One text uses the whole panel at once; several use one block of it after another. */
        at.together = w->count == 1 ? at.in_panel : 1;
        for (; at.block < at.in_panel; at.block += at.together)
            for (int text = 0, rows; text < w->count; text += rows) {
                rows = share(w->count - text, most_rows);
                const size_t row = (size_t)text * units;
                NAME(multiply_blocks)(w, before + row, rows, recurrent, products, at, sums, NULL);
                if (layer) NAME(multiply_blocks)(w, below + row, rows, inputs, gates, at, input_sums, NULL);
                const size_t unit = (size_t)(at.first + at.block) * LANES;
                for (int r = 0, part = 0; r < rows; r++)
                    for (int b = 0; b < at.together; b++, part++)
                        NAME(first_half)(cell, w, layer, text + r, unit + b * LANES, sums + part * products * LANES,
                                         input_sums + part * gates * LANES);
                for (int r = 0, part = 0; r < rows; r++)
                    for (int b = 0; b < at.together; b++, part++)
                        NAME(second_half)(cell, w, layer, text + r, unit + b * LANES, sums + part * products * LANES);
            }
    }
}

#include "tiled_cells.h"

INLINE void NAME(write_cells_of)(const int cell, const cw_writing *w, int layer, int thread, int threads) {
    NAME(share_inputs)(w, layer, threads);
#if TILED
    if (NAME(by_tiles)(w->count)) {
        NAME(write_tiled_cells)(cell, w, layer, thread);
        return;
    }
#endif
    NAME(write_cells)(cell, w, layer, thread);
}

static void NAME(write_layer)(const cw_writing *w, int layer, int thread, int threads) {
    const int cell = w->model->cell;
    if (cell == CW_GRU) NAME(write_cells_of)(CW_GRU, w, layer, thread, threads);
    else if (cell == CW_IGRU) NAME(write_cells_of)(CW_IGRU, w, layer, thread, threads);
    else if (cell == CW_LSTM) NAME(write_cells_of)(CW_LSTM, w, layer, thread, threads);
    else NAME(write_cells_of)(CW_RNN, w, layer, thread, threads);
}

#if STORAGE == CW_Q8
typedef int16_t NAME(ngram_logit_t); /* 11 fraction bits */
typedef int32_t NAME(ngram_sum_t);
#define NGRAM_UNIT (1.0 / 2048.0)
#define LOAD_NGRAMS load_short
#define STORE_NGRAMS store_whole
#else
typedef float NAME(ngram_logit_t);
typedef float NAME(ngram_sum_t);
#define NGRAM_UNIT 1.0
#define LOAD_NGRAMS load
#define STORE_NGRAMS store
#endif

/* The panels of the head, whose rows are padded to a multiple of 16. */
INLINE int NAME(head_panels)(int vocabulary) {
    return ((vocabulary + 15) / 16 * 16 / LANES + HEAD_PANEL - 1) / HEAD_PANEL;
}
/* The first row of a thread's panels of the head. */
INLINE int NAME(head_row)(const cw_writing *w, int thread) {
    const int vocabulary = w->model->vocabulary;
    const int row = cw_share(w->shares, NAME(head_panels)(vocabulary), thread) * HEAD_PANEL * LANES;
    return row < vocabulary ? row : vocabulary;
}

/* Add the n-grams' numbers to the logits of all texts, in the rows of a thread. */
static void NAME(add_ngram_logits)(const cw_writing *w, int thread) {
    const int count = w->model->ngram_order - 1;
    const int first = NAME(head_row)(w, thread);
    const int end = NAME(head_row)(w, thread + 1);
    for (int text = 0; text < w->count; text++) {
        const NAME(ngram_logit_t) *rows[CW_ORDER - 1] = {NULL};
        for (int n = 0; n < count; n++)
            rows[n] = (const NAME(ngram_logit_t) *)w->model->ngrams + w->offsets[(size_t)text * count + n];
        double *logits = w->logits + (size_t)text * w->model->vocabulary;
        int i = first;
        for (; i + LANES <= end; i += LANES) {
            NAME(sums_t) all = LOAD_NGRAMS(rows[0] + i);
            for (int n = 1; n < count; n++) all += LOAD_NGRAMS(rows[n] + i);
            NAME(ngram_sum_t) each[LANES];
            STORE_NGRAMS(each, all);
            for (int lane = 0; lane < LANES; lane++) logits[i + lane] += NGRAM_UNIT * each[lane];
        }
        for (; i < end; i++) { /* The array may end with the last row. */
            NAME(ngram_sum_t) all = rows[0][i];
            for (int n = 1; n < count; n++) all += rows[n][i];
            logits[i] += NGRAM_UNIT * all;
        }
    }
}

#if STORAGE == CW_Q8
INLINE void NAME(logits)(const cw_writing *w, const cw_matrix *head, const sum *sums, size_t row, int count, double *to) {
    int32_t whole[LANES];
    store_whole(whole, NAME(product_of)(w, head, sums, row) + load_whole((const int32_t *)head->bias + row));
    for (int i = 0; i < count; i++) to[i] = whole[i] * (1.0 / 65536.0);
}
#else
INLINE void NAME(logits)(const cw_writing *w, const cw_matrix *head, const sum *sums, size_t row, int count, double *to) {
    float parts[LANES];
    (void)w;
    store(parts, load(sums) + load((const float *)head->bias + row));
    for (int i = 0; i < count; i++) to[i] = parts[i];
}
#endif

static void NAME(write_head)(const cw_writing *w, int thread, int threads) {
    const cw_model *model = w->model;
    const int vectors = (model->vocabulary + 15) / 16 * 16 / LANES; /* rows are padded to a multiple of 16 */
    const int panels = NAME(head_panels)(model->vocabulary);
    const value *last = NAME(activations)(w, model->layers - 1, 1);
    sum sums[WRITER_ROWS * MOST_VECTORS * LANES] __attribute__((aligned(64)));
    const int begin = cw_share(w->shares, panels, thread), end = cw_share(w->shares, panels, thread + 1);
    NAME(share_values)(last, w->count, model->units, threads);
    for (int i = begin; i < end; i++) {
        const int panel = w->turn ? begin + end - 1 - i : i; /* back and forth, as in a layer */
        const int first = panel * HEAD_PANEL, here = vectors - first < HEAD_PANEL ? vectors - first : HEAD_PANEL;
        const elem *packed = (const elem *)model->head->packed + (size_t)first * LANES * model->units;
        for (int text = 0, rows; text < w->count; text += rows) {
            rows = NAME(rows_at_once)(w->count - text, w->count);
            NAME(panel)(last + (size_t)text * model->units, model->units, rows, packed, here, 0, here, model->units,
                        w->count, sums, NULL);
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < here; v++) {
                    const int row = (first + v) * LANES, left = model->vocabulary - row;
                    NAME(logits)(w, model->head, sums + ((size_t)r * here + v) * LANES, row, left < LANES ? left : LANES,
                                 w->logits + (size_t)(text + r) * model->vocabulary + row);
                }
        }
    }
    if (model->ngrams) NAME(add_ngram_logits)(w, thread);
}

/* Find the next ids of a thread's part of the texts. */
static void NAME(read_texts)(const cw_writing *w, int thread) {
    const int end = cw_share(w->shares, w->count, thread + 1);
    for (int text = cw_share(w->shares, w->count, thread); text < end; text++) {
        cw_read_on(w, text, thread);
        if (w->scaled) NAME(scale_state)(w, text);
    }
}

/* The stages of a step that a thread does between barriers, and the ticks that it has spent in them. */
#define TIMED(work)                         \
    do {                                    \
        const uint64_t began = cw_ticks();  \
        work;                               \
        spent += cw_ticks() - began;        \
    } while (0)

static void NAME(write)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_writing *w = argument;
    cw_writing mine = *w; /* each thread has its own `turn` and `shares`, with the same values */
    cw_shares shares = *w->shares;
    uint64_t spent = 0;
    if (shares.threads != threads) cw_share_equally(&shares, threads);
    mine.shares = &shares;
#if TILED
    begin_tiles();
#endif
    NAME(begin)(&mine, thread, threads);
    for (int64_t step = 0; step < w->steps; step++, mine.turn ^= 1) {
        int head_needed = 0;
        for (int layer = 0; layer < w->model->layers; layer++) {
            cw_barrier_wait(barrier); /* the ids and the input of this layer are written */
            if (layer == 0) {
                head_needed = cw_head_needed(w); /* no text advances before the next barrier */
                if (shares.steps == CW_STEPS_OF_SHARES) {
                    cw_adapt_shares(&shares, w->spent, w->pieces);
                    spent = 0;
                }
            }
            TIMED(NAME(write_layer)(&mine, layer, thread, threads));
        }
        cw_barrier_wait(barrier);
        if (head_needed) {
            TIMED(NAME(write_head)(&mine, thread, threads));
            cw_barrier_wait(barrier);
        }
        TIMED(NAME(read_texts)(&mine, thread));
        w->spent[thread].ticks = spent;
        shares.steps++;
    }
#if TILED
    end_tiles();
#endif
    if (thread == 0 && w->steps) *w->shares = shares; /* the others have copied theirs before the first barrier */
}
#undef TIMED

#undef STORE_NGRAMS
#undef LOAD_NGRAMS
#undef NGRAM_UNIT
#undef MOST_VECTORS
#undef WRITER_ROWS
#undef PRE_LIMIT
#undef value
#undef sum
#undef state_t
#undef CASE
#undef CASES
#undef CASES_OF_4
#undef ROWS_OF_4
#undef ROWS_OF_2
#undef MORE_OF_2
#undef GROUP
#undef AT_ONCE
#undef BLOCK
#undef MOST_ROWS
#undef MULTIPLE
#undef SPACING
#undef VECTORS
#undef TILED
#undef other_work
#undef tile_steps
#undef COLUMNS
#undef DEPTH
#undef NAME
#undef elem
