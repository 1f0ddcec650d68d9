/* Vectors of LANES floats, written with the compiler's vector types, so that one source serves every processor.
 *
 * CW_VARIANT names the variant; the compiler's target flags set the width of a vector. ROWS and the number of
 * vectors side by side are chosen so that a tile's sums stay in registers.
 */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define ROWS 8
#elif defined(CW_TILES) /* emulated, on any processor: the columns of a tile */
#define LANES 16
#define ROWS 8
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define ROWS 4
#elif defined(__aarch64__)
#define LANES 4
#define ROWS 8
#else
#define LANES 4
#define ROWS 4
#endif

/* The type of activations in 8-bit products; see products.h. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(CW_TILES)
#define Q8_UNSIGNED 1
#else
#define Q8_UNSIGNED 0
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* For the loops over a tile's sums, which are in registers only if these loops are unrolled. Clang 14 accepts gcc's pragma
 * and leaves them as they are. */
#if defined(__clang__)
#define UNROLL_FULLY _Pragma("clang loop unroll(full)")
#define UNROLL_TWICE _Pragma("clang loop unroll_count(2)")
#else
#define UNROLL_FULLY _Pragma("GCC unroll 8")
#define UNROLL_TWICE _Pragma("GCC unroll 2")
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
typedef uint8_t qvec __attribute__((vector_size(LANES)));
typedef int16_t swide __attribute__((vector_size(4 * LANES)));
typedef uint16_t uswide __attribute__((vector_size(4 * LANES)));

/* The number of rows (or vectors) in the next tile, of `left` and at most `most`: tiles are about equal, since a tile
 * with few sums makes the processor wait for each. */
INLINE int share(int left, int most) {
    const int tiles = (left + most - 1) / most;
    return (left + tiles - 1) / tiles;
}

/* What is read after a product, which prefetches it into the L2 cache: `step` bytes at each step of k. */
typedef struct {
    const char *from;
    size_t step;
} upcoming;

/* The part for a product of `rows` rows from `row`, of `of` rows, in `steps` steps of k. All that comes is `count` chunks
 * of `chunk` bytes, `stride` apart; nothing, if `from` is NULL. */
INLINE upcoming upcoming_part(const void *from, int count, size_t chunk, size_t stride, int row, int rows, int of,
                              int steps) {
    if (!from) return (upcoming){0};
    const size_t bytes = count * chunk, before = bytes * row / of;
    const char *at = (const char *)from + before / chunk * stride + before % chunk;
    return (upcoming){at, bytes * rows / ((size_t)of * steps)};
}

INLINE vec load(const float *from) {
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE void store(float *to, vec v) { memcpy(to, &v, sizeof v); }
INLINE vec same(float x) { return x - (vec){0}; }
/* a * b + c with one rounding, where the processor can. Compilers may split such an expression in one place and not in
 * another; but the numbers of a text must not depend on how many others are written with it. */
INLINE vec multiply_add(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && LANES == 8
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__) && LANES == 4
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* bfloat16 is the upper half of a float32. */
INLINE vec load_bf16(const uint16_t *from) {
#if defined(__AVX512F__)
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#else
    hvec h;
    memcpy(&h, from, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
#endif
}
/* To the nearest, ties to even; a NaN stays one, with the bit of a quiet one, as the processor's instruction does. */
INLINE void store_bf16(uint16_t *to, vec v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(to, &h, sizeof h);
#else
    const uvec exact = (uvec)v, nan = (uvec)(v != v);
    const uvec bits = (nan & (exact | 0x400000)) | (~nan & (exact + 0x7fff + ((exact >> 16) & 1)));
    hvec h = __builtin_convertvector(bits >> 16, hvec);
    memcpy(to, &h, sizeof h);
#endif
}

/* The lanes before number `count`. */
INLINE ivec lanes_before(int count) {
    static const int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    ivec lanes;
    memcpy(&lanes, numbers, sizeof lanes);
    return lanes < count;
}
/* Fewer than LANES numbers, and zeros after them. No other memory is read or written: what follows may be another
 * thread's. */
INLINE vec load_some(const float *from, int count) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#elif defined(__AVX2__) && LANES == 8
    return (vec)_mm256_maskload_ps(from, (__m256i)lanes_before(count));
#else
    float some[LANES] = {0};
    memcpy(some, from, (size_t)count * sizeof *some);
    return load(some);
#endif
}
INLINE void store_some(float *to, vec v, int count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)v);
#elif defined(__AVX2__) && LANES == 8
    _mm256_maskstore_ps(to, (__m256i)lanes_before(count), (__m256)v);
