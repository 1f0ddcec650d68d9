/* Vectors of LANES floats, written with the compiler's vector types, so that one source serves every processor.
 *
 * CW_VARIANT names the variant; the compiler's target flags decide how wide a vector is. ROWS and the number of
 * vectors side by side are chosen so that a tile's sums stay in registers.
 */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
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

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

/* How many of `left` rows (or vectors) the next tile takes, at most `most`: about as many as those after it, since a
 * tile of few sums leaves the processor waiting for each. */
INLINE int share(int left, int most) {
    const int tiles = (left + most - 1) / most;
    return (left + tiles - 1) / tiles;
}

INLINE vec load(const float *from) {
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE void store(float *to, vec v) { memcpy(to, &v, sizeof v); }
INLINE vec same(float x) { return x - (vec){0}; }

/* bfloat16 is the upper half of a float32. */
INLINE vec load_bf16(const uint16_t *from) {
    hvec h;
    memcpy(&h, from, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}
INLINE void store_bf16(uint16_t *to, vec v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(to, &h, sizeof h);
#else
    uvec bits = (uvec)v;
    bits += 0x7fff + ((bits >> 16) & 1); /* to the nearest, ties to even */
    hvec h = __builtin_convertvector(bits >> 16, hvec);
    memcpy(to, &h, sizeof h);
#endif
}
/* e^x to 2 units in the last place: 2^i * 2^f with |f| <= 1/2, 2^f by its Taylor polynomial in f ln 2 (degree 7). */
INLINE vec exponential(vec x) {
    const vec high = same(88.0f), low = same(-87.0f);
    ivec above = x > high, below = x < low;
    x = (vec)((above & (ivec)high) | (~above & (ivec)x));
    x = (vec)((below & (ivec)low) | (~below & (ivec)x));
    vec scaled = x * 1.44269504f;
    vec rounded = (scaled + 12582912.0f) - 12582912.0f; /* adding 1.5 * 2^23 leaves no room for a fraction */
    vec f = x - rounded * 0.693359375f;
    f = f + rounded * 2.12194440e-4f;
    vec p = same(1.9841270e-4f);
    p = p * f + 1.3888889e-3f;
    p = p * f + 8.3333333e-3f;
    p = p * f + 4.1666667e-2f;
    p = p * f + 1.6666667e-1f;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    ivec exponent = __builtin_convertvector(rounded, ivec) + 127;
    return p * (vec)(exponent << 23);
}
/* 1 / x: an estimate of 14 bits and a step of Newton's are quicker than a division, and as right. */
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
