/* Select among the compiled variants by the features of the processor. */
#include "charwright_kernels.h"
#include "variant.h"

/* CW_HAS_... is defined if the compiler can build a variant; an older compiler lacks the newest. */
#if defined(CW_HAS_AVX512BF16)
extern const cw_variant cw_avx512bf16;
static int has_avx512bf16(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#endif
#if defined(CW_HAS_AVX512)
extern const cw_variant cw_avx512;
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif
#if defined(CW_HAS_AVX2)
extern const cw_variant cw_avx2;
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
extern const cw_variant cw_portable;

static const cw_variant *const variants[] = {
#if defined(CW_HAS_AVX512BF16)
    &cw_avx512bf16,
#endif
#if defined(CW_HAS_AVX512)
    &cw_avx512,
#endif
#if defined(CW_HAS_AVX2)
    &cw_avx2,
#endif
    &cw_portable,
};

enum { COUNT = sizeof variants / sizeof variants[0] };

static int runs_here(int index) {
    const cw_variant *variant = variants[index];
#if defined(CW_HAS_AVX512BF16) || defined(CW_HAS_AVX512) || defined(CW_HAS_AVX2)
    __builtin_cpu_init();
#endif
#if defined(CW_HAS_AVX512BF16) /* only built together with plain AVX-512 */
    if (variant == &cw_avx512bf16) return has_avx512() && has_avx512bf16();
#endif
#if defined(CW_HAS_AVX512)
    if (variant == &cw_avx512) return has_avx512();
#endif
#if defined(CW_HAS_AVX2)
    if (variant == &cw_avx2) return has_avx2();
#endif
    return variant == &cw_portable;
}

int cw_abi(void) { return CW_ABI; }

int cw_variants(void) {
    int found = 0;
    for (int i = 0; i < COUNT; i++) found |= runs_here(i) << i;
    return found;
}

const char *cw_variant_name(int variant) { return variant >= 0 && variant < COUNT ? variants[variant]->name : NULL; }

const cw_variant *cw_chosen(int variant) { return variants[variant]; }

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

/* Slices of at most this many values of n: the packed part of b for one tile then fits into the L2 cache. */
#define DEEPEST 2048

static int slice(int n) {
    const int slices = (n + DEEPEST - 1) / DEEPEST, depth = (n + slices - 1) / slices;
    return depth + depth % 2;
}

size_t cw_outer_bytes(int bf16, int n, int m, int columns) {
    return (size_t)slice(n) * ((m + 15) / 16 * 16 + columns) * (bf16 ? 2 : 4);
}

void cw_outer(int variant, int bf16, int threads, int n, int m, int columns, int first_row, const void *a, size_t a_row,
              const void *b, size_t b_row, void *scratch, float *c) {
    cw_outer_job job = {n, m, columns, slice(n), first_row, a, b, a_row, b_row, scratch, c};
    cw_parallel(threads, variants[variant]->outer[bf16], &job);
}

double cw_cross_entropy(int variant, int bf16, int threads, int rows, int vocabulary, void *logits, const float *bias,
                        const int64_t *targets, float scale, float *losses, float *d_bias, void *scratch) {
    cw_loss_job job = {rows, vocabulary, d_bias != NULL, logits, bias, targets, scale, losses, d_bias, scratch};
    cw_parallel(threads, variants[variant]->cross_entropy[bf16], &job);
    double sum = 0;
    for (int n = 0; n < rows; n++) sum += losses[n];
    return sum;
}

static int64_t all_chunks(const cw_parameter *parameters, int count) {
    int64_t chunks = 0;
    for (int i = 0; i < count; i++) chunks += cw_chunks(parameters[i].count);
    return chunks;
}

size_t cw_norm_bytes(const cw_parameter *parameters, int count) {
    return (size_t)all_chunks(parameters, count) * sizeof(double);
}

double cw_norm(int variant, int threads, const cw_parameter *parameters, int count, void *scratch) {
    cw_adam_job job = {parameters, count, all_chunks(parameters, count), 1, scratch};
    cw_parallel(threads, variants[variant]->norm, &job);
    double sum = 0;
    for (int64_t i = 0; i < job.chunks; i++) sum += job.partial[i];
    return sum;
}

void cw_adam(int variant, int threads, const cw_parameter *parameters, int count, float scale) {
    cw_adam_job job = {parameters, count, all_chunks(parameters, count), scale, NULL};
    for (int i = 0; i < count; i++) *parameters[i].step += 1;
    cw_parallel(threads, variants[variant]->adam, &job);
}
