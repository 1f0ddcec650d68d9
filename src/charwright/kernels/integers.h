/* Vectors of LANES integers, and the fixed-point arithmetic of 8-bit generation (docs/explanation/q8.md). */

INLINE ivec load_whole(const int32_t *from) {
    ivec v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE void store_whole(int32_t *to, ivec v) { memcpy(to, &v, sizeof v); }
INLINE ivec load_short(const int16_t *from) {
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__AVX2__) && LANES == 8
    return (ivec)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)from));
#else
    hvec h;
    memcpy(&h, from, sizeof h);
    return (ivec)(__builtin_convertvector(h, uvec) << 16) >> 16;
#endif
}
INLINE ivec all(int32_t x) { return x - (ivec){0}; }
INLINE ivec choose(ivec mask, ivec yes, ivec no) { return (mask & yes) | (~mask & no); }
/* The smaller, and the larger, of each lane. */
INLINE ivec smaller(ivec a, ivec b) {
#if defined(__AVX512F__)
    return (ivec)_mm512_min_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && LANES == 8
    return (ivec)_mm256_min_epi32((__m256i)a, (__m256i)b);
#else
    return choose(a < b, a, b);
#endif
}
INLINE ivec larger(ivec a, ivec b) {
#if defined(__AVX512F__)
    return (ivec)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && LANES == 8
    return (ivec)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    return choose(a > b, a, b);
#endif
}
INLINE ivec within(ivec x, int32_t limit) { return larger(smaller(x, all(limit)), all(-limit)); }
/* Each lane: the sum of both products of its pairs of 16 bits. */
INLINE ivec multiply_pairs(ivec a, ivec b) {
#if defined(__AVX512BW__)
    return (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && LANES == 4
    return (ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return ((ivec)((uvec)a << 16) >> 16) * ((ivec)((uvec)b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}
/* (a * b + plus) / 2^shift, rounded to nearest, halves up, and clipped to the limit; 64-bit intermediates. */
INLINE ivec scaled(ivec a, ivec b, ivec plus, int shift, int32_t limit) {
#if defined(__AVX512F__)
    const __m512i half = _mm512_set1_epi64(1LL << (shift - 1)), top = _mm512_set1_epi64(limit);
    const __m512i bottom = _mm512_set1_epi64(-(int64_t)limit);
    __m512i even = _mm512_mul_epi32((__m512i)a, (__m512i)b);
    __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64((__m512i)a, 32), _mm512_srli_epi64((__m512i)b, 32));
    even = _mm512_add_epi64(even, _mm512_srai_epi64(_mm512_slli_epi64((__m512i)plus, 32), 32));
    odd = _mm512_add_epi64(odd, _mm512_srai_epi64((__m512i)plus, 32));
    even = _mm512_srai_epi64(_mm512_add_epi64(even, half), shift);
    odd = _mm512_srai_epi64(_mm512_add_epi64(odd, half), shift);
    even = _mm512_max_epi64(_mm512_min_epi64(even, top), bottom);
    odd = _mm512_max_epi64(_mm512_min_epi64(odd, top), bottom);
    return (ivec)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
#elif defined(__AVX2__) && LANES == 8
    /* AVX2 has no arithmetic shift of 64 bits, so that the limits come first; multiplying by 1 extends the sign. */
    const __m256i half = _mm256_set1_epi64x(1LL << (shift - 1)), one = _mm256_set1_epi32(1);
    const __m256i top = _mm256_set1_epi64x(((int64_t)limit + 1) * (1LL << shift) - 1);
    const __m256i bottom = _mm256_set1_epi64x(-(int64_t)limit * (1LL << shift));
    __m256i part[2];
    for (int odd = 0, bits = 0; odd < 2; odd++, bits = 32) {
        const __m256i ab = _mm256_mul_epi32(_mm256_srli_epi64((__m256i)a, bits), _mm256_srli_epi64((__m256i)b, bits));
        const __m256i more = _mm256_mul_epi32(_mm256_srli_epi64((__m256i)plus, bits), one);
        const __m256i sum = _mm256_add_epi64(_mm256_add_epi64(ab, more), half);
        const __m256i below = _mm256_blendv_epi8(sum, top, _mm256_cmpgt_epi64(sum, top));
        part[odd] = _mm256_srli_epi64(_mm256_blendv_epi8(below, bottom, _mm256_cmpgt_epi64(bottom, below)), shift);
    }
    return (ivec)_mm256_blend_epi32(part[0], _mm256_slli_epi64(part[1], 32), 0xAA);
#elif defined(__aarch64__) && LANES == 4
    const int32x4_t x = (int32x4_t)a, y = (int32x4_t)b, z = (int32x4_t)plus;
    const int64x2_t low = vaddw_s32(vmull_s32(vget_low_s32(x), vget_low_s32(y)), vget_low_s32(z));
    const int64x2_t high = vaddw_high_s32(vmull_high_s32(x, y), z), down = vdupq_n_s64(-shift);
    /* The narrowing clips to 32 bits, beyond the limit. */
    return within((ivec)vcombine_s32(vqmovn_s64(vrshlq_s64(low, down)), vqmovn_s64(vrshlq_s64(high, down))), limit);
#else
    ivec result;
    for (int i = 0; i < LANES; i++) {
        int64_t x = ((int64_t)a[i] * b[i] + plus[i] + (1LL << (shift - 1))) >> shift;
        result[i] = (int32_t)(x > limit ? limit : x < -limit ? -limit : x);
    }
    return result;
#endif
}

/* a * b / 2^20, rounded to nearest, halves up, where that is known to fit into 32 bits. */
INLINE ivec requantized(ivec a, ivec b) {
#if defined(__AVX512F__)
    /* Odd lanes come down by a shuffle: the port for shifts and products has enough to do. */
    const __m512i half = _mm512_set1_epi64(1 << 19);
    __m512i even = _mm512_mul_epi32((__m512i)a, (__m512i)b);
    __m512i odd = _mm512_mul_epi32(_mm512_shuffle_epi32((__m512i)a, 0xF5), _mm512_shuffle_epi32((__m512i)b, 0xF5));
    even = _mm512_srli_epi64(_mm512_add_epi64(even, half), 20);
    odd = _mm512_slli_epi64(_mm512_add_epi64(odd, half), 12);
    return (ivec)_mm512_mask_blend_epi32(0xAAAA, even, odd);
#elif defined(__AVX2__) && LANES == 8
    const __m256i half = _mm256_set1_epi64x(1 << 19);
    __m256i even = _mm256_mul_epi32((__m256i)a, (__m256i)b);
    __m256i odd = _mm256_mul_epi32(_mm256_shuffle_epi32((__m256i)a, 0xF5), _mm256_shuffle_epi32((__m256i)b, 0xF5));
    even = _mm256_srli_epi64(_mm256_add_epi64(even, half), 20);
    odd = _mm256_slli_epi64(_mm256_add_epi64(odd, half), 12);
    return (ivec)_mm256_blend_epi32(even, odd, 0xAA);
#elif defined(__aarch64__) && LANES == 4
    const int32x4_t x = (int32x4_t)a, y = (int32x4_t)b;
    return (ivec)vrshrn_high_n_s64(vrshrn_n_s64(vmull_s32(vget_low_s32(x), vget_low_s32(y)), 20), vmull_high_s32(x, y), 20);
#else
    return scaled(a, b, (ivec){0}, 20, INT32_MAX);
#endif
}

/* --- tanh, with 12 fraction bits in and 15 out: linear interpolation in a table with an entry for every 32 numbers --- */

#if defined(__AVX512F__) && !defined(CW_TILES)
/* Instead of reading the table, which takes an AMD EPYC 26 cycles for 16 numbers, compute it: rounded, the
 * polynomial of a segment of 64 entries is each of them and the first of the next segment. From entry 704 on, all are
 * 32,767. The coefficients were found by linear programming, for the largest distance from a half: 0.012. */
static const float table_powers[5][16] = {
    {0.488166571f, 15142.5254f, 24955.6387f, 29660.4258f, 31589.3711f, 32329.4648f, 32605.5996f, 32708.4824f, 32745.9648f,
     32760.0234f, 32764.5234f, 32767.0f, 32767.0f, 32767.0f, 32767.0f, 32767.0f},
    {255.822632f, 201.420151f, 107.570946f, 46.1573792f, 18.0491199f, 6.78859568f, 2.5694921f, 0.885149002f,
     0.343491048f, 0.111588299f, 0.135685429f},
    {0.0187884141f, -0.737491727f, -0.644711316f, -0.321715564f, -0.133208334f, -0.0511349961f, -0.0212181192f,
     -0.00482560648f, -0.00254944921f, -3.31694937e-05f, -0.00563249411f},
    {-0.00603622012f, -0.00101697445f, 0.00183809793f, 0.00125930062f, 0.000570830482f, 0.00022631613f, 0.00012241966f,
     -9.64014362e-06f, 8.24982362e-06f, -2.07010071e-05f, 0.000114973445f},
    {1.63779932e-05f, 1.25330162e-05f, -1.2648369e-06f, -2.23993879e-06f, -1.14073362e-06f, -4.67624375e-07f,
     -4.14966848e-07f, 1.83572837e-07f, 2.06631263e-08f, 2.1614018e-07f, -7.6293378e-07f}};

INLINE ivec tanh_of(const int16_t *table, ivec v) {
    (void)table;
    const __m512i size = _mm512_min_epi32(_mm512_abs_epi32((__m512i)v), _mm512_set1_epi32(32767));
    const __m512i part = _mm512_and_si512(size, _mm512_set1_epi32(31)), segment = _mm512_srli_epi32(size, 11);
    const __m512i entry = _mm512_and_si512(_mm512_srli_epi32(size, 5), _mm512_set1_epi32(63));
    const __m512 here = _mm512_cvtepi32_ps(entry), next = _mm512_add_ps(here, _mm512_set1_ps(1.0f));
    __m512 low = _mm512_permutexvar_ps(segment, _mm512_loadu_ps(table_powers[4])), high = low;
    for (int power = 3; power >= 0; power--) {
        const __m512 coefficient = _mm512_permutexvar_ps(segment, _mm512_loadu_ps(table_powers[power]));
        low = _mm512_fmadd_ps(low, here, coefficient);
        high = _mm512_fmadd_ps(high, next, coefficient);
    }
    const __m512i from = _mm512_cvtps_epi32(low), step = _mm512_sub_epi32(_mm512_cvtps_epi32(high), from);
    const __m512i between = _mm512_add_epi32(_mm512_madd_epi16(step, part), _mm512_set1_epi32(16));
    const __m512i result = _mm512_add_epi32(from, _mm512_srli_epi32(between, 5));
    return (ivec)_mm512_mask_sub_epi32(result, _mm512_movepi32_mask((__m512i)v), _mm512_setzero_si512(), result);
}
#else
/* table[index] in the lower 16 bits and table[index + 1] in the upper. */
INLINE ivec neighbours(const int16_t *table, ivec index) {
#if defined(__AVX512F__)
    return (ivec)_mm512_i32gather_epi32((__m512i)index, table, 2);
#elif defined(__AVX2__)
    return (ivec)_mm256_i32gather_epi32((const int *)table, (__m256i)index, 2);
#else
    ivec result;
    for (int i = 0; i < LANES; i++)
        result[i] = (int32_t)((uint32_t)(uint16_t)table[index[i]] | (uint32_t)(uint16_t)table[index[i] + 1] << 16);
    return result;
#endif
}
INLINE ivec tanh_of(const int16_t *table, ivec v) {
    const ivec sign = v >> 31, bounded = smaller((v ^ sign) - sign, all(32767)), part = bounded & 31;
    /* low + ((high - low) * part + 16) / 32, where low and high are the halves of a lane. */
    const ivec between = multiply_pairs(neighbours(table, bounded >> 5), (part << 16) + 32 - part);
    return (((between + 16) >> 5) ^ sign) - sign;
}
#endif
INLINE ivec sigmoid_of(const int16_t *table, ivec v) { return (32768 + tanh_of(table, v)) >> 1; }
