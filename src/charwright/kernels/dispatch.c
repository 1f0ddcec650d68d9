/* Select among the compiled variants by the features of the processor. */
#define _DEFAULT_SOURCE /* syscall */
#include <stdlib.h>
#include <string.h>

#include "charwright_kernels.h"
#include "variant.h"

/* CW_HAS_... is defined if the compiler can build a variant; an older compiler lacks the newest. */
#if defined(CW_HAS_AVX2) || defined(CW_HAS_AVX512)
#include <cpuid.h>
/* The features are read from the processor, since a compiler's own test knows only those of its day, and on Windows needs
 * a library that is not always linked. Leaves and bits: Intel, Software Developer's Manual, volume 2A, CPUID. */
enum { EAX, EBX, ECX, EDX };
static int has_bit(unsigned leaf, unsigned subleaf, int reg, int bit) {
    unsigned value[4];
    if (subleaf && (!__get_cpuid_count(leaf, 0, &value[EAX], &value[EBX], &value[ECX], &value[EDX]) ||
                    value[EAX] < subleaf))
        return 0;
    return __get_cpuid_count(leaf, subleaf, &value[EAX], &value[EBX], &value[ECX], &value[EDX]) &&
           (value[reg] >> bit & 1);
}
/* Whether the system saves these registers when it switches threads: bits of XCR0. */
static int are_saved(unsigned registers) {
    unsigned low, high;
    if (!has_bit(1, 0, ECX, 27)) return 0; /* XGETBV may be used */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & registers) == registers;
}
#endif
#if defined(CW_HAS_AVX2)
extern const cw_variant cw_avx2;
static int has_avx2(void) {
    return are_saved(0x06) && has_bit(7, 0, EBX, 5) && has_bit(1, 0, ECX, 12); /* AVX2 and FMA */
}
#endif
#if defined(CW_HAS_AVX512)
extern const cw_variant cw_avx512;
static int has_avx512(void) { /* F, DQ, BW, VL, and FMA */
    return are_saved(0xe6) && has_bit(7, 0, EBX, 16) && has_bit(7, 0, EBX, 17) && has_bit(7, 0, EBX, 30) &&
           has_bit(7, 0, EBX, 31) && has_bit(1, 0, ECX, 12);
}
#endif
#if defined(CW_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
extern const cw_variant cw_amx;
/* The processor has the tiles of AMX for bfloat16 and 8 bits, and the system lets this process use them. */
static int has_amx(void) {
    static _Atomic int answer = -1;
#if defined(CW_TRAPPED_TILES) /* tests/kernels/trap.c */
    syscall(SYS_arch_prctl, 0x1023, 18);
    answer = 1;
#endif
    if (answer >= 0) return answer;
    answer = has_bit(7, 0, EDX, 22) && has_bit(7, 0, EDX, 24) && has_bit(7, 0, EDX, 25) && /* BF16, TILE, INT8 */
             syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the data of the tiles */) == 0;
    return answer;
}
#endif
#if defined(CW_HAS_EMULATED)
extern const cw_variant cw_emulated; /* tiles in plain C, for tests */
#endif
#if defined(CW_HAS_AVX512VNNI) || defined(CW_HAS_AVX512BF16)
static int has_avx512vnni(void) { return has_avx512() && has_bit(7, 0, ECX, 11); }
#endif
#if defined(CW_HAS_AVX512BF16)
extern const cw_variant cw_avx512bf16;
static int has_avx512bf16(void) {
#if defined(CW_TRAPPED_TILES) /* some virtual machines hide it */
    return has_avx512();
#endif
    return has_avx512vnni() && has_bit(7, 1, EAX, 5);
}
#endif
#if defined(CW_HAS_AVX512VNNI)
extern const cw_variant cw_avx512vnni;
#endif
#if defined(CW_HAS_AVX2VNNI)
extern const cw_variant cw_avx2vnni;
static int has_avx2vnni(void) { return has_avx2() && has_bit(7, 1, EAX, 4); }
#endif
extern const cw_variant cw_portable;

