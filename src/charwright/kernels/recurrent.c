/* All kernels of one variant, in float32 and bfloat16 storage. */
#include <math.h>

#include "variant.h"
#include "vectors.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

#define BF16 0
#include "products.h"
#include "layers.h"
#include "loss.h"
#undef BF16
#define BF16 1
#include "products.h"
#include "layers.h"
#include "loss.h"
#undef BF16

const cw_variant PASTE(cw_, CW_VARIANT) = {
    TEXT(CW_VARIANT),
    {pack_f32, pack_bf16},
    {forward_f32, forward_bf16},
    {backward_f32, backward_bf16},
    {outer_f32, outer_bf16},
    {cross_entropy_f32, cross_entropy_bf16},
};
