/* e^x in double precision with the vectors of one variant, and the same bits on every machine.
 *
 * For these bits, this file is compiled without contraction into fused multiply-adds. generation/portable_exp.py is the
 * reference.
 */
#include "variant.h"
#include "vectors.h"

#define DOUBLES (LANES / 2)
typedef double doubles __attribute__((vector_size(8 * DOUBLES)));
typedef int64_t wholes __attribute__((vector_size(8 * DOUBLES)));

/* e^x for x <= 0: 2^k * e^r by a polynomial of degree 13; 0 below -708. */
INLINE doubles exponential_of(doubles x) {
    const doubles least = -708.0 - (doubles){0};
    const wholes inside = (wholes)(x > least);
    const doubles bounded = (doubles)((inside & (wholes)x) | (~inside & (wholes)least));
    const doubles shifted = bounded * 1.4426950408889634 + 6755399441055744.0; /* k in its lowest bits */
    const doubles k = shifted - 6755399441055744.0;
    const doubles r = (bounded - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    doubles p = 1.0 / 6227020800.0 - (doubles){0};
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const wholes power = ((wholes)shifted + 1023) << 52;
    return (doubles)(inside & (wholes)(p * (doubles)power));
}

/* At most DOUBLES values, each to e^((value - highest) / divisor). What fills up the vector is not stored. */
INLINE void replace(double *values, size_t bytes, double highest, double divisor) {
    doubles x = {0};
    memcpy(&x, values, bytes);
    x -= highest;
    x = exponential_of(divisor == 1 ? x : x / divisor);
    memcpy(values, &x, bytes);
}

/* Each sum waits for the one before. So the sums are some vectors behind, whose values have left the registers long ago, and
 * the processor computes exponentials meanwhile. */
#define BEHIND 64

void PASTE(exponentials_, CW_VARIANT)(double *values, int count, double highest, double divisor, double *sums) {
    double sum = 0;
    int i = 0, added = 0;
    for (; i + DOUBLES <= count; i += DOUBLES) {
        replace(values + i, sizeof(doubles), highest, divisor);
        for (const int end = i - BEHIND; added < end; added++) sums[added] = sum += values[added];
    }
    if (i < count) replace(values + i, (size_t)(count - i) * sizeof *values, highest, divisor);
    for (; added < count; added++) sums[added] = sum += values[added];
}
