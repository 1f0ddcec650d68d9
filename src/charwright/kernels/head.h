/* The output layer of one storage type, from its inputs to the loss and back. Some rows at a time go through all of it,
 * while they are in the cache. */

/* Rows of the inputs times the mask, from row `begin`; with bfloat16 also as rows, for the gradient of the weights. */
static NAME(operand) NAME(masked_inputs)(const cw_head_job *job, int begin, int rows, elem *buffer) {
    const int units = job->units;
    const elem *from = (const elem *)job->x + (size_t)begin * units;
    if (!job->mask) return NAME(operand_of)(from, rows, units, buffer);
    const size_t size = NAME(padded)(units) + SPACING;
    for (int n = 0; n < rows; n++, from += units) {
        const float *mask = job->mask + (size_t)((begin + n) % job->batch) * units;
        elem *masked = job->masked ? (elem *)job->masked + (size_t)(begin + n) * units : NULL;
        for (int k = 0; k < units; k += BLOCK) {
            elem *to = NAME(operand_at)(buffer, size, n, k);
            for (int lane = 0; lane < BLOCK; lane += LANES)
                NAME(put)(to + lane, NAME(get)(from + k + lane) * load(mask + k + lane));
            if (masked) memcpy(masked + k, to, BLOCK * sizeof(elem));
        }
    }
    return (NAME(operand)){buffer, size};
}

/* The gradient of rows of the inputs, from row `begin`, from that of their logits. */
static void NAME(input_gradient)(const cw_head_job *job, int begin, int rows, NAME(operand) d_logits) {
    const int units = job->units, depth = NAME(padded)(job->loss.vocabulary);
    float c[CW_ROWS_AT_ONCE * 3 * LANES] __attribute__((aligned(64)));
    for (int v = 0, some; v < units / LANES; v += some) {
        some = share(units / LANES - v, 3);
        NAME(multiply_rows)(d_logits, rows, depth, (const elem *)job->backward + (size_t)v * depth * LANES, some, c,
                            some * LANES);
        for (int n = 0; n < rows; n++) {
            const size_t at = (size_t)v * LANES, row = begin + n;
            for (int i = 0; i < some * LANES; i += LANES) {
                vec gradient = load(c + n * some * LANES + i);
                if (job->mask) gradient *= load(job->mask + row % job->batch * units + at + i);
                NAME(put)((elem *)job->d_x + row * units + at + i, gradient);
            }
        }
    }
}

#if STORAGE == CW_F32
/* Rows of the inputs times the mask, from row `begin`, for vectors `first` to `last`: vector, row, lane. */
static void pack_inputs(const cw_head_job *job, int begin, int rows, int first, int last, float *to) {
    for (int v = first; v < last; v++)
        for (int n = begin; n < begin + rows; n++, to += LANES) {
            const vec x = load((const float *)job->x + (size_t)n * job->units + v * LANES);
            store(to, job->mask ? x * load(job->mask + (size_t)(n % job->batch) * job->units + v * LANES) : x);
        }
}

/* The gradient of the weights: each thread has its own columns. */
static void head_weights_f32(int thread, int threads, cw_barrier *barrier, const cw_head_job *job, float *packed) {
    (void)barrier;
    const cw_loss_job *loss = &job->loss;
    const int vocabulary = loss->vocabulary, blocks = job->units / LANES;
    const int first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    for (int begin = 0; begin < loss->rows; begin += CW_ROWS_AT_ONCE) {
        const int rows = loss->rows - begin < CW_ROWS_AT_ONCE ? loss->rows - begin : CW_ROWS_AT_ONCE;
        const float *d_logits = (const float *)loss->logits + (size_t)begin * vocabulary;
        pack_inputs(job, begin, rows, first, last, packed);
        for (int v = first, some; v < last; v += some) {
            some = share(last - v, 3);
            for (int r = 0, high; r < vocabulary; r += high) {
                high = share(vocabulary - r, ROWS);
                const product_f32 product = {.a = d_logits + r, .a_row = 1, .a_step = vocabulary,
                                             .w = packed + (size_t)(v - first) * rows * LANES, .w_step = LANES,
                                             .w_vector = (size_t)rows * LANES,
                                             .c = job->d_weight + (size_t)r * job->units + v * LANES,
                                             .c_row = job->units, .k = rows, .adding = begin > 0};
                multiply_f32(high, some, &product);
            }
        }
    }
}
#else
/* The gradient of the weights: pairs of rows have to be packed on both sides, as in other products of this kind. */
static void head_weights_bf16(int thread, int threads, cw_barrier *barrier, const cw_head_job *job, elem *packed) {
    (void)packed;
    const cw_loss_job *loss = &job->loss;
    cw_outer_job product = {.n = loss->rows, .m = loss->vocabulary, .columns = job->units, .depth = job->outer_depth,
                            .a = loss->logits, .a_row = loss->vocabulary, .b = job->mask ? job->masked : job->x,
                            .b_row = job->units, .scratch = job->outer_scratch, .c = job->d_weight};
    outer_bf16(thread, threads, barrier, &product);
}
#endif

static void NAME(head)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_head_job *job = argument;
    const cw_loss_job *loss = &job->loss;
    const int vocabulary = loss->vocabulary, units = job->units;
    const int columns = (vocabulary + LANES - 1) / LANES, blocks = units / LANES; /* vectors */
    const size_t padded = (size_t)columns * LANES;
    elem *inputs = (elem *)(job->scratch + job->scratch_bytes * thread);
    elem *gradients = inputs + CW_ROWS_AT_ONCE * (NAME(padded)(units) + SPACING);
    float *logits = (float *)(gradients + CW_ROWS_AT_ONCE * (NAME(padded)(vocabulary) + SPACING));
    /* What fills up a tile or a pair stays zero. */
    memset(inputs, 0, (size_t)((char *)logits - (char *)inputs));
    NAME(pack_for_outputs)(job->weight, units, vocabulary, columns * thread / threads, columns * (thread + 1) / threads,
                           job->forward);
    if (loss->wanted)
        NAME(pack_for_inputs)(job->weight, units, vocabulary, blocks * thread / threads, blocks * (thread + 1) / threads,
                              job->backward);
    cw_barrier_wait(barrier);

#if TILED
    begin_tiles();
#endif
    const int first = (int)((int64_t)loss->rows * thread / threads);
    const int last = (int)((int64_t)loss->rows * (thread + 1) / threads);
    for (int begin = first; begin < last; begin += CW_ROWS_AT_ONCE) {
        const int rows = last - begin < CW_ROWS_AT_ONCE ? last - begin : CW_ROWS_AT_ONCE;
        NAME(multiply_rows)(NAME(masked_inputs)(job, begin, rows, inputs), rows, NAME(padded)(units), job->forward,
                            columns, logits, padded);
        elem *d_logits = loss->wanted ? (elem *)loss->logits + (size_t)begin * vocabulary : NULL;
        for (int n = 0; n < rows; n++)
            NAME(row_loss)(loss, begin + n, logits + n * padded, NULL, loss->wanted ? d_logits + (size_t)n * vocabulary : NULL,
                           logits + n * padded);
        if (loss->wanted)
            NAME(input_gradient)(job, begin, rows, NAME(operand_of)(d_logits, rows, vocabulary, gradients));
    }
#if TILED
    end_tiles();
#endif
    if (!loss->wanted) return;
    cw_barrier_wait(barrier);
    NAME(sum_columns)(loss, thread, threads);
    NAME(head_weights)(thread, threads, barrier, job, inputs);
}
