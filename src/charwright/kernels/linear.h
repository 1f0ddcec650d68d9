/* A linear layer of one storage type, forward and backward: y = x times the transposed weight, + bias. The table of the first
 * recurrent layer is one of the embedding, and the inputs of a later layer are one of the outputs before it.
 *
 * A product's sums are in the order of k, so no bit depends on the number of threads. */

/* The weight (outputs, inputs) for vectors `first` to `last` of the outputs: vector, then k, lane, DEPTH. */
static void NAME(pack_for_outputs)(const float *weight, int inputs, int outputs, int first, int last, elem *packed) {
    const int depth = NAME(padded)(inputs);
    for (int v = first; v < last; v++) {
        const int column = v * LANES;
        const float *rows = weight + (size_t)column * inputs;
        elem *out = packed + (size_t)column * depth;
        for (int k = 0; k < inputs; k += AT_ONCE, out += AT_ONCE * LANES)
            NAME(pack_rows)(rows + k, inputs, outputs - column, out, LANES * DEPTH);
        memset(out, 0, (size_t)(depth - inputs) * LANES * sizeof(elem));
    }
}

/* The weight for vectors of the inputs' gradient, in the same order. */
static void NAME(pack_for_inputs)(const float *weight, int inputs, int outputs, int first, int last, elem *packed) {
    const int depth = NAME(padded)(outputs);
    for (int v = first; v < last; v++) {
        elem *out = packed + (size_t)v * LANES * depth, *end = out + (size_t)LANES * depth;
        for (int k = 0; k < outputs; k += DEPTH, out += LANES * DEPTH)
            NAME(pack_columns)(weight + (size_t)k * inputs + v * LANES, inputs, outputs - k, out);
        memset(out, 0, (size_t)(end - out) * sizeof(elem));
    }
}

/* Rows of values as an operand; `values` of them in a row, `size` in a row of the operand. */
typedef struct {
    const elem *at;
    size_t size;
} NAME(operand);

/* The rows as they lie in memory, if the product can read them so; otherwise a copy in `buffer`. */
static NAME(operand) NAME(operand_of)(const elem *from, int rows, int values, elem *buffer) {
    if (!TILED && values % DEPTH == 0) return (NAME(operand)){from, values};
    const size_t size = NAME(padded)(values) + SPACING;
    for (int n = 0; n < rows; n++, from += values)
        for (int k = 0; k < values; k += BLOCK)
            memcpy(NAME(operand_at)(buffer, size, n, k), from + k, (values - k < BLOCK ? values - k : BLOCK) * sizeof(elem));
    return (NAME(operand)){buffer, size};
}

/* c (rows, vectors * LANES) = an operand of `k` values in a row times packed weights. */
INLINE void NAME(multiply_rows)(NAME(operand) operand, int rows, int k, const elem *packed, int vectors, float *c,
                                size_t c_row) {
    for (int v = 0, some; v < vectors; v += some) {
        some = share(vectors - v, 3);
        for (int r = 0, high; r < rows; r += high) {
            high = NAME(rows_of)(rows - r, some);
            NAME(multiply_operand)(operand.at, operand.size, r, high, k, packed + (size_t)v * k * LANES, LANES * DEPTH,
                                   (size_t)k * LANES, some, c + r * c_row + v * LANES, c_row, 0, (upcoming){0});
        }
    }
}

/* What a thread computes of a product: all vectors of some rows, or some vectors of all rows, if they are few. */
INLINE cw_area NAME(area_of)(int rows, int vectors, int thread, int threads) {
    if (rows < CW_ROWS_AT_ONCE * threads)
        return (cw_area){0, rows, vectors * thread / threads, vectors * (thread + 1) / threads};
    return (cw_area){(int)((int64_t)rows * thread / threads), (int)((int64_t)rows * (thread + 1) / threads), 0, vectors};
}

/* Where a product goes: `columns` in a row, of floats or in storage. */
typedef struct {
    void *to;
    int columns, wide, adding, curved;
    const float *bias;
} NAME(target);

/* Store sums (rows, width) at a row and a column. */
INLINE void NAME(store_sums)(const NAME(target) * target, const float *sums, int rows, int width, int row, int column) {
    for (int n = 0; n < rows; n++)
        for (int i = 0; i < width; i += LANES) {
            const size_t at = (size_t)(row + n) * target->columns + column + i;
            vec y = load(sums + n * width + i);
            if (target->bias) y += load(target->bias + column + i);
            if (target->curved) y = 1.0f + hyperbolic_tangent(y);
            if (!target->wide) NAME(put)((elem *)target->to + at, y);
            else store((float *)target->to + at, target->adding ? y + load((float *)target->to + at) : y);
        }
}

