/* Chooses among the variants that were compiled in, by what the processor can do. */
#include "charwright_kernels.h"
#include "variant.h"

#if defined(CW_X86)
extern const cw_variant cw_avx512bf16, cw_avx512, cw_avx2;
#endif
extern const cw_variant cw_portable;

static const cw_variant *const variants[] = {
#if defined(CW_X86)
    &cw_avx512bf16,
    &cw_avx512,
    &cw_avx2,
#endif
    &cw_portable,
};

enum { COUNT = sizeof variants / sizeof variants[0] };

static int runs_here(int variant) {
#if defined(CW_X86)
    __builtin_cpu_init();
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (variant == 0) return avx512 && __builtin_cpu_supports("avx512bf16");
    if (variant == 1) return avx512;
    if (variant == 2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return variant == COUNT - 1;
}

int cw_abi(void) { return CW_ABI; }

int cw_variants(void) {
    int found = 0;
    for (int i = 0; i < COUNT; i++) found |= runs_here(i) << i;
    return found;
}

const char *cw_variant_name(int variant) { return variant >= 0 && variant < COUNT ? variants[variant]->name : NULL; }

size_t cw_packed_bytes(int variant, int cell, int units, int bf16) {
    (void)variant;
    return (size_t)cw_gate_count(cell) * units * units * (bf16 ? 2 : 4);
}

void cw_pack(int variant, int cell, int units, int bf16, int backward, int threads, const float *weights,
             void *packed) {
    cw_packing packing = {cell, units, backward, weights, packed};
    cw_parallel(threads, variants[variant]->pack[bf16], &packing);
}

void cw_forward(int variant, const cw_layer *layer) {
    cw_parallel(layer->threads, variants[variant]->forward[layer->bf16], (void *)layer);
}

void cw_backward(int variant, const cw_layer *layer) {
    cw_parallel(layer->threads, variants[variant]->backward[layer->bf16], (void *)layer);
}
