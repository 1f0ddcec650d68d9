/* Matrix products for one storage type: a tile of sums that stays in registers.
 *
 * recurrent.c includes this once for each: STORAGE is CW_F32, CW_BF16 or CW_Q8 (8-bit weights, integers throughout).
 */
#if STORAGE == CW_BF16
#define NAME(name) PASTE(name, _bf16)
#define DEPTH 2 /* values of k in one product: a lane is a pair of bfloat16 */
typedef uint16_t NAME(weight_t), NAME(value_t);
typedef float NAME(sum_t);
typedef vec NAME(sums_t);
#elif STORAGE == CW_Q8
#define NAME(name) PASTE(name, _q8)
#define DEPTH 4
typedef int8_t NAME(weight_t);
typedef int32_t NAME(sum_t);
typedef ivec NAME(sums_t);
#else
#define NAME(name) PASTE(name, _f32)
#define DEPTH 1
typedef float NAME(weight_t), NAME(value_t), NAME(sum_t);
typedef vec NAME(sums_t);
#endif
#define elem NAME(weight_t)

/* Whether the products of many rows are made of tiles. */
#if defined(CW_TILES) && STORAGE != CW_F32
#define TILED 1
#else
#define TILED 0
#endif

#if STORAGE != CW_Q8
INLINE vec NAME(get)(const elem *from) {
#if STORAGE == CW_BF16
    return load_bf16(from);
#else
    return load(from);
#endif
}
INLINE void NAME(put)(elem *to, vec v) {
#if STORAGE == CW_BF16
    store_bf16(to, v);
#else
    store(to, v);
#endif
}
/* The same for up to LANES values; no others are read or written. */
INLINE vec NAME(get_some)(const elem *from, int count) {
    if (count >= LANES) return NAME(get)(from);
#if STORAGE == CW_BF16
    return load_some_bf16(from, count);
#else
    return load_some(from, count);
#endif
}
INLINE void NAME(put_some)(elem *to, vec v, int count) {
    if (count >= LANES) {
        NAME(put)(to, v);
        return;
    }
#if STORAGE == CW_BF16
    store_some_bf16(to, v, count);
#else
    store_some(to, v, count);
#endif
}
#endif
/* The functions of the gates in training; with 8 bits of precision, fewer terms are enough. */
#if STORAGE == CW_BF16 && defined(__AVX512F__)
INLINE vec NAME(sigmoid)(vec x) { return cheap_sigmoid(x); }
INLINE vec NAME(tanh)(vec x) { return cheap_tangent(x); }
#elif STORAGE != CW_Q8
INLINE vec NAME(sigmoid)(vec x) { return sigmoid(x); }
INLINE vec NAME(tanh)(vec x) { return hyperbolic_tangent(x); }
#endif