static const cw_variant *const variants[] = {
#if defined(CW_HAS_AMX)
    &cw_amx,
#endif
#if defined(CW_HAS_AVX512BF16)
    &cw_avx512bf16,
#endif
#if defined(CW_HAS_AVX512VNNI)
    &cw_avx512vnni,
#endif
#if defined(CW_HAS_AVX512)
    &cw_avx512,
#endif
#if defined(CW_HAS_AVX2VNNI)
    &cw_avx2vnni,
#endif
#if defined(CW_HAS_AVX2)
    &cw_avx2,
#endif
    &cw_portable,
#if defined(CW_HAS_EMULATED)
    &cw_emulated,
#endif
};

enum { COUNT = sizeof variants / sizeof variants[0] };

static int runs_here(int index) {
    const cw_variant *variant = variants[index];
#if defined(CW_HAS_AMX) /* only built together with bfloat16 in AVX-512 */
    if (variant == &cw_amx) return has_avx512bf16() && has_amx();
#endif
#if defined(CW_HAS_EMULATED)
    if (variant == &cw_emulated) return 1;
#endif
#if defined(CW_HAS_AVX512BF16)
    if (variant == &cw_avx512bf16) return has_avx512bf16();
#endif
#if defined(CW_HAS_AVX512VNNI)
    if (variant == &cw_avx512vnni) return has_avx512vnni();
#endif
#if defined(CW_HAS_AVX2VNNI)
    if (variant == &cw_avx2vnni) return has_avx2vnni();
#endif
#if defined(CW_HAS_AVX512)
    if (variant == &cw_avx512) return has_avx512();
#endif
#if defined(CW_HAS_AVX2)
    if (variant == &cw_avx2) return has_avx2();
#endif
    return variant == &cw_portable;
}

int cw_abi(void) { /* the first call after the library is loaded */
    cw_watch_forks();
    return CW_ABI;
}

int cw_variants(void) {
    int found = 0;
    for (int i = 0; i < COUNT; i++) found |= runs_here(i) << i;
    return found;
}

const char *cw_variant_name(int variant) { return variant >= 0 && variant < COUNT ? variants[variant]->name : NULL; }
const cw_variant *cw_chosen(int variant) { return variants[variant]; }

/* The values of k that a variant multiplies at once, to which it pads. */
static int padded(const cw_variant *variant, int units, int bf16) {
    return variant->shape.tiles && bf16 ? (units + 31) / 32 * 32 : units;
}

size_t cw_packed_bytes(int variant, int cell, int units, int bf16) {
    return (size_t)cw_product_count(cell) * units * padded(variants[variant], units, bf16) * (bf16 ? 2 : 4);
}

void cw_pack(int variant, int cell, int units, int bf16, int backward, int threads, const float *weights,
             void *packed) {
    cw_packing packing = {cell, units, backward, weights, packed};
    cw_parallel(threads, variants[variant]->pack[bf16], &packing);
}

/* Take `bytes` of memory, from and to a cache line. */
static void *carve(char **memory, size_t bytes) {
    char *taken = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return taken;
}

