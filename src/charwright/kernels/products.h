/* Matrix products for one storage type: a tile of sums that stays in registers, and what is built of it.
 * recurrent.c includes this twice, with BF16 0 and 1.
 */
#if BF16
#define NAME(name) PASTE(name, _bf16)
typedef uint16_t NAME(cell_t);
#define DEPTH 2 /* values of k that one product takes: pairs of bfloat16 make one lane */
#else
#define NAME(name) PASTE(name, _f32)
typedef float NAME(cell_t);
#define DEPTH 1
#endif
#define elem NAME(cell_t)

INLINE vec NAME(get)(const elem *from) {
#if BF16
    return load_bf16(from);
#else
    return load(from);
#endif
}
INLINE void NAME(put)(elem *to, vec v) {
#if BF16
    store_bf16(to, v);
#else
    store(to, v);
#endif
}
/* sum + a * w, where `a` points at DEPTH values that every lane takes, and w holds DEPTH values a lane. */
#if BF16 && defined(__AVX512BF16__)
typedef __m512bh NAME(wide);
INLINE NAME(wide) NAME(weights_at)(const elem *w) { return (__m512bh)_mm512_loadu_si512(w); }
INLINE NAME(wide) NAME(everywhere)(const elem *a) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}
INLINE vec NAME(dot)(vec sum, NAME(wide) a, NAME(wide) w) { return (vec)_mm512_dpbf16_ps((__m512)sum, a, w); }
#elif BF16
typedef uvec NAME(wide);
INLINE NAME(wide) NAME(weights_at)(const elem *w) {
    uvec v;
    memcpy(&v, w, sizeof v);
    return v;
}
INLINE NAME(wide) NAME(everywhere)(const elem *a) {
    uint32_t pair;
    memcpy(&pair, a, 4);
    return pair - (uvec){0};
}
INLINE vec NAME(dot)(vec sum, NAME(wide) a, NAME(wide) w) {
    sum += (vec)(a << 16) * (vec)(w << 16);
    return sum + (vec)(a & 0xffff0000u) * (vec)(w & 0xffff0000u);
}
#else
typedef vec NAME(wide);
INLINE NAME(wide) NAME(weights_at)(const elem *w) { return load(w); }
INLINE NAME(wide) NAME(everywhere)(const elem *a) { return same(*a); }
INLINE vec NAME(dot)(vec sum, NAME(wide) a, NAME(wide) w) { return sum + a * w; }
#endif

/* c (rows, vectors * LANES) = [c +] a (rows, k) * w (k, vectors * LANES); rows and vectors are constants to the
 * compiler. Every operand says how far its next row, next step of k and next vector lie, in elements. */
typedef struct {
    const elem *a;
    size_t a_row, a_step;
    const elem *w;
    size_t w_step, w_vector;
    float *c;
    size_t c_row;
    int k, adding;
} NAME(product);

INLINE void NAME(tile)(int rows, int vectors, const NAME(product) * product) {
    const NAME(product) p = *product;
    vec sums[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        if (p.adding) __builtin_prefetch(p.c + r * p.c_row, 1, 3);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sums[r][v] = (vec){0};
    }
    const elem *a = p.a, *w = p.w;
    for (int k = 0; k < p.k; k += DEPTH, a += p.a_step, w += p.w_step) {
        NAME(wide) columns[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) columns[v] = NAME(weights_at)(w + v * p.w_vector);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            NAME(wide) value = NAME(everywhere)(a + r * p.a_row);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sums[r][v] = NAME(dot)(sums[r][v], value, columns[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            float *at = p.c + r * p.c_row + v * LANES;
            store(at, p.adding ? load(at) + sums[r][v] : sums[r][v]);
        }
}

#define CASE(r, v)                    \
    case (r) * 8 + (v):               \
        NAME(tile)(r, v, product); \
        break;
#if ROWS == 8
#define CASES(v) CASE(1, v) CASE(2, v) CASE(3, v) CASE(4, v) CASE(5, v) CASE(6, v) CASE(7, v) CASE(8, v)
#define CASES_OF_4 CASE(1, 4) CASE(2, 4) CASE(3, 4) CASE(4, 4) CASE(5, 4) CASE(6, 4)
#define ROWS_OF_4 6
#else
#define CASES(v) CASE(1, v) CASE(2, v) CASE(3, v) CASE(4, v)
#define CASES_OF_4 CASE(1, 4) CASE(2, 4) CASE(3, 4)
#define ROWS_OF_4 3
#endif

static void NAME(multiply)(int rows, int vectors, const NAME(product) * product) {
    switch (rows * 8 + vectors) { CASES(1) CASES(2) CASES(3) CASES_OF_4 }
}

/* --- c (m, columns) = a (n, m) transposed times b (n, columns): what makes weights' gradients --- */

#define GROUP 16 /* columns that are packed together; every ROWS and LANES divides it */

/* One row of pairs: columns `at` to `at + GROUP` of rows k and k + 1, side by side; beyond `width`, and below the last
 * row, zeros. */
INLINE void NAME(pair_up)(const elem *rows, size_t stride, int k, int depth_left, int at, int width, elem *pairs) {
    const elem *from = rows + (size_t)k * stride + at;
    if (at + GROUP <= width && depth_left >= DEPTH) {
#if BF16
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
        /* b: vectors of LANES columns, then k. Each thread packs its share; everybody reads all of it. */
        for (int at = job->columns / GROUP * thread / threads * GROUP;
             at < job->columns / GROUP * (thread + 1) / threads * GROUP; at += GROUP)
            for (int s = 0; s < steps; s++) {
                NAME(pair_up)(b, job->b_row, s * DEPTH, k - s * DEPTH, at, job->columns, pairs);
                for (int v = 0; v < GROUP / LANES; v++)
                    memcpy(packed_b + ((size_t)(at / LANES + v) * steps + s) * LANES * DEPTH, pairs + v * LANES * DEPTH,
                           LANES * DEPTH * sizeof(elem));
            }
        /* a: blocks of ROWS columns, then k; each thread packs what it will read itself. */
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
        cw_meet(barrier); /* before anybody packs over what another still reads */
    }
}