#else
    memcpy(to, &v, (size_t)count * sizeof *to);
#endif
}
INLINE vec load_some_bf16(const uint16_t *from, int count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __m256i some = _mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), from);
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(some), 16);
#else
    uint16_t some[LANES] = {0};
    memcpy(some, from, (size_t)count * sizeof *some);
    return load_bf16(some);
#endif
}
INLINE void store_some_bf16(uint16_t *to, vec v, int count) {
    uint16_t all[LANES];
    store_bf16(all, v);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __m256i some;
    memcpy(&some, all, sizeof some);
    _mm256_mask_storeu_epi16(to, (__mmask16)((1u << count) - 1), some);
#else
    memcpy(to, all, (size_t)count * sizeof *to);
#endif
}
/* x, not less than `low` and not more than `high`; NaN stays NaN. */
INLINE vec within_floats(vec x, float low, float high) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#elif defined(__AVX2__)
    return (vec)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
#else
    const vec most = same(high), least = same(low);
    const ivec above = x > most, below = x < least;
    x = (vec)((above & (ivec)most) | (~above & (ivec)x));
    return (vec)((below & (ivec)least) | (~below & (ivec)x));
#endif
}
/* e^x to 2 units in the last place: 2^i * e^f with |f| <= ln 2 / 2, e^f by the polynomial of degree 6 with the least
 * relative error. Adding 1.5 * 2^23 rounds x / ln 2 to the integer i, which is then in the lowest bits. */
INLINE vec exponential(vec x) {
    x = within_floats(x, -87.0f, 88.0f);
    const vec shifted = x * 1.44269504f + 12582912.0f, i = shifted - 12582912.0f;
    vec f = x - i * 0.693359375f;
    f = f + i * 2.12194440e-4f;
    vec p = same(1.40614222e-3f);
    p = p * f + 8.37905904e-3f;
    p = p * f + 4.16647733e-2f;
    p = p * f + 1.66663648e-1f;
    p = p * f + 5.00000044e-1f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    return p * (vec)(((ivec)shifted << 23) + 0x3f800000);
}
/* 1 / x: an estimate of 14 bits and a Newton step are faster than a division, and as accurate. */
INLINE vec reciprocal(vec x) {
#if defined(__AVX512F__)
    vec guess = (vec)_mm512_rcp14_ps((__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}
INLINE vec sigmoid(vec x) { return reciprocal(1.0f + exponential(-x)); }
INLINE vec hyperbolic_tangent(vec x) { return 1.0f - 2.0f * reciprocal(1.0f + exponential(x + x)); }

#if defined(__AVX512F__)
/* 2^x to 18 bits, without bounds: infinity and zero are right. */
INLINE __m512 cheap_power_of_2(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, 8), f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(9.78275e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5976e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.40206e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93113e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}
/* To an absolute error of 7e-5: the estimate of 14 bits of 1 / x is not refined. */
INLINE vec cheap_sigmoid(vec x) {
    const __m512 e = cheap_power_of_2(_mm512_mul_ps((__m512)x, _mm512_set1_ps(-1.44269504f)));
    return (vec)_mm512_rcp14_ps(_mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}
/* To an absolute error of 5e-6. Near 0 the state would show the estimate's error, so here it is refined; without the
 * bound, e could be infinite. */
INLINE vec cheap_tangent(vec x) {
    const __m512 bounded = _mm512_min_ps(_mm512_set1_ps(30.0f), (__m512)x);
    const __m512 e = cheap_power_of_2(_mm512_mul_ps(bounded, _mm512_set1_ps(2.88539008f)));
    return 1.0f - 2.0f * reciprocal((vec)e + 1.0f);
}
#endif