/* Run the forward or the backward pass of a layer with working memory. */
static int run_layer(int variant, const cw_layer *layer, int backward) {
    const cw_variant *chosen = variants[variant];
    const int products = cw_product_count(layer->cell), rows = cw_group_rows(layer, chosen->shape.tiles && layer->bf16);
    const size_t units = layer->units, size = layer->bf16 ? 2 : 4, filled = ((size_t)layer->batch + 15) / 16 * 16;
    const size_t state = layer->batch * units * 4, scale = layer->tokens * units * 4, bias = products * units * 4;
    const size_t k = (backward ? products : 1) * (padded(chosen, layer->units, layer->bf16) + 64 / size);
    const float *given = backward ? layer->d_table : layer->table;
    const size_t table = given && layer->tokens <= CW_SMALL_TABLE ? cw_gate_count(layer->cell) * scale : 0;
    const size_t operand = (filled * k * size + 63) / 64 * 64 + 64, operands = layer->threads * operand;
    const size_t later = backward && rows < layer->batch ? (CW_GROUPS - 1) * (table + scale + bias + 192) : 0;
    const size_t all = 3 * (state + 64) + operands + table + later + 256;
    char *memory = malloc(all), *free_memory = memory;
    if (!memory) return 1;
    free_memory += 64 - (size_t)(uintptr_t)memory % 64;
    cw_padded_barrier group_barriers[CW_GROUPS] = {0};
    cw_layer_job job = {.layer = layer, .groups = layer->batch / rows, .rows = rows, .group_barriers = group_barriers};
    job.h = carve(&free_memory, state), job.c = carve(&free_memory, state), job.mask = carve(&free_memory, state);
    job.operands = carve(&free_memory, operands), job.operand_bytes = operand;
    if (table && !backward) job.table = carve(&free_memory, table);
    for (int group = 0; backward && group < job.groups; group++) {
        cw_sums *sums = &job.sums[group];
        if (table) sums->table = carve(&free_memory, table);
        if (layer->d_scale) sums->scale = group ? carve(&free_memory, scale) : layer->d_scale;
        if (layer->d_bias) sums->bias = group ? carve(&free_memory, bias) : layer->d_bias;
    }
    cw_parallel(layer->threads, (backward ? chosen->backward : chosen->forward)[layer->bf16], &job);
    free(memory);
    return 0;
}

int cw_forward(int variant, const cw_layer *layer) { return run_layer(variant, layer, 0); }
int cw_backward(int variant, const cw_layer *layer) { return run_layer(variant, layer, 1); }

void cw_input_gradient(int variant, const cw_layer *layer, void *d_inputs) {
    cw_spread_job job = {layer, d_inputs};
    cw_parallel(layer->threads, variants[variant]->spread_inputs[layer->bf16], &job);
}

/* Slices of at most this many values of n: the packed part of b for one product then fits into the L2 cache, or with
 * tiles, which read faster, into the L1 cache. */
#define DEEPEST 1024
#define DEEPEST_TILES 384

static int slice(int n, int deepest) {
    const int slices = (n + deepest - 1) / deepest, depth = (n + slices - 1) / slices;
    return (depth + 31) / 32 * 32;
}

static int outer_depth(int variant, int bf16, int n) {
    return slice(n, bf16 && variants[variant]->shape.tiles ? DEEPEST_TILES : DEEPEST);
}

size_t cw_outer_bytes(int variant, int bf16, int threads, int n, int m, int columns) {
    const int depth = outer_depth(variant, bf16, n);
    if (bf16 && variants[variant]->shape.tiles)
        return (size_t)cw_packed_together(n, depth, columns) * columns * 2 + threads * CW_BLOCK_BYTES(depth);
    return (size_t)depth * ((m + 15) / 16 * 16 + columns) * (bf16 ? 2 : 4);
}

static void outer(int variant, int bf16, int threads, cw_outer_job *job) {
    job->depth = outer_depth(variant, bf16, job->n);
    cw_parallel(threads, variants[variant]->outer[bf16], job);
}

void cw_outer(int variant, int bf16, int threads, int n, int m, int columns, const void *a, size_t a_row, const void *b,
              size_t b_row, void *scratch, float *c) {
    cw_outer_job job = {.n = n, .m = m, .columns = columns, .a = a, .b = b, .a_row = a_row, .b_row = b_row,
                        .scratch = scratch, .c = c};
    outer(variant, bf16, threads, &job);
}

