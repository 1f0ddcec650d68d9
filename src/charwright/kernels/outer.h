/* The gradients of weights: c (m, columns) = a (n, m) transposed times b (n, columns), on the tile of products.h. */

#define GROUP 16 /* columns that are packed together; a multiple of every ROWS and LANES */

/* One row of pairs: columns `at` to `at + GROUP` of rows k and k + 1, side by side; zeros beyond `width` and after
 * the last row. */
INLINE void NAME(pair_up)(const elem *rows, size_t stride, int k, int depth_left, int at, int width, elem *pairs) {
    const elem *from = rows + (size_t)k * stride + at;
    if (at + GROUP <= width && depth_left >= DEPTH) {
#if STORAGE == CW_BF16
        uint32_t both[GROUP];
        for (int i = 0; i < GROUP; i++) both[i] = from[i] | (uint32_t)from[stride + i] << 16;
        memcpy(pairs, both, sizeof both);
#else
        memcpy(pairs, from, GROUP * sizeof(elem));
#endif
        return;
    }
    for (int i = 0; i < GROUP; i++)
        for (int d = 0; d < DEPTH; d++)
            pairs[i * DEPTH + d] = at + i < width && d < depth_left ? from[d * stride + i] : 0;
}

static void NAME(outer)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_outer_job *job = argument;
    const int groups = (job->m + GROUP - 1) / GROUP, first = groups * thread / threads * GROUP;
    const int end = groups * (thread + 1) / threads * GROUP, last = end < job->m ? end : job->m;
    const int all = job->columns / LANES;
    elem *packed_b = job->scratch, *packed_a = packed_b + (size_t)job->depth * job->columns;
    elem pairs[GROUP * DEPTH] __attribute__((aligned(64)));
    for (int begin = 0; begin < job->n; begin += job->depth) {
        const int k = job->n - begin < job->depth ? job->n - begin : job->depth, steps = (k + DEPTH - 1) / DEPTH;
        const elem *a = (const elem *)job->a + (size_t)begin * job->a_row;
        const elem *b = (const elem *)job->b + (size_t)begin * job->b_row;
        /* b: vectors of LANES columns, then k. Each thread packs its share; all threads read all of it. */
        for (int at = job->columns / GROUP * thread / threads * GROUP;
             at < job->columns / GROUP * (thread + 1) / threads * GROUP; at += GROUP)
            for (int s = 0; s < steps; s++) {
                NAME(pair_up)(b, job->b_row, s * DEPTH, k - s * DEPTH, at, job->columns, pairs);
                for (int v = 0; v < GROUP / LANES; v++)
                    memcpy(packed_b + ((size_t)(at / LANES + v) * steps + s) * LANES * DEPTH, pairs + v * LANES * DEPTH,
                           LANES * DEPTH * sizeof(elem));
            }
        /* a: blocks of ROWS columns, then k; each thread packs what it reads itself. */
        for (int at = first; at < last; at += GROUP)
            for (int s = 0; s < steps; s++) {
                NAME(pair_up)(a, job->a_row, s * DEPTH, k - s * DEPTH, at, job->m, pairs);
                for (int r = 0; r < GROUP / ROWS; r++)
                    memcpy(packed_a + ((size_t)(at / ROWS + r) * steps + s) * ROWS * DEPTH, pairs + r * ROWS * DEPTH,
                           ROWS * DEPTH * sizeof(elem));
            }
        cw_meet(barrier);
        for (int vector = 0, vectors; vector < all; vector += vectors) {
            vectors = share(all - vector, 3);
            for (int i = first; i < last; i += ROWS) {
                NAME(product) product = {
                    .a = packed_a + (size_t)(i / ROWS) * steps * ROWS * DEPTH, .a_row = DEPTH, .a_step = ROWS * DEPTH,
                    .w = packed_b + (size_t)vector * steps * LANES * DEPTH, .w_step = LANES * DEPTH,
                    .w_vector = (size_t)steps * LANES * DEPTH,
                    .c = job->c + (size_t)((i + job->first_row) % job->m) * job->columns + (size_t)vector * LANES,
                    .c_row = job->columns, .k = steps * DEPTH, .adding = begin > 0};
                NAME(multiply)(last - i < ROWS ? last - i : ROWS, vectors, &product);
            }
        }
        cw_meet(barrier); /* before any thread overwrites what another still reads */
    }
}
