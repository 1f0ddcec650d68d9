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

typedef struct {
    const char *name;
    cw_job pack[2], forward[2], backward[2];
} cw_variant;

#endif