void cw_weight_gradient(int variant, const cw_layer *layer, void *scratch, float *d_weights) {
    const int units = layer->units, m = cw_product_count(layer->cell) * units;
    cw_outer_job job = {.n = layer->steps * layer->batch, .m = m, .columns = units,
                        .first_row = cw_is_gru(layer->cell) ? m - units : 0, /* the slots start with gate n */
                        .layer = layer, .b = layer->masked ? layer->masked : layer->hidden, .b_row = units,
                        .scratch = scratch, .c = d_weights};
    outer(variant, layer->bf16, layer->threads, &job);
}

/* The next part of a memory that begins at `base`, or of one that is only measured, if that is NULL. */
static void *part(char *base, size_t *used, size_t bytes) {
    void *begin = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return begin;
}

/* Divide the working memory of a linear layer; returns its size. */
static size_t lay_out_linear(int variant, int backward, char *scratch, cw_linear_job *job) {
    const cw_linear *layer = job->layer;
    const int bf16 = layer->bf16, columns = backward ? layer->inputs : layer->outputs;
    const size_t k = padded(variants[variant], backward ? layer->outputs : layer->inputs, bf16), size = bf16 ? 2 : 4;
    size_t used = 0;
    job->packed = part(scratch, &used, columns * k * size);
    if (variants[variant]->shape.tiles && bf16) job->operand_bytes = CW_ROWS_AT_ONCE * k * size; /* else in place */
    job->operands = part(scratch, &used, layer->threads * job->operand_bytes);
    if (!backward) return used;
    job->gradient = layer->d_y;
    if (layer->curved || (bf16 && layer->wide))
        job->gradient = part(scratch, &used, (size_t)layer->rows * layer->outputs * size);
    job->outer_scratch = part(scratch, &used, cw_outer_bytes(variant, bf16, layer->threads, layer->rows, layer->outputs,
                                                           layer->inputs));
    job->outer_depth = outer_depth(variant, bf16, layer->rows);
    return used;
}

size_t cw_linear_bytes(int variant, const cw_linear *layer, int backward) {
    cw_linear_job job = {.layer = layer};
    return lay_out_linear(variant, backward, NULL, &job);
}

void cw_linear_forward(int variant, const cw_linear *layer) {
    cw_linear_job job = {.layer = layer};
    lay_out_linear(variant, 0, layer->scratch, &job);
    cw_parallel(layer->threads, variants[variant]->linear[layer->bf16], &job);
}

void cw_linear_backward(int variant, const cw_linear *layer) {
    cw_linear_job job = {.layer = layer};
    lay_out_linear(variant, 1, layer->scratch, &job);
    cw_parallel(layer->threads, variants[variant]->linear_backward[layer->bf16], &job);
}

void cw_contexts(int steps, int batch, int order, int bits, const int64_t *ids, const float *before, int64_t *offsets,
                 float *after) {
    const size_t rows = (size_t)steps * batch;
    for (int b = 0; b < batch; b++) {
        uint32_t marks[CW_ORDER] = {0}, found[CW_ORDER - 1];
        for (int k = 0; k + 1 < order; k++) marks[k] = (uint32_t)before[b * (order - 1) + k];
        for (int t = 0; t < steps; t++) {
            memmove(marks + 1, marks, (order - 1) * sizeof *marks);
            marks[0] = (uint32_t)ids[(size_t)t * batch + b] + 1;
            cw_ngram_offsets(marks, order, bits, found);
            for (int k = 0; k + 1 < order; k++) offsets[k * rows + (size_t)t * batch + b] = found[k];
        }
        for (int k = 0; k + 1 < order; k++) after[b * (order - 1) + k] = (float)marks[k];
    }
}

int cw_ids_fit(const int64_t *ids, int64_t count, int64_t vocabulary) {
    int fit = 1;
    for (int64_t i = 0; i < count; i++) fit &= (uint64_t)ids[i] < (uint64_t)vocabulary;
    return fit;
}

