/* What a variant of the kernels offers: each function in float32 and in bfloat16 storage. */
#ifndef CHARWRIGHT_VARIANT_H
#define CHARWRIGHT_VARIANT_H

#include "charwright_kernels.h"
#include "pool.h"

typedef struct {
    int cell, units, backward;
    const float *weights;
    void *packed;
} cw_packing;

/* c (m, columns) float32 = a (n, m) transposed times b (n, columns), both in storage, `depth` values of n at a time.
 * Column i of a makes row (i + first_row) % m of c. */
typedef struct {
    int n, m, columns, depth, first_row;
    const void *a, *b;
    size_t a_row, b_row;
    void *scratch;
    float *c;
} cw_outer_job;

typedef struct {
    int rows, vocabulary, wanted;
    void *logits;
    const float *bias;
    const int64_t *targets;
    float scale;
    float *losses, *d_bias;
    void *scratch;
} cw_loss_job;

typedef struct {
    const char *name;
    cw_job pack[2], forward[2], backward[2], outer[2], cross_entropy[2];
} cw_variant;

#endif
