/* All kernels of one variant, in each storage type, but for exponentials.c. */
#include <math.h>

#include "variant.h"
#include "vectors.h"

#include "integers.h"

#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

#include "optimizer.h"
#include "tiles.h"

#define STORAGE CW_F32
#include "products.h"
#include "layers.h"
#include "outer.h"
#include "forward.h"
#include "backward.h"
#include "loss.h"
#include "linear.h"
#include "head.h"
#include "writer.h"
#undef STORAGE
#define STORAGE CW_BF16
#include "products.h"
#include "layers.h"
#include "outer.h"
#include "forward.h"
#include "backward.h"
#include "loss.h"
#include "linear.h"
#include "head.h"
#include "writer.h"
#undef STORAGE
#define STORAGE CW_Q8
#include "products.h"
#include "writer.h"

#if Q8_UNSIGNED
#define Q8_OFFSET 128
#define Q8_SWAPPED 0
#elif defined(__ARM_FEATURE_DOTPROD)
#define Q8_OFFSET 0
#define Q8_SWAPPED 0
#else
#define Q8_OFFSET 0
#define Q8_SWAPPED 1
#endif

#if defined(CW_TILES)
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

const cw_variant PASTE(cw_, CW_VARIANT) = {
    TEXT(CW_VARIANT),
    {LANES, Q8_OFFSET, Q8_SWAPPED, HAS_TILES},
    {pack_f32, pack_bf16},
    {forward_f32, forward_bf16},
    {backward_f32, backward_bf16},
    {spread_inputs_f32, spread_inputs_bf16},
    {mask_outputs_f32, mask_outputs_bf16},
    {outer_f32, outer_bf16},
    {cross_entropy_f32, cross_entropy_bf16},
    {descend_f32, descend_bf16},
    {head_f32, head_bf16},
    {linear_f32, linear_bf16},
    {linear_backward_f32, linear_backward_bf16},
    {write_f32, write_bf16, write_q8},
    norm,
    adam,
    PASTE(exponentials_, CW_VARIANT),
};