/* An area of rows (of `k` values) times packed weights; `buffer` is for an operand. */
static void NAME(multiply_area)(cw_area area, const elem *rows_of_k, int k, const elem *packed, elem *buffer,
                                const NAME(target) * target) {
    const size_t column = (size_t)NAME(padded)(k) * LANES;
    float sums[CW_ROWS_AT_ONCE * 3 * LANES] __attribute__((aligned(64)));
    for (int row = area.row; row < area.last_row; row += CW_ROWS_AT_ONCE) {
        const int rows = area.last_row - row < CW_ROWS_AT_ONCE ? area.last_row - row : CW_ROWS_AT_ONCE;
        const NAME(operand) operand = NAME(operand_of)(rows_of_k + (size_t)row * k, rows, k, buffer);
        for (int v = area.column, some; v < area.last_column; v += some) {
            some = share(area.last_column - v, 3);
            NAME(multiply_rows)(operand, rows, NAME(padded)(k), packed + v * column, some, sums, some * LANES);
            NAME(store_sums)(target, sums, rows, some * LANES, row, v * LANES);
        }
    }
}

/* A thread's own buffer for an operand. What fills up a tile is zero. */
INLINE elem *NAME(own_input_operand)(const cw_linear_job *job, int thread) {
    char *buffer = job->operands + job->operand_bytes * thread;
    if (TILED) memset(buffer, 0, job->operand_bytes);
    return (elem *)buffer;
}

static void NAME(linear)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_linear_job *job = argument;
    const cw_linear *layer = job->layer;
    const int vectors = layer->outputs / LANES;
    NAME(pack_for_outputs)(layer->weight, layer->inputs, layer->outputs, vectors * thread / threads,
                           vectors * (thread + 1) / threads, job->packed);
    cw_barrier_wait(barrier);
    const NAME(target) y = {.to = layer->y, .columns = layer->outputs, .wide = layer->wide, .curved = layer->curved,
                            .bias = layer->bias};
#if TILED
    begin_tiles();
#endif
    NAME(multiply_area)(NAME(area_of)(layer->rows, vectors, thread, threads), layer->x, layer->inputs, job->packed,
                        NAME(own_input_operand)(job, thread), &y);
#if TILED
    end_tiles();
#endif
}

#define STRIPE 512
/* The gradient of the sums, in storage, and that of the bias, for vectors `first` to `last`; a few hundred columns at a time,
 * whose sums stay in the cache. */
static void NAME(gradient_of_sums)(const cw_linear_job *job, int first, int last) {
    const cw_linear *layer = job->layer;
    const int end = last * LANES, copied = job->gradient != layer->d_y;
    if (!copied && !layer->d_bias) return;
    float totals[STRIPE];
    for (int stripe = first * LANES; stripe < end; stripe += STRIPE) {
        const int width = end - stripe < STRIPE ? end - stripe : STRIPE;
        memset(totals, 0, sizeof totals);
        for (int n = 0; n < layer->rows; n++)
            for (int i = 0; i < width; i += LANES) {
                const size_t at = (size_t)n * layer->outputs + stripe + i;
                vec d = layer->wide ? load((const float *)layer->d_y + at) : NAME(get)((const elem *)layer->d_y + at);
                if (layer->curved) {
                    const vec tangent = load((const float *)layer->y + at) - 1.0f;
                    d *= 1.0f - tangent * tangent;
                }
                if (copied) NAME(put)((elem *)job->gradient + at, d);
                store(totals + i, load(totals + i) + d);
            }
        if (layer->d_bias) memcpy(layer->d_bias + stripe, totals, (size_t)width * sizeof(float));
    }
}
#undef STRIPE

static void NAME(linear_backward)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_linear_job *job = argument;
    const cw_linear *layer = job->layer;
    const int inputs = layer->inputs, outputs = layer->outputs, columns = outputs / LANES, vectors = inputs / LANES;
    NAME(gradient_of_sums)(job, columns * thread / threads, columns * (thread + 1) / threads);
    if (layer->d_x)
        NAME(pack_for_inputs)(layer->weight, inputs, outputs, vectors * thread / threads, vectors * (thread + 1) / threads,
                              job->packed);
    cw_barrier_wait(barrier);
    const NAME(target) d_x = {.to = layer->d_x, .columns = inputs, .wide = layer->wide, .adding = layer->adding};
#if TILED
    begin_tiles();
#endif
    if (layer->d_x)
        NAME(multiply_area)(NAME(area_of)(layer->rows, vectors, thread, threads), job->gradient, outputs, job->packed,
                            NAME(own_input_operand)(job, thread), &d_x);
#if TILED
    end_tiles();
#endif
    cw_outer_job outer = {.n = layer->rows, .m = outputs, .columns = inputs, .depth = job->outer_depth, .a = job->gradient,
                          .a_row = outputs, .b = layer->x, .b_row = inputs, .scratch = job->outer_scratch,
                          .c = layer->d_weight};
    NAME(outer)(thread, threads, barrier, &outer);
}
