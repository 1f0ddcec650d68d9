/* The output layer in float32, from its inputs to the loss and back. Some rows at a time go through all of it, while they
 * are in the cache. A product's sums are in the order of k, so no bit depends on the number of threads. */

/* A matrix (rows, columns) of which some columns become vectors, each with all rows: vector, row, lane. Columns behind
 * the last are zeros. With a mask (period, columns), row n is multiplied by its row n % period. */
static void pack_columns(const float *from, size_t stride, int rows, int columns, int first, int last, const float *mask,
                         int row, int period, float *to) {
    for (int v = first; v < last; v++)
        for (int n = 0; n < rows; n++, to += LANES) {
            const int at = v * LANES;
            float some[LANES] = {0};
            memcpy(some, from + n * stride + at, (columns - at < LANES ? columns - at : LANES) * sizeof(float));
            store(to, mask ? load(some) * load(mask + (size_t)((row + n) % period) * columns + at) : load(some));
        }
}

/* A matrix (columns, rows), transposed, in the same order. */
static void pack_rows(const float *from, int rows, int columns, int first, int last, float *to) {
    for (int v = first; v < last; v++)
        for (int k = 0; k < rows; k++, to += LANES)
            for (int i = 0; i < LANES; i++)
                to[i] = v * LANES + i < columns ? from[(size_t)(v * LANES + i) * rows + k] : 0;
}

/* c (rows, vectors * LANES) = [c +] a (rows, k) times packed vectors. In a, rows are a_row apart and values of k a_step: a
 * matrix is read transposed with 1 and its row's length. */
INLINE void multiply_packed(int rows, int vectors, int k, const float *a, size_t a_row, size_t a_step, const float *packed,
                            float *c, size_t c_row, int adding) {
    for (int v = 0, some; v < vectors; v += some) {
        some = share(vectors - v, 3);
        for (int r = 0, high; r < rows; r += high) {
            high = share(rows - r, ROWS);
            const product_f32 product = {.a = a + r * a_row, .a_row = a_row, .a_step = a_step,
                                         .w = packed + (size_t)v * k * LANES, .w_step = LANES,
                                         .w_vector = (size_t)k * LANES, .c = c + r * c_row + v * LANES, .c_row = c_row,
                                         .k = k, .adding = adding};
            multiply_f32(high, some, &product);
        }
    }
}

static void head(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_head_job *job = argument;
    const cw_loss_job *loss = &job->loss;
    const int vocabulary = loss->vocabulary, units = job->units;
    const int columns = (vocabulary + LANES - 1) / LANES, blocks = units / LANES; /* vectors */
    const size_t padded = (size_t)columns * LANES;
    const int first_column = columns * thread / threads, last_column = columns * (thread + 1) / threads;
    const int first_block = blocks * thread / threads, last_block = blocks * (thread + 1) / threads;
    float *forward = job->packed, *backward = forward + padded * units;
    float *masked = job->scratch + job->scratch_floats * thread, *logits = masked + (size_t)CW_HEAD_ROWS * units;
    float *powers = logits + CW_HEAD_ROWS * padded;
    pack_rows(job->weight, units, vocabulary, first_column, last_column, forward + (size_t)first_column * units * LANES);
    if (loss->wanted)
        pack_columns(job->weight, units, vocabulary, units, first_block, last_block, NULL, 0, 1,
                     backward + (size_t)first_block * vocabulary * LANES);
    cw_meet(barrier);

    const int first = (int)((int64_t)loss->rows * thread / threads);
    const int last = (int)((int64_t)loss->rows * (thread + 1) / threads);
    for (int begin = first; begin < last; begin += CW_HEAD_ROWS) {
        const int rows = last - begin < CW_HEAD_ROWS ? last - begin : CW_HEAD_ROWS;
        const float *x = job->x + (size_t)begin * units;
        for (int n = 0; job->mask && n < rows; n++) {
            const float *mask = job->mask + (size_t)((begin + n) % job->batch) * units, *from = x + (size_t)n * units;
            for (int i = 0; i < units; i += LANES) store(masked + n * units + i, load(from + i) * load(mask + i));
        }
        multiply_packed(rows, columns, units, job->mask ? masked : x, units, 1, forward, logits, padded, 0);
        float *d_logits = loss->wanted ? (float *)loss->logits + (size_t)begin * vocabulary : NULL;
        for (int n = 0; n < rows; n++)
            row_loss_f32(loss, begin + n, logits + n * padded, loss->wanted ? d_logits + (size_t)n * vocabulary : NULL,
                         powers);
        if (!loss->wanted) continue;
        float *d_x = job->d_x + (size_t)begin * units;
        multiply_packed(rows, blocks, vocabulary, d_logits, vocabulary, 1, backward, d_x, units, 0);
        for (int n = 0; job->mask && n < rows; n++) {
            const float *mask = job->mask + (size_t)((begin + n) % job->batch) * units;
            float *to = d_x + (size_t)n * units;
            for (int i = 0; i < units; i += LANES) store(to + i, load(to + i) * load(mask + i));
        }
    }
    if (!loss->wanted) return;
    cw_meet(barrier);

    sum_columns_f32(loss, thread, threads);
    /* The gradient of the weights: each thread has its own columns. */
    for (int begin = 0; begin < loss->rows; begin += CW_HEAD_ROWS) {
        const int rows = loss->rows - begin < CW_HEAD_ROWS ? loss->rows - begin : CW_HEAD_ROWS;
        const float *d_logits = (const float *)loss->logits + (size_t)begin * vocabulary;
        pack_columns(job->x + (size_t)begin * units, units, rows, units, first_block, last_block, job->mask, begin,
                     job->batch, masked);
        multiply_packed(vocabulary, last_block - first_block, rows, d_logits, 1, vocabulary, masked,
                        job->d_weight + first_block * LANES, units, begin > 0);
    }
}