/* sum + a * w, where `a` points to DEPTH values used in every lane, and w has DEPTH values per lane. */
#if STORAGE == CW_BF16 && defined(__AVX512BF16__)
typedef __m512bh NAME(wide);
INLINE NAME(wide) NAME(weights_at)(const elem *w) { return (__m512bh)_mm512_loadu_si512(w); }
INLINE NAME(wide) NAME(broadcast)(const elem *a) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}
INLINE vec NAME(dot)(vec sum, NAME(wide) a, NAME(wide) w) { return (vec)_mm512_dpbf16_ps((__m512)sum, a, w); }
#elif STORAGE == CW_BF16
typedef uvec NAME(wide);
INLINE NAME(wide) NAME(weights_at)(const elem *w) {
    uvec v;
    memcpy(&v, w, sizeof v);
    return v;
}
INLINE NAME(wide) NAME(broadcast)(const elem *a) {
    uint32_t pair;
    memcpy(&pair, a, 4);
    return pair - (uvec){0};
}
INLINE vec NAME(dot)(vec sum, NAME(wide) a, NAME(wide) w) {
    sum = multiply_add((vec)(a << 16), (vec)(w << 16), sum);
    return multiply_add((vec)(a & 0xffff0000u), (vec)(w & 0xffff0000u), sum);
}
#elif STORAGE == CW_F32
typedef vec NAME(wide);
INLINE NAME(wide) NAME(weights_at)(const elem *w) { return load(w); }
INLINE NAME(wide) NAME(broadcast)(const elem *a) { return same(*a); }
INLINE vec NAME(dot)(vec sum, NAME(wide) a, NAME(wide) w) { return multiply_add(a, w, sum); }
#elif Q8_UNSIGNED && defined(__AVX512VNNI__)
/* Values from 1 to 255: 128 is added to each, and subtracted from the sums later. */
typedef uint8_t NAME(value_t);
typedef __m512i NAME(wide), NAME(wide_value);
INLINE NAME(wide) NAME(weights_at)(const elem *w) { return _mm512_loadu_si512(w); }
INLINE NAME(wide_value) NAME(broadcast)(const NAME(value_t) * a) {
    int32_t four;
    memcpy(&four, a, 4);
    return _mm512_set1_epi32(four);
}
INLINE ivec NAME(dot)(ivec sum, NAME(wide_value) a, NAME(wide) w) {
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, a, w);
}
#elif Q8_UNSIGNED && defined(__AVXVNNI__)
typedef uint8_t NAME(value_t);
typedef __m256i NAME(wide), NAME(wide_value);
INLINE NAME(wide) NAME(weights_at)(const elem *w) { return _mm256_loadu_si256((const __m256i *)w); }
INLINE NAME(wide_value) NAME(broadcast)(const NAME(value_t) * a) {
    int32_t four;
    memcpy(&four, a, 4);
    return _mm256_set1_epi32(four);
}
INLINE ivec NAME(dot)(ivec sum, NAME(wide_value) a, NAME(wide) w) {
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, a, w);
}
#elif Q8_UNSIGNED /* the same without the instruction, for emulated tiles */
typedef uint8_t NAME(value_t);
typedef struct {
    int8_t bytes[4 * LANES];
} NAME(wide);
typedef struct {
    uint8_t bytes[4];
} NAME(wide_value);
INLINE NAME(wide) NAME(weights_at)(const elem *w) {
    NAME(wide) all;
    memcpy(&all, w, sizeof all);
    return all;
}
INLINE NAME(wide_value) NAME(broadcast)(const NAME(value_t) * a) {
    NAME(wide_value) four;
    memcpy(&four, a, sizeof four);
    return four;
}
INLINE ivec NAME(dot)(ivec sum, NAME(wide_value) a, NAME(wide) w) {
    for (int i = 0; i < 4 * LANES; i++) sum[i / 4] += a.bytes[i % 4] * w.bytes[i];
    return sum;
}
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int8_t NAME(value_t);
typedef int8x16_t NAME(wide), NAME(wide_value);
INLINE NAME(wide) NAME(weights_at)(const elem *w) { return vld1q_s8(w); }
INLINE NAME(wide_value) NAME(broadcast)(const NAME(value_t) * a) {
    int32_t four;
    memcpy(&four, a, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
INLINE ivec NAME(dot)(ivec sum, NAME(wide_value) a, NAME(wide) w) {
    return (ivec)vdotq_s32((int32x4_t)sum, w, a);
}
#else /* Pairs of 16 bits: the weights are in the order 0, 2, 1, 3, so that even and odd bytes are neighbor pairs. */
typedef int16_t NAME(value_t);
typedef struct {
    ivec first, second;
} NAME(wide), NAME(wide_value);
INLINE NAME(wide) NAME(weights_at)(const elem *w) {
    swide all;
    memcpy(&all, w, sizeof all);
    return (NAME(wide)){(ivec)((swide)((uswide)all << 8) >> 8), (ivec)(all >> 8)};
}
INLINE NAME(wide_value) NAME(broadcast)(const NAME(value_t) * a) {
    int32_t pairs[2];
    memcpy(pairs, a, sizeof pairs);
    return (NAME(wide_value)){pairs[0] - (ivec){0}, pairs[1] - (ivec){0}};
}
INLINE ivec NAME(dot)(ivec sum, NAME(wide_value) a, NAME(wide) w) {
    return sum + multiply_pairs(a.first, w.first) + multiply_pairs(a.second, w.second);
}
#endif
#if STORAGE != CW_Q8
typedef NAME(wide) NAME(wide_value);
#endif

/* The most rows of 4 and of 2 vectors, whose sums stay in registers. */
#if ROWS == 8
#define ROWS_OF_4 6
#define ROWS_OF_2 8
#else
#define ROWS_OF_4 3
#define ROWS_OF_2 6
#endif

/* c (rows, vectors * LANES) = [c +] a (rows, k) * w (k, vectors * LANES); rows and vectors are compile-time
 * constants. Each operand has the strides of a row, a step of k and a vector, in elements. */
typedef struct {
    const NAME(value_t) * a;
    size_t a_row, a_step;
    const elem *w;
    size_t w_step, w_vector;
    NAME(sum_t) * c;
    size_t c_row;
    int k, adding;
    upcoming next;
} NAME(product);

INLINE void NAME(tile)(int rows, int vectors, const NAME(product) * product) {
    const NAME(product) p = *product;
    NAME(sums_t) sums[ROWS > ROWS_OF_2 ? ROWS : ROWS_OF_2][8];
    UNROLL_FULLY
    for (int r = 0; r < rows; r++) {
        if (p.adding) __builtin_prefetch(p.c + r * p.c_row, 1, 3);
        UNROLL_FULLY
        for (int v = 0; v < vectors; v++) sums[r][v] = (NAME(sums_t)){0};
    }
    const NAME(value_t) *a = p.a;
    const elem *w = p.w;
    const char *next = p.next.from ? p.next.from : (const char *)w;
    UNROLL_TWICE
    for (int k = 0; k < p.k; k += DEPTH, a += p.a_step, w += p.w_step, next += p.next.step) {
        if (STORAGE != CW_Q8) __builtin_prefetch(next, 0, 2); /* weights of 8 bits are small */
        /* The fewer of both operands stay in registers, beside the sums. */
        if (rows < vectors) {
            NAME(wide_value) values[ROWS];
            UNROLL_FULLY
            for (int r = 0; r < rows; r++) values[r] = NAME(broadcast)(a + r * p.a_row);
            UNROLL_FULLY
            for (int v = 0; v < vectors; v++) {
                const NAME(wide) column = NAME(weights_at)(w + v * p.w_vector);
                UNROLL_FULLY
                for (int r = 0; r < rows; r++) sums[r][v] = NAME(dot)(sums[r][v], values[r], column);
            }
        } else {
            NAME(wide) columns[8];
            UNROLL_FULLY
            for (int v = 0; v < vectors; v++) columns[v] = NAME(weights_at)(w + v * p.w_vector);
            UNROLL_FULLY
            for (int r = 0; r < rows; r++) {
                const NAME(wide_value) value = NAME(broadcast)(a + r * p.a_row);
                UNROLL_FULLY
                for (int v = 0; v < vectors; v++) sums[r][v] = NAME(dot)(sums[r][v], value, columns[v]);
            }
        }
    }
    UNROLL_FULLY
    for (int r = 0; r < rows; r++)
        UNROLL_FULLY
        for (int v = 0; v < vectors; v++) {
            NAME(sum_t) *at = p.c + r * p.c_row + v * LANES;
            NAME(sums_t) sum = sums[r][v], before;
            if (p.adding) {
                memcpy(&before, at, sizeof before);
                sum += before;
            }
            memcpy(at, &sum, sizeof sum);
        }
}

#define CASE(r, v)                    \
    case (r) * 9 + (v):               \
        NAME(tile)(r, v, product); \
        break;
#if ROWS == 8
#define CASES(v) CASE(1, v) CASE(2, v) CASE(3, v) CASE(4, v) CASE(5, v) CASE(6, v) CASE(7, v) CASE(8, v)
#define CASES_OF_4 CASE(1, 4) CASE(2, 4) CASE(3, 4) CASE(4, 4) CASE(5, 4) CASE(6, 4)
#define MORE_OF_2
#else
#define CASES(v) CASE(1, v) CASE(2, v) CASE(3, v) CASE(4, v)
#define CASES_OF_4 CASE(1, 4) CASE(2, 4) CASE(3, 4)
#define MORE_OF_2 CASE(5, 2) CASE(6, 2)
#endif

static void NAME(multiply)(int rows, int vectors, const NAME(product) * product) {
    switch (rows * 9 + vectors) { CASE(1, 6) CASE(1, 8) CASES(1) CASES(2) CASES(3) CASES_OF_4 MORE_OF_2 }
}