double cw_cross_entropy(int variant, int bf16, int threads, int rows, int vocabulary, void *logits, const float *bias,
                        const cw_ngrams *ngrams, const int64_t *targets, float scale, float *losses, float *d_bias,
                        void *scratch) {
    cw_loss_job job = {rows, vocabulary, d_bias != NULL, logits, bias, ngrams, targets, scale, losses, d_bias, scratch};
    cw_parallel(threads, variants[variant]->cross_entropy[bf16], &job);
    double sum = 0;
    for (int n = 0; n < rows; n++) sum += losses[n];
    return sum;
}

/* Of one thread: some rows of the inputs and of the logits' gradients as operands, and logits in float32. */
static size_t head_scratch(int bf16, int vocabulary, int units) {
    const size_t size = bf16 ? 2 : 4, columns = ((size_t)vocabulary + 31) / 32 * 32, k = ((size_t)units + 31) / 32 * 32;
    return CW_ROWS_AT_ONCE * ((k + columns) * size + 2 * 64 + columns * sizeof(float));
}

/* Divide the working memory of an output layer; returns its size. */
static size_t lay_out_head(int variant, const cw_output_layer *layer, char *scratch, cw_head_job *job) {
    const int rows = layer->rows, vocabulary = layer->vocabulary, bf16 = layer->bf16, threads = layer->threads;
    const size_t size = bf16 ? 2 : 4, units = layer->units, columns = (size_t)vocabulary + 31;
    size_t used = 0;
    job->forward = part(scratch, &used, columns * (units + 16) * size);
    job->backward = part(scratch, &used, columns * units * size);
    job->scratch_bytes = head_scratch(bf16, vocabulary, layer->units);
    job->scratch = part(scratch, &used, threads * job->scratch_bytes);
    if (bf16)
        job->outer_scratch = part(scratch, &used, cw_outer_bytes(variant, bf16, threads, rows, vocabulary, layer->units));
    if (bf16 && layer->mask && layer->d_bias) job->masked = part(scratch, &used, rows * units * size);
    return used;
}

size_t cw_head_bytes(int variant, const cw_output_layer *layer) {
    cw_head_job job = {0};
    return lay_out_head(variant, layer, NULL, &job);
}

double cw_head(int variant, const cw_output_layer *layer) {
    const int bf16 = layer->bf16, rows = layer->rows;
    cw_head_job job = {.loss = {.rows = rows, .vocabulary = layer->vocabulary, .wanted = layer->d_bias != NULL,
                                .logits = layer->d_logits, .bias = layer->bias, .ngrams = layer->ngrams,
                                .targets = layer->targets, .scale = layer->scale, .losses = layer->losses,
                                .d_bias = layer->d_bias},
                       .units = layer->units, .batch = layer->batch, .x = layer->x, .weight = layer->weight,
                       .mask = layer->mask, .d_x = layer->d_x, .d_weight = layer->d_weight,
                       .outer_depth = outer_depth(variant, bf16, rows)};
    lay_out_head(variant, layer, layer->scratch, &job);
    cw_parallel(layer->threads, variants[variant]->head[bf16], &job);
    double sum = 0;
    for (int n = 0; n < rows; n++) sum += layer->losses[n];
    return sum;
}

void cw_descend(int variant, int bf16, int threads, int rows, int vocabulary, const cw_ngrams *ngrams,
                const void *d_logits, float rate) {
    cw_descend_job job = {rows, vocabulary, ngrams, d_logits, rate};
    cw_parallel(threads, variants[variant]->descend[bf16], &job);
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

void cw_adam(int variant, int threads, const cw_parameter *parameters, int count, float scale, void *scratch) {
    cw_adam_job job = {parameters, count, all_chunks(parameters, count), scale, scratch};
    for (int i = 0; i < count; i++) *parameters[i].step += 1;
    cw_parallel(threads, variants[variant]->adam, &job);
}
