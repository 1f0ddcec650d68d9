/* Test the kernels against plain equations, for every variant that runs on this machine. Training: values and gradients
 * in double precision. Generation: double precision or, with 8-bit weights, exact integers. A separate program, so that
 * sanitizers and emulators of other processors can run it without Python. run.sh compiles it without contraction into
 * fused multiply-adds, since sampling must be exact to the last bit.
 *
 * Prints lines for each variant, and exits with 1 if any difference exceeds the precision of the arithmetic.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "charwright_kernels.h"
#include "shares.h"

typedef struct {
    int cell, bf16, steps, batch, units, tokens, threads, masked, by_table, scaled;
} example;

static uint64_t random_state = 1;
static double noise(void) { /* splitmix64, to -1 ... 1 */
    uint64_t x = (random_state += 0x9E3779B97F4A7C15u);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (double)(int64_t)(x ^ (x >> 31)) / 9223372036854775808.0;
}
static void *room(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) exit(2);
    return memory;
}
/* What a kernel forgets to write is not a number. */
static void *unwritten(size_t bytes) { return memset(room(bytes, 1), 0xff, bytes); }
static float *noises(size_t count, double scale) {
    float *values = room(count, sizeof(float));
    for (size_t i = 0; i < count; i++) values[i] = (float)(noise() * scale);
    return values;
}
static float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static double stored(const void *array, int bf16, size_t i) {
    return bf16 ? from_bf16(((const uint16_t *)array)[i]) : ((const float *)array)[i];
}
static void keep(void *array, int bf16, size_t i, float value) {
    if (!bf16) {
        ((float *)array)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t *)array)[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* --- The equations --- */

typedef struct {
    double *hidden, *cells, *active, *u, *d_u, *d_table, *d_bias, *d_h, *d_c, *d_inputs, *d_scale;
} reference;

static double sigma(double x) { return 1 / (1 + exp(-x)); }

/* What multiplies unit k of the state inside the recurrent product of step t in row b. */
static double factor(const example *e, const int64_t *ids, const float *mask, const float *scale, int t, int b, int k) {
    const double by_token = scale ? scale[(size_t)ids[(size_t)t * e->batch + b] * e->units + k] : 1;
    return mask ? by_token * mask[b * e->units + k] : by_token;
}

static void reference_forward(const example *e, const int64_t *ids, const float *input, const float *weights,
                              const float *bias, const float *mask, const float *scale, reference *ref) {
    const int H = e->units, G = cw_gate_count(e->cell), B = e->batch;
    for (int t = 0; t < e->steps; t++)
        for (int b = 0; b < B; b++) {
            const double *h = ref->hidden + ((size_t)t * B + b) * H;
            const float *x = input + ((size_t)t * B + b) * G * H;
            for (int j = 0; j < H; j++) {
                double p[4] = {0};
                for (int g = 0; g < G; g++) {
                    p[g] = bias ? bias[g * H + j] : 0;
                    for (int k = 0; k < H; k++)
                        p[g] += (double)weights[((size_t)g * H + j) * H + k] * h[k] * factor(e, ids, mask, scale, t, b, k);
                }
                size_t at = ((size_t)t * B + b) * H + j, next = at + (size_t)B * H;
                double *a = ref->active + at * 4;
                if (cw_is_gru(e->cell)) {
                    a[0] = sigma(x[j] + p[0]);
                    a[1] = sigma(x[H + j] + p[1]);
                    a[3] = p[2];
                    a[2] = tanh(x[2 * H + j] + a[0] * p[2]);
                    ref->hidden[next] = a[2] + a[1] * (h[j] - a[2]);
                } else if (e->cell == CW_LSTM) {
                    a[0] = sigma(x[j] + p[0]);
                    a[1] = sigma(x[H + j] + p[1]);
                    a[2] = tanh(x[2 * H + j] + p[2]);
                    a[3] = sigma(x[3 * H + j] + p[3]);
                    ref->cells[next] = a[1] * ref->cells[at] + a[0] * a[2];
                    ref->hidden[next] = a[3] * tanh(ref->cells[next]);
                } else {
                    ref->hidden[next] = tanh(x[j] + p[0]);
                }
            }
        }
}

static void reference_backward(const example *e, const int64_t *ids, const float *weights, const float *mask,
                               const float *scale, const float *d_outputs, reference *ref) {
    const int H = e->units, G = cw_gate_count(e->cell), B = e->batch;
    double *through = room((size_t)G * H, sizeof(double));
    for (int t = e->steps - 1; t >= 0; t--)
        for (int b = 0; b < B; b++) {
            size_t row = (size_t)t * B + b;
            const double *h = ref->hidden + row * H;
            double *d_h = ref->d_h + (size_t)b * H;
            for (int j = 0; j < H; j++) {
                size_t at = row * H + j, next = at + (size_t)B * H;
                const double *a = ref->active + at * 4;
                double d = d_h[j] + d_outputs[at], at_input[4] = {0}, at_product[4] = {0};
                if (cw_is_gru(e->cell)) {
                    double d_n = d * (1 - a[1]) * (1 - a[2] * a[2]);
                    at_input[0] = at_product[0] = d_n * a[3] * a[0] * (1 - a[0]);
                    at_input[1] = at_product[1] = d * (h[j] - a[2]) * a[1] * (1 - a[1]);
                    at_input[2] = d_n;
                    at_product[2] = d_n * a[0];
                    d_h[j] = d * a[1];
                } else if (e->cell == CW_LSTM) {
                    double tc = tanh(ref->cells[next]), d_c = ref->d_c[b * H + j] + d * a[3] * (1 - tc * tc);
                    at_product[0] = d_c * a[2] * a[0] * (1 - a[0]);
                    at_product[1] = d_c * ref->cells[at] * a[1] * (1 - a[1]);
                    at_product[2] = d_c * a[0] * (1 - a[2] * a[2]);
                    at_product[3] = d * tc * a[3] * (1 - a[3]);
                    memcpy(at_input, at_product, sizeof at_input);
                    ref->d_c[b * H + j] = d_c * a[1];
                    d_h[j] = 0;
                } else {
                    at_input[0] = at_product[0] = d * (1 - ref->hidden[next] * ref->hidden[next]);
                    d_h[j] = 0;
                }
                for (int g = 0; g < G; g++) {
                    through[g * H + j] = at_product[g];
                    ref->d_table[(size_t)ids[row] * G * H + g * H + j] += at_input[g];
                    ref->d_inputs[(row * G + g) * H + j] = at_input[g];
                    ref->d_bias[g * H + j] += at_product[g];
                }
            }
            for (int i = 0; i < G * H; i++)
                for (int k = 0; k < H; k++) {
                    const double masked = factor(e, ids, mask, scale, t, b, k);
                    const double d_product = through[i] * weights[(size_t)i * H + k];
                    d_h[k] += d_product * masked;
                    ref->d_u[(size_t)i * H + k] += through[i] * h[k] * masked;
                    ref->d_scale[(size_t)ids[row] * H + k] += d_product * h[k] * (mask ? mask[b * H + k] : 1);
                }
        }
    free(through);
}

/* --- One example, forward and backward --- */

static double worst;
static void far_apart(const char *what, const example *e, const char *variant, const void *found, int bf16,
                      const double *expected, size_t count) {
    double difference = 0, size = 1e-12;
    for (size_t i = 0; i < count; i++) {
        double d = stored(found, bf16, i) - expected[i];
        difference += d * d;
        size += expected[i] * expected[i];
    }
    double relative = sqrt(difference / size), allowed = e->bf16 ? 4e-2 : 2e-5;
    if (relative > worst) worst = relative;
    if (!(relative <= allowed)) {
        printf("%s: %s is off by %.2g: cell %d bf16 %d T %d B %d H %d threads %d mask %d table %d scale %d\n", variant,
               what, relative, e->cell, e->bf16, e->steps, e->batch, e->units, e->threads, e->masked, e->by_table,
               e->scaled);
        exit(1);
    }
}

static void check(int variant, example e) {
    const int H = e.units, G = cw_gate_count(e.cell), P = cw_product_count(e.cell), B = e.batch, T = e.steps;
    const size_t rows = (size_t)T * B, width = (size_t)G * H, size = e.bf16 ? 2 : 4;
    /* The reference has weights from the state to all gates, and those of gates that do not read it are zeros. */
    const size_t wide = (size_t)P * H, first = width - wide;
    const char *name = cw_variant_name(variant);
    const int tokens = e.by_table ? e.tokens : (int)rows;
    float *table = noises(tokens * width, 1), *weights = noises(width * H, 1.5 / sqrt(H)), *d_out = noises(rows * H, 1);
    float *bias = cw_is_gru(e.cell) ? noises(width, 0.5) : NULL, *mask = e.masked ? noises((size_t)B * H, 1.5) : NULL;
    float *scale = e.scaled ? noises((size_t)tokens * H, 1.5) : NULL;
    memset(weights, 0, first * H * sizeof(float));
    if (first) memset(bias, 0, first * sizeof(float));
    float *h = noises((size_t)B * H, 1), *c = noises((size_t)B * H, 1);
    float *d_h = noises((size_t)B * H, 1), *d_c = noises((size_t)B * H, 1);
    int64_t *ids = room(rows, sizeof *ids);
    float *spread = room(rows * width, sizeof *spread);
    void *inputs = room(rows * width, size), *stored_d_out = room(rows * H, size);
    for (size_t i = 0; i < rows; i++) ids[i] = e.by_table ? (int64_t)((i * 7 + i / 3) % tokens) : (int64_t)i;
    for (size_t i = 0; i < rows; i++) memcpy(spread + i * width, table + ids[i] * width, width * sizeof(float));
    for (size_t i = 0; i < rows * width; i++) keep(inputs, e.bf16, i, spread[i]);
    for (size_t i = 0; i < rows * H; i++) keep(stored_d_out, e.bf16, i, d_out[i]);

    reference ref = {room((rows + B) * H, 8), room((rows + B) * H, 8), room(rows * H * 4, 8), NULL, room(width * H, 8),
                     room(tokens * width, 8), room(width, 8), room((size_t)B * H, 8), room((size_t)B * H, 8), room(rows * width, 8),
                     room((size_t)tokens * H, 8)};
    for (int i = 0; i < B * H; i++) {
        ref.hidden[i] = h[i];
        ref.cells[i] = c[i];
        ref.d_h[i] = d_h[i];
        ref.d_c[i] = d_c[i];
    }
    reference_forward(&e, ids, spread, weights, bias, mask, scale, &ref);
    reference_backward(&e, ids, weights, mask, scale, d_out, &ref);

    void *packed = room(cw_packed_bytes(variant, e.cell, H, e.bf16), 1);
    float *d_table = unwritten(tokens * width * 4), *d_bias = unwritten(width * 4);
    float *d_scale = unwritten((size_t)tokens * H * 4);
    const int slots = cw_slots(e.cell);
    cw_layer layer = {.cell = e.cell, .bf16 = e.bf16, .steps = T, .batch = B, .units = H, .threads = e.threads,
                      .tokens = tokens, .table = e.by_table ? table : NULL, .ids = e.by_table ? ids : NULL,
                      .inputs = e.by_table ? NULL : inputs, .bias = bias ? bias + first : NULL, .mask = mask,
                      .scale = scale, .packed = packed,
                      .hidden = room((rows + B) * H, size),
                      .masked = mask || scale ? room((rows + B) * H, size) : NULL,
                      .gates = room(rows * slots * H, size), .cells = room((rows + B) * H, size), .state_h = h,
                      .state_c = c, .d_outputs = stored_d_out, .d_h = d_h, .d_c = d_c,
                      .d_table = e.by_table ? d_table : NULL, .d_scale = scale ? d_scale : NULL, .d_bias = d_bias};
    cw_pack(variant, e.cell, H, e.bf16, 0, e.threads, weights + first * H, packed);
    if (cw_forward(variant, &layer)) exit(2);
    far_apart("hidden", &e, name, layer.hidden, e.bf16, ref.hidden, (rows + B) * H);
    far_apart("last h", &e, name, h, 0, ref.hidden + rows * H, (size_t)B * H);
    if (e.cell == CW_LSTM) far_apart("last c", &e, name, c, 0, ref.cells + rows * H, (size_t)B * H);
    cw_pack(variant, e.cell, H, e.bf16, 1, e.threads, weights + first * H, packed);
    if (cw_backward(variant, &layer)) exit(2);
    far_apart("d h", &e, name, d_h, 0, ref.d_h, (size_t)B * H);
    if (e.cell == CW_LSTM) far_apart("d c", &e, name, d_c, 0, ref.d_c, (size_t)B * H);
    if (e.by_table) far_apart("d table", &e, name, d_table, 0, ref.d_table, tokens * width);
    far_apart("d bias", &e, name, d_bias, 0, ref.d_bias + first, wide);
    if (scale) far_apart("d scale", &e, name, d_scale, 0, ref.d_scale, (size_t)tokens * H);

    float *d_u = room(wide * H, sizeof *d_u);
    void *scratch = room(cw_outer_bytes(variant, e.bf16, e.threads, (int)rows, (int)wide, H), 1);
    cw_weight_gradient(variant, &layer, scratch, d_u);
    far_apart("d weights", &e, name, d_u, 0, ref.d_u + first * H, wide * H);
    void *d_inputs = room(rows * width, size);
    cw_input_gradient(variant, &layer, d_inputs);
    far_apart("d inputs", &e, name, d_inputs, e.bf16, ref.d_inputs, rows * width);

    void *all[] = {table, weights, d_out, bias, mask, h, c, d_h, d_c, ids, spread, inputs, stored_d_out, ref.hidden,
                   ref.cells, ref.active, ref.d_u, ref.d_table, ref.d_bias, ref.d_h, ref.d_c, packed, d_table, d_bias,
                   layer.hidden, layer.masked, layer.gates, layer.cells, d_u, scratch, d_inputs, ref.d_inputs,
                   scale, d_scale, ref.d_scale};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Products of odd shapes, deeper than one slice; and the loss of vocabularies that are not a multiple of a vector. */
static void check_outer(int variant, int bf16, int threads, int n, int m, int columns) {
    const example e = {.bf16 = bf16, .threads = threads, .steps = n, .batch = m, .units = columns};
    const size_t size = bf16 ? 2 : 4, a_row = m + 3;
    void *a = room(n * a_row, size), *b = room((size_t)n * columns, size);
    for (size_t i = 0; i < n * a_row; i++) keep(a, bf16, i, (float)noise());
    for (size_t i = 0; i < (size_t)n * columns; i++) keep(b, bf16, i, (float)noise());
    double *expected = room((size_t)m * columns, 8);
    for (int k = 0; k < n; k++)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < columns; j++)
                expected[(size_t)i * columns + j] += stored(a, bf16, k * a_row + i) * stored(b, bf16, (size_t)k * columns + j);
    float *c = room((size_t)m * columns, 4);
    void *scratch = room(cw_outer_bytes(variant, bf16, threads, n, m, columns), 1);
    cw_outer(variant, bf16, threads, n, m, columns, a, a_row, b, columns, scratch, c);
    far_apart("outer product", &e, cw_variant_name(variant), c, 0, expected, (size_t)m * columns);
    void *all[] = {a, b, expected, c, scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static float rounded(double value, int bf16) {
    uint16_t half;
    if (!bf16) return (float)value;
    keep(&half, 1, 0, (float)value);
    return from_bf16(half);
}

/* A linear layer and its gradients, in double precision from operands that are rounded as in the kernels. Returns the bits
 * of all results. */
typedef struct {
    int rows, inputs, outputs, wide, curved, biased, adding, d_x;
} linear_sizes;

static uint64_t check_linear(int variant, int bf16, int threads, linear_sizes s) {
    const example e = {.bf16 = bf16, .threads = threads, .steps = s.rows, .batch = s.inputs, .units = s.outputs,
                       .tokens = s.wide, .masked = s.curved, .scaled = s.adding};
    const char *name = cw_variant_name(variant);
    const int narrow = bf16 && !s.wide;
    const size_t in = (size_t)s.rows * s.inputs, out = (size_t)s.rows * s.outputs, all = (size_t)s.outputs * s.inputs;
    void *x = room(in, bf16 ? 2 : 4), *y = unwritten(out * (narrow ? 2 : 4)), *d_y = room(out, narrow ? 2 : 4);
    void *d_x = room(in, narrow ? 2 : 4);
    float *weight = noises(all, 0.3), *bias = noises(s.outputs, 1), *d_weight = unwritten(all * 4), *d_bias = room(s.outputs, 4);
    double *expected_y = room(out, 8), *d_sums = room(out, 8), *expected_x = room(in, 8), *expected_weight = room(all, 8);
    double *expected_bias = room(s.outputs, 8);
    for (size_t i = 0; i < in; i++) keep(x, bf16, i, (float)noise());
    for (size_t i = 0; i < in; i++) keep(d_x, narrow, i, (float)noise());
    for (size_t i = 0; i < out; i++) keep(d_y, narrow, i, (float)noise());
    for (size_t i = 0; s.adding && i < in; i++) expected_x[i] = ((float *)d_x)[i];
    for (int n = 0; n < s.rows; n++)
        for (int j = 0; j < s.outputs; j++) {
            const size_t at = (size_t)n * s.outputs + j;
            double sum = s.biased ? bias[j] : 0;
            for (int k = 0; k < s.inputs; k++)
                sum += stored(x, bf16, (size_t)n * s.inputs + k) * rounded(weight[(size_t)j * s.inputs + k], bf16);
            expected_y[at] = s.curved ? 1 + tanh(sum) : sum;
            d_sums[at] = stored(d_y, narrow, at) * (s.curved ? 1 - tanh(sum) * tanh(sum) : 1);
            expected_bias[j] += d_sums[at];
            const double d = rounded(d_sums[at], bf16);
            for (int k = 0; k < s.inputs; k++) {
                expected_x[(size_t)n * s.inputs + k] += d * rounded(weight[(size_t)j * s.inputs + k], bf16);
                expected_weight[(size_t)j * s.inputs + k] += d * stored(x, bf16, (size_t)n * s.inputs + k);
            }
        }
    cw_linear layer = {.bf16 = bf16, .threads = threads, .rows = s.rows, .inputs = s.inputs, .outputs = s.outputs,
                       .wide = s.wide, .curved = s.curved, .adding = s.adding, .x = x, .weight = weight,
                       .bias = s.biased ? bias : NULL, .y = y};
    layer.scratch = unwritten(cw_linear_bytes(variant, &layer, 0));
    cw_linear_forward(variant, &layer);
    free(layer.scratch);
    layer.d_y = d_y;
    layer.d_x = s.d_x ? d_x : NULL;
    layer.d_weight = d_weight;
    layer.d_bias = s.biased ? d_bias : NULL;
    layer.scratch = unwritten(cw_linear_bytes(variant, &layer, 1));
    cw_linear_backward(variant, &layer);
    uint64_t bits = 1469598103934665603u;
    const void *results[] = {y, d_x, d_weight, d_bias};
    const size_t lengths[] = {out * (narrow ? 2 : 4), in * (narrow ? 2 : 4), all * 4, (size_t)s.outputs * 4};
    for (int r = 0; r < 4; r++)
        for (size_t i = 0; i < lengths[r]; i++) bits = (bits ^ ((const uint8_t *)results[r])[i]) * 1099511628211u;
    /* Only what is stored in bfloat16 is that imprecise, and a gradient that falls to the other side of a rounding. */
    const example exact = {.threads = threads, .steps = s.rows, .batch = s.inputs, .units = s.outputs};
    far_apart("linear layer", narrow ? &e : &exact, name, y, narrow, expected_y, out);
    if (s.d_x) far_apart("d x of a linear layer", bf16 && (narrow || s.curved) ? &e : &exact, name, d_x, narrow, expected_x, in);
    far_apart("d weight of a linear layer", bf16 && s.curved ? &e : &exact, name, d_weight, 0, expected_weight, all);
    if (s.biased) far_apart("d bias of a linear layer", &exact, name, d_bias, 0, expected_bias, s.outputs);
    void *taken[] = {x, y, d_y, d_x, weight, bias, d_weight, d_bias, expected_y, d_sums, expected_x, expected_weight,
                     expected_bias, layer.scratch};
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) free(taken[i]);
    return bits;
}

static int check_linears(int variant, int bf16) {
    const linear_sizes sizes[] = {{1, 16, 16, 0, 0, 1, 0, 1},  {66, 48, 144, 1, 0, 1, 0, 1}, {66, 48, 80, 1, 1, 0, 1, 1},
                                  {5, 16, 48, 1, 1, 1, 0, 0},  {420, 80, 48, 0, 0, 1, 0, 1}, {130, 32, 624, 0, 0, 1, 0, 1},
                                  {193, 16, 96, 1, 0, 1, 1, 1},  {40, 32, 592, 1, 1, 1, 0, 1}, {33, 16, 32, 0, 0, 0, 0, 1}};
    const int all = sizeof sizes / sizeof *sizes;
    for (int i = 0; i < all; i++) {
        const uint64_t before = random_state, one = check_linear(variant, bf16, 1, sizes[i]);
        for (int threads = 2; threads <= 3; threads++) {
            random_state = before;
            if (check_linear(variant, bf16, threads, sizes[i]) != one) {
                printf("%s: %d threads give other bits of a linear layer than one\n", cw_variant_name(variant), threads);
                exit(1);
            }
        }
    }
    return 3 * all;
}

/* With n-grams, the last offset is the last one possible, and the others overlap. */
static void check_loss(int variant, int bf16, int threads, int rows, int vocabulary, int contexts) {
    const example e = {.bf16 = bf16, .threads = threads, .steps = rows, .units = vocabulary, .tokens = contexts};
    const int64_t size = 64 + vocabulary;
    float *array = contexts ? noises(size, 1) : room(size, 4);
    double *expected_array = room(size, 8);
    int64_t *offsets = room((size_t)contexts * rows, sizeof *offsets);
    for (int i = 0; i < contexts * rows; i++) offsets[i] = i + 1 == contexts * rows ? 64 : i * 37 % 65;
    const cw_ngrams ngrams = {array, offsets, size, contexts};
    const size_t count = (size_t)rows * vocabulary;
    void *logits = room(count, bf16 ? 2 : 4), *scratch = room((size_t)threads * (vocabulary + 16), 4);
    float *bias = noises(vocabulary, 1), *losses = room(rows, 4), *d_bias = room(vocabulary, 4);
    int64_t *targets = room(rows, sizeof *targets);
    double *expected = room(count, 8), *expected_losses = room(rows, 8), *expected_bias = room(vocabulary, 8);
    for (size_t i = 0; i < count; i++) keep(logits, bf16, i, (float)(noise() * 4));
    double *full = room(vocabulary, 8);
    for (int64_t i = 0; i < size; i++) expected_array[i] = array[i];
    for (int n = 0; n < rows; n++) {
        targets[n] = (n * 5 + 3) % vocabulary;
        double most = -1e300, sum = 0;
        for (int v = 0; v < vocabulary; v++) {
            full[v] = stored(logits, bf16, (size_t)n * vocabulary + v) + bias[v];
            for (int k = 0; k < contexts; k++) full[v] += array[offsets[k * rows + n] + v];
            most = fmax(most, full[v]);
        }
        for (int v = 0; v < vocabulary; v++) sum += exp(full[v] - most);
        for (int v = 0; v < vocabulary; v++) {
            const size_t at = (size_t)n * vocabulary + v;
            const double score = full[v] - most - log(sum);
            if (v == targets[n]) expected_losses[n] = -score;
            expected[at] = (exp(score) - (v == targets[n])) / 7;
            expected_bias[v] += expected[at];
            for (int k = 0; k < contexts; k++) expected_array[offsets[k * rows + n] + v] -= 3 * expected[at];
        }
    }
    const double sum = cw_cross_entropy(variant, bf16, threads, rows, vocabulary, logits, bias, contexts ? &ngrams : NULL,
                                        targets, 1 / 7.0f, losses, d_bias, scratch);
    double expected_sum = 0;
    for (int n = 0; n < rows; n++) expected_sum += losses[n];
    if (sum != expected_sum) {
        printf("%s: the sum of the losses is off\n", cw_variant_name(variant));
        exit(1);
    }
    for (int n = 0; n < rows; n++) { /* a loss is the logarithm of a number near 1, of which float32 has 24 bits */
        losses[n] += 1;
        expected_losses[n] += 1;
    }
    far_apart("loss", &e, cw_variant_name(variant), losses, 0, expected_losses, rows);
    far_apart("d logits", &e, cw_variant_name(variant), logits, bf16, expected, count);
    far_apart("d bias of the head", &e, cw_variant_name(variant), d_bias, 0, expected_bias, vocabulary);
    if (contexts) {
        cw_descend(variant, bf16, threads, rows, vocabulary, &ngrams, logits, 3);
        far_apart("array of the n-grams", &e, cw_variant_name(variant), array, 0, expected_array, size);
    }
    void *all[] = {logits, scratch, bias, losses, d_bias, targets, expected, expected_losses, expected_bias,
                   array, expected_array, offsets, full};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* The output layer in one call, against its products in double precision and cw_cross_entropy's own check above: with and
 * without a mask and n-grams; without gradients the losses are the same. The bits must be those of one thread. */
static uint64_t check_head(int variant, int bf16, int threads, int rows, int batch, int vocabulary, int units, int masks, int contexts) {
    const example e = {.bf16 = bf16, .threads = threads, .steps = rows, .batch = batch, .units = units, .tokens = vocabulary};
    const char *name = cw_variant_name(variant);
    const int64_t size = 64 + vocabulary;
    const size_t count = (size_t)rows * vocabulary, inputs = (size_t)rows * units, weights = (size_t)vocabulary * units;
    const size_t width = bf16 ? 2 : 4;
    void *x = room(inputs, width), *d_logits = room(count, width), *d_x = room(inputs, width);
    for (size_t i = 0; i < inputs; i++) keep(x, bf16, i, (float)noise());
    float *array = noises(size, 1), *weight = noises(weights, 0.3), *bias = noises(vocabulary, 1);
    float *mask = noises((size_t)batch * units, 1), *losses = room(rows, 4), *again = room(rows, 4);
    float *d_weight = room(weights, 4), *d_bias = room(vocabulary, 4);
    int64_t *offsets = room((size_t)contexts * rows, sizeof *offsets), *targets = room(rows, sizeof *targets);
    for (int i = 0; i < contexts * rows; i++) offsets[i] = i * 37 % 65;
    const cw_ngrams ngrams = {array, offsets, size, contexts};
    double *expected = room(count, 8), *expected_losses = room(rows, 8), *expected_x = room(inputs, 8);
    double *expected_weight = room(weights, 8), *expected_bias = room(vocabulary, 8), *full = room(vocabulary, 8);
    for (int n = 0; n < rows; n++) {
        targets[n] = (n * 5 + 3) % vocabulary;
        const float *factor = mask + (size_t)(n % batch) * units;
        double *row = room(units, 8);
        for (int i = 0; i < units; i++) row[i] = stored(x, bf16, (size_t)n * units + i) * (masks ? factor[i] : 1);
        double sum = 0;
        for (int v = 0; v < vocabulary; v++) {
            full[v] = bias[v];
            for (int i = 0; i < units; i++) full[v] += row[i] * weight[(size_t)v * units + i];
            for (int k = 0; k < contexts; k++) full[v] += array[offsets[k * rows + n] + v];
            sum += exp(full[v]);
        }
        expected_losses[n] = log(sum) - full[targets[n]] + 1;
        for (int v = 0; v < vocabulary; v++) {
            const double d = (exp(full[v]) / sum - (v == targets[n])) / 7;
            expected[(size_t)n * vocabulary + v] = d;
            expected_bias[v] += d;
            for (int i = 0; i < units; i++) {
                expected_x[(size_t)n * units + i] += d * weight[(size_t)v * units + i] * (masks ? factor[i] : 1);
                expected_weight[(size_t)v * units + i] += d * row[i];
            }
        }
        free(row);
    }
    cw_output_layer layer = {.bf16 = bf16, .threads = threads, .rows = rows, .batch = batch, .units = units,
                             .vocabulary = vocabulary, .scale = 1 / 7.0f, .x = x, .mask = masks ? mask : NULL,
                             .weight = weight, .bias = bias, .ngrams = contexts ? &ngrams : NULL, .targets = targets,
                             .losses = losses, .d_logits = d_logits, .d_x = d_x, .d_weight = d_weight, .d_bias = d_bias};
    void *scratch = layer.scratch = room(cw_head_bytes(variant, &layer), 1);
    const double sum = cw_head(variant, &layer);
    layer.losses = again;
    layer.d_bias = NULL;
    void *less = layer.scratch = room(cw_head_bytes(variant, &layer), 1);
    const double alone = cw_head(variant, &layer);
    if (sum != alone || memcmp(losses, again, rows * sizeof *losses)) {
        printf("%s: the losses of the head depend on whether the gradients are wanted\n", name);
        exit(1);
    }
    uint64_t bits = 1469598103934665603u;
    const void *results[] = {losses, d_logits, d_x, d_weight, d_bias};
    const size_t lengths[] = {rows * sizeof(float), count * width, inputs * width, weights * sizeof(float),
                              vocabulary * sizeof(float)};
    for (int r = 0; r < 5; r++)
        for (size_t i = 0; i < lengths[r]; i++) bits = (bits ^ ((const uint8_t *)results[r])[i]) * 1099511628211u;
    for (int n = 0; n < rows; n++) losses[n] += 1;
    far_apart("loss of the head", &e, name, losses, 0, expected_losses, rows);
    far_apart("d logits of the head", &e, name, d_logits, bf16, expected, count);
    far_apart("d inputs of the head", &e, name, d_x, bf16, expected_x, inputs);
    far_apart("d weights of the head", &e, name, d_weight, 0, expected_weight, weights);
    far_apart("d bias of the head", &e, name, d_bias, 0, expected_bias, vocabulary);
    void *all[] = {array, x, weight, bias, mask, losses, again, d_logits, d_x, d_weight, d_bias, offsets, targets, expected,
                   expected_losses, expected_x, expected_weight, expected_bias, full, scratch, less};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    return bits;
}

static int check_heads(int variant, int bf16) {
    const int sizes[][6] = {{1, 1, 2, 16, 0, 0}, {7, 7, 17, 48, 1, 0}, {70, 5, 66, 32, 1, 3}, {130, 13, 40, 80, 0, 2},
                            {65, 3, 1, 16, 1, 1}, {2, 9, 513, 16, 1, 0},
                            {420, 20, 67, 48, 1, 1}};
    const int all = sizeof sizes / sizeof *sizes;
    for (int i = 0; i < all; i++) {
        const int *s = sizes[i];
        const uint64_t before = random_state, one = check_head(variant, bf16, 1, s[0], s[1], s[2], s[3], s[4], s[5]);
        for (int threads = 2; threads <= 3; threads++) {
            random_state = before;
            if (check_head(variant, bf16, threads, s[0], s[1], s[2], s[3], s[4], s[5]) != one) {
                printf("%s: %d threads give other bits of the head than one\n", cw_variant_name(variant), threads);
                exit(1);
            }
        }
    }
    return 3 * all;
}

/* A network of two layers, the first one multiplicative, with masks of states and outputs, and n-grams. */
enum { N_T = 3, N_B = 34, N_N = N_T * N_B, N_V = 21, N_E = 16, N_H = 48, N_BITS = 6, N_ORDER = 3, N_WEIGHTS = 12 };
typedef struct {
    int cell, bf16, threads;
    float *weights[N_WEIGHTS]; /* the embedding; of each layer W, U and two biases; of the scale; the head, and its bias */
    float *masks[4], *array;
    int64_t *ids;
} whole;

static void weight_sizes(int cell, size_t sizes[N_WEIGHTS]) {
    const size_t gates = cw_gate_count(cell) * N_H, products = cw_product_count(cell) * N_H;
    const size_t all[N_WEIGHTS] = {N_V * N_E, gates * N_E, products * N_H, gates, products, gates * N_H, products * N_H,
                                   gates,     products,    N_H * N_E,      N_V * N_H, N_V};
    memcpy(sizes, all, sizeof all);
}

/* An array that is freed with others. */
static void *remembered(void **made, int *count, void *array) { return made[(*count)++] = array; }

/* The sum of the losses; the gradients go to `d`, and those of the logits to `d_logits`. */
static double differentiate(int variant, const whole *n, float *const d[N_WEIGHTS], void *d_logits) {
    const size_t size = n->bf16 ? 2 : 4, width = cw_gate_count(n->cell) * N_H, states = (size_t)(N_T + 1) * N_B * N_H;
    const int gru = cw_is_gru(n->cell);
    float *const *w = n->weights;
    void *made[32];
    int count = 0;
#define ROOM(count_, size_) remembered(made, &count, unwritten((count_) * (size_t)(size_)))
    void *low = ROOM(N_V * N_E, size), *inputs = ROOM(N_N * width + N_V * width, 4), *gradient = ROOM(N_N * N_H, size);
    for (int i = 0; i < N_V * N_E; i++) keep(low, n->bf16, i, w[0][i]);
    cw_network_layer layers[2];
    for (int l = 0; l < 2; l++) {
        float *const *own = w + 1 + 4 * l, *const *d_own = d + 1 + 4 * l;
        cw_network_layer *part = layers + l;
        *part = (cw_network_layer){
            .layer = {.cell = n->cell, .bf16 = n->bf16, .steps = N_T, .batch = N_B, .units = N_H, .threads = n->threads,
                      .tokens = l ? 0 : N_V, .table = l ? NULL : inputs, .ids = l ? NULL : n->ids,
                      .inputs = l ? inputs : NULL, .bias = gru ? own[3] : NULL, .mask = n->masks[l],
                      .hidden = ROOM(states, size), .masked = ROOM(states, size), .gates = ROOM(N_N * 4 * N_H, size),
                      .cells = ROOM(states, size), .state_h = made[count] = room(N_B * N_H, 4), .d_outputs = gradient,
                      .d_table = l ? NULL : inputs, .d_bias = gru ? d_own[3] : NULL},
            .input = {.bf16 = n->bf16, .threads = n->threads, .rows = l ? N_N : N_V, .inputs = l ? N_H : N_E,
                      .outputs = (int)width, .wide = !l, .x = l ? layers[0].masked_outputs : low, .weight = own[0],
                      .bias = own[2], .y = inputs, .d_y = inputs, .d_x = l ? gradient : d[0], .d_weight = d_own[0],
                      .d_bias = d_own[2]},
            .weights = own[1], .d_weights = d_own[1], .output_mask = l ? NULL : n->masks[2]};
        count++;
        part->layer.state_c = made[count++] = room(N_B * N_H, 4);
        part->layer.packed = ROOM(cw_packed_bytes(variant, n->cell, N_H, n->bf16), 1);
        part->scratch = ROOM(cw_outer_bytes(variant, n->bf16, n->threads, N_N, (int)width, N_H), 1);
        part->input.scratch = ROOM(cw_linear_bytes(variant, &part->input, 1) + cw_linear_bytes(variant, &part->input, 0), 1);
        if (l) continue;
        part->masked_outputs = ROOM(N_N * N_H, size);
        part->scale = (cw_linear){.bf16 = n->bf16, .threads = n->threads, .rows = N_V, .inputs = N_E, .outputs = N_H,
                                  .wide = 1, .curved = 1, .adding = 1, .x = low, .weight = w[9], .y = ROOM(N_V * N_H, 4),
                                  .d_y = ROOM(N_V * N_H, 4), .d_x = d[0], .d_weight = d[9]};
        part->scale.scratch = ROOM(cw_linear_bytes(variant, &part->scale, 1) + cw_linear_bytes(variant, &part->scale, 0), 1);
        part->layer.scale = part->scale.y;
        part->layer.d_scale = (float *)part->scale.d_y;
    }
    float tokens[N_B * (N_ORDER - 1)] = {0, 0, 3, 1};
    cw_network network = {
        .layers = 2, .ngram_order = N_ORDER, .ngram_bits = N_BITS, .layer = layers,
        .head = {.bf16 = n->bf16, .threads = n->threads, .rows = N_N, .batch = N_B, .units = N_H, .vocabulary = N_V,
                 .scale = 1, .x = (char *)layers[1].layer.hidden + N_B * N_H * size, .mask = n->masks[3], .weight = w[10],
                 .bias = w[11], .ngrams = &network.ngrams, .targets = n->ids + N_B, .losses = ROOM(N_N, 4),
                 .d_logits = d_logits, .d_x = gradient, .d_weight = d[10], .d_bias = d[11]},
        .ngrams = {n->array, ROOM(N_N * (N_ORDER - 1), 8), (1 << N_BITS) + N_V, N_ORDER - 1},
        .tokens = tokens, .ids = n->ids};
    network.head.scratch = ROOM(cw_head_bytes(variant, &network.head), 1);
#undef ROOM
    double sum;
    if (cw_differentiate(variant, &network, &sum)) exit(2);
    for (int b = 0; b < N_B; b++)
        if (tokens[2 * b] != n->ids[(N_T - 1) * N_B + b] + 1 || tokens[2 * b + 1] != n->ids[(N_T - 2) * N_B + b] + 1) {
            printf("%s: a network does not keep the last tokens\n", cw_variant_name(variant));
            exit(1);
        }
    while (count) free(made[--count]);
    return sum;
}

/* Along a direction in all weights, the loss changes as the gradients say; several threads give the bits of one. */
static void check_network(int variant, int cell, int bf16) {
    size_t sizes[N_WEIGHTS];
    weight_sizes(cell, sizes);
    whole n = {.cell = cell, .bf16 = bf16, .threads = 1, .array = noises((1 << N_BITS) + N_V, 1), .ids = room(N_N + N_B, 8)};
    for (int i = 0; i < N_N + N_B; i++) n.ids[i] = (i * 7 + i / 4) % N_V;
    for (int i = 0; i < 4; i++) {
        n.masks[i] = noises(N_B * N_H, 1);
        for (int k = 0; k < N_B * N_H; k++) n.masks[i][k] = n.masks[i][k] > -0.5f ? 1.25f : 0;
    }
    float *d[2][N_WEIGHTS], *direction[N_WEIGHTS];
    void *d_logits[2] = {unwritten(N_N * N_V * 4), unwritten(N_N * N_V * 4)};
    for (int i = 0; i < N_WEIGHTS; i++) {
        n.weights[i] = noises(sizes[i], 0.3);
        direction[i] = noises(sizes[i], 1);
        for (int k = 0; k < 2; k++) d[k][i] = unwritten(sizes[i] * 4);
    }
    if (!cw_is_gru(cell)) sizes[4] = sizes[8] = 0; /* they have no second bias */
    const double sum = differentiate(variant, &n, d[0], d_logits[0]);
    for (n.threads = 2; n.threads <= 4; n.threads++) {
        int same = sum == differentiate(variant, &n, d[1], d_logits[1]);
        for (int i = 0; i < N_WEIGHTS; i++) same &= !memcmp(d[0][i], d[1][i], sizes[i] * 4);
        same &= !memcmp(d_logits[0], d_logits[1], N_N * N_V * (bf16 ? 2 : 4));
        if (same) continue;
        printf("%s: the gradients of a network depend on the number of threads\n", cw_variant_name(variant));
        exit(1);
    }
    n.threads = 3;
    double expected = 0, found = 0;
    for (int i = 0; i < N_WEIGHTS; i++)
        for (size_t k = 0; k < sizes[i]; k++) {
            /* Nowhere down, so that the change is large beside the rounding of the losses. */
            direction[i][k] = copysignf(direction[i][k], d[0][i][k]);
            expected += (double)d[0][i][k] * direction[i][k];
        }
    for (int side = -1; side <= 1; side += 2) {
        const float step = 1e-3f * (float)side;
        for (int i = 0; i < N_WEIGHTS; i++)
            for (size_t k = 0; k < sizes[i]; k++) n.weights[i][k] += step * direction[i][k];
        found += side * differentiate(variant, &n, d[1], d_logits[1]) / 2e-3;
        for (int i = 0; i < N_WEIGHTS; i++)
            for (size_t k = 0; k < sizes[i]; k++) n.weights[i][k] -= step * direction[i][k];
    }
    if (!(fabs(found - expected) <= (bf16 ? 5e-2 : 5e-4) * fabs(expected))) {
        printf("%s: along a direction the loss of a network changes by %g, not by %g\n", cw_variant_name(variant), found,
               expected);
        exit(1);
    }
    for (int i = 0; i < N_WEIGHTS; i++) {
        free(n.weights[i]), free(direction[i]);
        for (int k = 0; k < 2; k++) free(d[k][i]);
        if (i < 4) free(n.masks[i]);
    }
    free(n.array), free(n.ids), free(d_logits[0]), free(d_logits[1]);
}

static int check_networks(int variant) {
    int count = 0;
    for (int cell = 0; cell <= CW_IGRU; cell++)
        for (int bf16 = 0; bf16 < 2; bf16++, count++) check_network(variant, cell, bf16);
    return count;
}

/* Adam and AdamW over some steps, with sizes below, at and above a vector and a chunk; and the norm of the gradients.
 * The bits must be those of one thread. */
enum { ARRAYS = 7 };
static const int64_t adam_sizes[ARRAYS] = {1, 3, 16, 67, 4096, 4099, 12301};

static void adam_reference(cw_parameter p, int step, double scale, double *w, double *m, double *v) {
    int64_t moving = 0;
    for (int64_t i = 0; i < p.count; i++) {
        const double g = p.gradient[i] * scale + (p.decoupled ? 0 : p.decay * w[i]);
        m[i] = p.beta1 * m[i] + (1 - p.beta1) * g;
        v[i] = p.beta2 * v[i] + (1 - p.beta2) * g * g;
        moving += m[i] * g > 0;
    }
    const double share = p.cautious ? fmax((double)moving / (double)p.count, 1e-3) : 1;
    for (int64_t i = 0; i < p.count; i++) {
        const double g = p.gradient[i] * scale + (p.decoupled ? 0 : p.decay * w[i]);
        if (p.decoupled) w[i] *= 1 - p.rate * p.decay;
        if (p.cautious && !(m[i] * g > 0)) continue;
        w[i] -= p.rate / share * (m[i] / (1 - pow(p.beta1, step))) / (sqrt(v[i] / (1 - pow(p.beta2, step))) + p.epsilon);
    }
}

static uint64_t check_adam(int variant, int threads, int decoupled, int cautious) {
    const example e = {.threads = threads, .by_table = decoupled};
    const char *name = cw_variant_name(variant);
    cw_parameter all[ARRAYS];
    double *expected[ARRAYS][3];
    float steps[ARRAYS] = {0};
    uint64_t bits = 0;
    const uint64_t before = random_state;
    random_state = 7; /* the same numbers for every number of threads */
    for (int i = 0; i < ARRAYS; i++) {
        const size_t count = (size_t)adam_sizes[i];
        all[i] = (cw_parameter){noises(count, 1), room(count, 4), room(count, 4), room(count, 4), steps + i, adam_sizes[i],
                                0.01 / (i + 1), 0.9, 0.999, 1e-7, i % 2 ? 0.3 : 0, decoupled, cautious && i % 3};
        for (int kind = 0; kind < 3; kind++) expected[i][kind] = room(count, 8);
        for (size_t k = 0; k < count; k++) expected[i][0][k] = all[i].weight[k];
    }
    void *scratch = room(cw_norm_bytes(all, ARRAYS), 1);
    for (int step = 1; step <= 4; step++) {
        double squares = 0;
        for (int i = 0; i < ARRAYS; i++)
            for (int64_t k = 0; k < all[i].count; k++) {
                ((float *)all[i].gradient)[k] = (float)noise();
                squares += (double)all[i].gradient[k] * all[i].gradient[k];
            }
        const double found = cw_norm(variant, threads, all, ARRAYS, scratch);
        if (!(fabs(found / squares - 1) < 1e-6)) {
            printf("%s: the norm is off by %.2g with %d threads\n", name, found / squares - 1, threads);
            exit(1);
        }
        const float scale = step % 2 ? 1 : (float)(0.5 / sqrt(found));
        cw_adam(variant, threads, all, ARRAYS, scale, cautious ? scratch : NULL);
        for (int i = 0; i < ARRAYS; i++)
            adam_reference(all[i], step, scale, expected[i][0], expected[i][1], expected[i][2]);
    }
    for (int i = 0; i < ARRAYS; i++) {
        far_apart("Adam's weight", &e, name, all[i].weight, 0, expected[i][0], (size_t)all[i].count);
        far_apart("Adam's mean", &e, name, all[i].mean, 0, expected[i][1], (size_t)all[i].count);
        far_apart("Adam's square", &e, name, all[i].square, 0, expected[i][2], (size_t)all[i].count);
        if (steps[i] != 4) exit(1);
        for (int64_t k = 0; k < all[i].count; k++) {
            uint32_t some;
            memcpy(&some, all[i].weight + k, 4);
            bits = bits * 31 + some;
        }
        void *used[] = {all[i].weight, (void *)all[i].gradient, all[i].mean, all[i].square, expected[i][0], expected[i][1],
                        expected[i][2]};
        for (size_t k = 0; k < sizeof used / sizeof *used; k++) free(used[k]);
    }
    free(scratch);
    random_state = before;
    return bits;
}

static int check_all_adam(int variant) {
    for (int kind = 0; kind < 3; kind++) {
        const int decoupled = kind > 0, cautious = kind > 1;
        const uint64_t alone = check_adam(variant, 1, decoupled, cautious);
        for (int threads = 2; threads <= 4; threads++)
            if (check_adam(variant, threads, decoupled, cautious) != alone) {
                printf("%s: Adam's bits depend on the threads (%d)\n", cw_variant_name(variant), threads);
                exit(1);
            }
    }
    return 12;
}

/* --- Sampling --- */

static uint64_t high_half(uint64_t a, uint64_t b) {
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle;
    return a1 * b1 + (middle >> 32) + (other >> 32);
}
static double philox(uint64_t seed, uint64_t stream, uint64_t index) {
    uint64_t x0 = index / 4 + 1, x1 = 0, x2 = 0, x3 = 0;
    for (uint64_t round = 0; round < 10; round++) {
        const uint64_t y0 = high_half(0xCA5A826395121157u, x2) ^ x1 ^ (seed + round * 0x9E3779B97F4A7C15u);
        const uint64_t y2 = high_half(0xD2E7470EE14C6C93u, x0) ^ x3 ^ (stream + round * 0xBB67AE8584CAA73Bu);
        x1 = x2 * 0xCA5A826395121157u;
        x3 = x0 * 0xD2E7470EE14C6C93u;
        x0 = y0;
        x2 = y2;
    }
    const uint64_t four[] = {x0, x1, x2, x3};
    return (double)(four[index % 4] >> 11) / 9007199254740992.0;
}

/* e^x as generation/sampling.py defines it. */
static double defined_exponential(double x) {
    if (!(x > -708)) return 0;
    const double k = nearbyint(x * 1.4426950408889634);
    const double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    double factorial = 6227020800, p = 1 / factorial;
    for (int n = 13; n > 0; n--) {
        factorial /= n;
        p = p * r + 1 / factorial;
    }
    return ldexp(p, (int)k);
}

/* The id of rank `rank` in weights: the most likely has 0; of equals, the smaller id comes first. */
static int ranked(const double *weights, int count, int rank) {
    for (int i = 0; i < count; i++) {
        int ahead = 0;
        for (int j = 0; j < count; j++) ahead += weights[j] > weights[i] || (weights[j] == weights[i] && j < i);
        if (ahead == rank) return i;
    }
    exit(2);
}

static int reference_draw(const cw_sampler *s, const double *logits, int count, const int32_t *ids, int64_t length) {
    double *weights = room(count, 8), *kept = room(count, 8), most = -INFINITY, sum = 0;
    const int64_t first = length > s->penalty_window ? length - s->penalty_window : 0;
    for (int i = 0; i < count; i++) {
        int64_t longest = 0;
        for (int64_t at = first + 1; at < length; at++) {
            int64_t same = 0;
            while (ids[at] == i && at - 1 - same >= first && ids[at - 1 - same] == ids[length - 1 - same]) same++;
            if (same > longest) longest = same;
        }
        const int64_t over = longest - s->penalty_from + 1;
        weights[i] = s->masked && s->masked[i] ? -INFINITY : logits[i] - s->penalty * (double)(over > 0 ? over : 0);
        if (weights[i] > most) most = weights[i];
    }
    for (int i = 0; i < count; i++)
        weights[i] = s->temperature == 0 ? weights[i] == most : defined_exponential((weights[i] - most) / s->temperature);
    int likeliest = ranked(weights, count, 0), drawn = -1;
    if (s->temperature == 0) {
        free(weights);
        free(kept);
        return likeliest;
    }
    for (int rank = 0; s->top_k > 0 && rank < count; rank++) {
        const int id = ranked(weights, count, rank);
        kept[id] = rank < s->top_k ? weights[id] : 0;
    }
    if (s->top_k > 0) memcpy(weights, kept, (size_t)count * 8);
    for (int i = 0; i < count; i++) sum += weights[i];
    double passed = 0;
    for (int rank = 0; s->top_p < 1 && rank < count; rank++) {
        const int id = ranked(weights, count, rank);
        kept[id] = passed < s->top_p * sum ? weights[id] : 0;
        passed += weights[id];
    }
    if (s->top_p < 1) memcpy(weights, kept, (size_t)count * 8);
    sum = passed = 0;
    for (int i = 0; i < count; i++) {
        if (weights[i] < s->min_p) weights[i] = 0;
        sum += weights[i];
    }
    const double goal = sum * philox(s->seed, s->stream, s->drawn);
    for (int i = 0; i < count && drawn < 0; i++) {
        passed += weights[i];
        if (passed > goal) drawn = i;
    }
    free(weights);
    free(kept);
    return drawn;
}

static int whole_noise(int below) { return (int)((noise() + 1) / 2 * below) % below; }

static cw_sampler some_sampler(const uint8_t *masked) {
    const double temperatures[] = {0.8, 1, 1.3, 0, 1e-3, 100}, penalties[] = {0, log(1.1), 0, log(3)};
    cw_sampler s = {.top_p = 1, .penalty_from = 3, .penalty_window = 20, .masked = masked};
    s.temperature = temperatures[whole_noise(6)];
    s.penalty = penalties[whole_noise(4)];
    if (whole_noise(2)) s.top_p = 0.01 + 0.49 * (noise() + 1);
    if (whole_noise(2)) s.min_p = 0.3 * (noise() + 1);
    if (whole_noise(2)) s.top_k = 1 + whole_noise(9);
    s.seed = (uint64_t)((noise() + 1) * 4e18);
    s.stream = (uint64_t)whole_noise(65536);
    s.drawn = (uint64_t)((noise() + 1) * 1e12);
    return s;
}
static uint8_t *some_mask(int count) {
    if (!whole_noise(3)) return NULL;
    uint8_t *masked = room(count, 1);
    for (int i = 0; i < count; i++) masked[i] = whole_noise(4) == 0;
    masked[whole_noise(count)] = 0;
    return masked;
}

static void draw_differs(const char *what, int found, int expected, const cw_sampler *s, int count) {
    if (found == expected) return;
    printf("%s: %d is drawn and not %d: V %d temperature %g k %d p %g min %g penalty %g seed %llu stream %llu number %llu\n",
           what, found, expected, count, s->temperature, s->top_k, s->top_p, s->min_p, s->penalty,
           (unsigned long long)s->seed, (unsigned long long)s->stream, (unsigned long long)s->drawn);
    exit(1);
}

/* The same id by every variant that runs here. */
static void check_draw(const char *what, cw_sampler before, const double *logits, int count, const int32_t *ids,
                       int64_t length) {
    const int expected = reference_draw(&before, logits, count, ids, length), found = cw_variants();
    void *scratch = room(cw_draw_bytes(count), 1);
    for (int variant = 0; found >> variant; variant++) {
        if (!(found >> variant & 1)) continue;
        cw_sampler sampler = before;
        draw_differs(what, cw_draw(variant, &sampler, logits, count, ids, length, scratch), expected, &before, count);
        draw_differs("count of draws", sampler.drawn == before.drawn + 1, 1, &before, count);
    }
    free(scratch);
}

static int check_draws(void) {
    const double numpys[] = {0.8824668302545412, 0.3690383346754841, 0.5170696944527113};
    for (int i = 0; i < 3; i++)
        if (philox(7, 1, i) != numpys[i]) {
            printf("random number %d is %.17g\n", i, philox(7, 1, i));
            exit(1);
        }
    const int sizes[] = {1, 2, 7, 63, 64, 65, 66, 73, 130};
    int done = 0;
    for (int round = 0; round < 400; round++, done++) {
        const int count = sizes[round % 9];
        const int64_t length = whole_noise(40);
        double *logits = room(count, 8);
        for (int i = 0; i < count; i++) logits[i] = round % 3 ? noise() * 8 : (double)whole_noise(3);
        int32_t *ids = room(length, sizeof *ids);
        for (int i = 0; i < length; i++) ids[i] = (round % 2 ? whole_noise(3) : i % (1 + round % 4)) % count;
        uint8_t *masked = some_mask(count);
        check_draw("draw", some_sampler(masked), logits, count, ids, length);
        void *all[] = {logits, ids, masked};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    }
    /* Two ids whose boundary is the random number itself: the last bit of an exponential decides. Others have no chance. */
    for (int round = 0; round < 2000; round++) {
        const uint64_t seed = (uint64_t)round;
        const cw_sampler sampler = {.temperature = 1, .top_p = 1, .seed = seed, .stream = 5, .drawn = seed};
        const double u = philox(seed, 5, seed), border = u < 0.5 ? log(u / (1 - u)) : log((1 - u) / u);
        enum { COUNT = 140 }; /* more than the sums are behind the exponentials */
        double logits[COUNT];
        const int count = round % 2 ? 2 : COUNT, at = round * 7 % (count - 1);
        for (int i = 0; i < count; i++) logits[i] = -1000;
        for (int step = -6; step <= 6; step++, done++) {
            const double near = border + step * 2.3e-16 * fmax(1, -border);
            logits[at] = u < 0.5 ? near : 0, logits[at + 1] = u < 0.5 ? 0 : near;
            check_draw("draw at a border", sampler, logits, count, NULL, 0);
        }
    }
    return done;
}

/* --- Generation --- */

typedef struct {
    int storage, cell, layers, units, vocabulary, texts, threads, bits, order; /* of the n-grams; 0 bits: none */
    int scaled; /* whether each token scales the state in the first layer's recurrent product */
} writing;

static int parts_of(const writing *w) { return w->cell == CW_LSTM ? 2 : 1; }
/* The numbers in the layers of a state, and in the whole of it, whose last row is for the n-grams. */
static size_t layer_numbers(const writing *w) { return (size_t)w->layers * parts_of(w) * w->units; }
static size_t state_numbers(const writing *w) {
    return layer_numbers(w) + (w->bits ? (size_t)parts_of(w) * w->units : 0);
}

enum { STEPS = 9 };

/* An unpacked matrix (rows, k): the weights in the product, integers for 8-bit. */
typedef struct {
    int rows, k;
    double *weights, *bias;
    int32_t *multipliers;
} matrix;

static matrix some_matrix(const writing *w, int rows, int k, int goal_bits) {
    matrix m = {rows, k, room((size_t)rows * k, 8), room(rows, 8), room(rows, 4)};
    for (size_t i = 0; i < (size_t)rows * k; i++) {
        uint16_t half;
        if (w->storage == CW_Q8) m.weights[i] = rint(noise() * 127);
        else m.weights[i] = (float)(noise() * 2 / sqrt(k));
        if (w->storage == CW_BF16) {
            keep(&half, 1, 0, (float)m.weights[i]);
            m.weights[i] = from_bf16(half);
        }
    }
    for (int i = 0; i < rows; i++) {
        m.bias[i] = w->storage == CW_Q8 ? rint(noise() * (1 << goal_bits)) : (float)noise();
        m.multipliers[i] = (int32_t)((1.5 + noise()) * ldexp(1, goal_bits + 20) / (127 * 127 * sqrt(k)));
        if (goal_bits == 16) m.multipliers[i] /= 8; /* keeps logits close to each other */
        if (w->storage != CW_Q8 || (goal_bits == 16 && k < 100)) continue; /* saturated values would leave no choice */
        if (i % 13 == 5 && w->threads != 2) m.multipliers[i] = INT32_MAX; /* otherwise nothing can exceed the limit */
        if (i % 13 == 7) m.multipliers[i] = 1;
        if (i % 17 == 3) m.bias[i] = (i % 2 ? -1 : 1) * (double)(INT32_MAX / 2);
    }
    return m;
}
static void free_matrix(matrix m) {
    free(m.weights);
    free(m.bias);
    free(m.multipliers);
}

/* The same matrix in the kernels' layout (charwright_kernels.h), in memory of the exact size. */
static cw_matrix packed_matrix(int variant, const writing *w, matrix m, int gates, int head) {
    int32_t layout[5];
    cw_layout(variant, w->storage, w->cell, layout);
    const int lanes = layout[0], panel = head ? layout[2] : layout[1] * gates;
    const int depth = w->storage == CW_Q8 ? 4 : 1 + w->storage;
    const int size = w->storage == CW_Q8 ? 1 : w->storage == CW_BF16 ? 2 : 4, filled = (m.rows + 15) / 16 * 16;
    const int units = filled / gates, vectors = filled / lanes, order[] = {0, 2, 1, 3};
    char *packed = room((size_t)filled * m.k, size), *at = packed;
    for (int first = 0; first < vectors; first += panel)
        for (int k = 0; k < m.k; k += depth)
            for (int v = first; v < first + panel && v < vectors; v++)
                for (int lane = 0; lane < lanes; lane++)
                    for (int d = 0; d < depth; d++, at += size) {
                        const int row = v % gates * units + v / gates * lanes + lane;
                        const double x =
                            row < m.rows ? m.weights[(size_t)row * m.k + k + (layout[4] ? order[d] : d)] : 0;
                        if (w->storage == CW_Q8) *(int8_t *)at = (int8_t)x;
                        else keep(at, w->storage == CW_BF16, 0, (float)x);
                    }
    int32_t *multipliers = room(filled, 4), *corrections = room(filled, 4), *bias = room(filled, 4);
    for (int row = 0; row < m.rows; row++) {
        multipliers[row] = m.multipliers[row];
        for (int k = 0; k < m.k; k++) corrections[row] -= layout[3] * (int)m.weights[(size_t)row * m.k + k];
        if (w->storage == CW_Q8) bias[row] = (int32_t)m.bias[row];
        else ((float *)bias)[row] = (float)m.bias[row];
    }
    return (cw_matrix){packed, multipliers, corrections, bias};
}
static void free_packed(cw_matrix m) {
    free((void *)m.packed);
    free((void *)m.multipliers);
    free((void *)m.corrections);
    free((void *)m.bias);
}

typedef struct {
    double *table; /* (V, G * H) */
    double *scale; /* (V, H): multiplies the state, 32768 times as large for 8-bit; or NULL */
    matrix recurrent[2], inputs[2], head;
    double *votes; /* (2^bits + V): the numbers that n-grams add to the logits */
} network;

static int16_t tanh_table[1026];
static int64_t limited(int64_t x, int64_t limit) { return x > limit ? limit : x < -limit ? -limit : x; }
static int64_t half_up(int64_t x, int bits) {
    const int64_t unit = (int64_t)1 << bits, up = x + unit / 2, rest = (up % unit + unit) % unit;
    return (up - rest) / unit;
}
static int64_t whole_tanh(int64_t v) { /* 12 fraction bits in, 15 out */
    const int64_t size = limited(v < 0 ? -v : v, 32767), low = tanh_table[size / 32], high = tanh_table[size / 32 + 1];
    const int64_t y = low + ((high - low) * (size % 32) + 16) / 32;
    return v < 0 ? -y : y;
}
static int64_t whole_sigma(int64_t v) { return (32768 + whole_tanh(v)) / 2; }

/* The products (rows) of a state: in double precision, or requantized integers. */
static void product_of(const writing *w, matrix m, const double *state, double *products) {
    for (int row = 0; row < m.rows; row++) {
        double sum = 0;
        for (int k = 0; k < m.k; k++) {
            double a = state[k];
            if (w->storage == CW_Q8) a = (double)half_up((int64_t)a * 127, 15);
            if (w->storage == CW_BF16) {
                uint16_t half;
                keep(&half, 1, 0, (float)a);
                a = from_bf16(half);
            }
            sum += a * m.weights[(size_t)row * m.k + k];
        }
        if (w->storage == CW_Q8) sum = (double)limited(half_up((int64_t)sum * m.multipliers[row], 20), INT32_MAX / 2);
        products[row] = sum;
    }
}

/* The state after a step, from the input x (G, H), the recurrent products p (P, H) and the state before. */
static void reference_gates(const writing *w, const double *x, const double *p, const double *bias, double *h, double *c) {
    const int H = w->units;
    for (int j = 0; j < H; j++) {
        if (w->storage == CW_Q8) {
            int64_t pre[4] = {0};
            for (int g = 0; g < cw_gate_count(w->cell) && w->cell != CW_IGRU; g++)
                pre[g] = limited((int64_t)(x[g * H + j] + p[g * H + j]), 32767);
            if (w->cell == CW_GRU) {
                const int64_t r = whole_sigma(pre[0]), z = whole_sigma(pre[1]);
                const int64_t u = limited((int64_t)(p[2 * H + j] + bias[2 * H + j]), 32767);
                const int64_t n = whole_tanh(2 * limited((int64_t)x[2 * H + j] + half_up(r * u, 15), 32767));
                h[j] = (double)(n + half_up(z * ((int64_t)h[j] - n), 15));
            } else if (w->cell == CW_IGRU) {
                const int64_t r = whole_sigma((int64_t)x[j]), u = limited((int64_t)(p[H + j] + bias[H + j]), 32767);
                const int64_t z = whole_sigma(limited((int64_t)(x[H + j] + p[j]), 32767));
                const int64_t n = whole_tanh(2 * limited((int64_t)x[2 * H + j] + half_up(r * u, 15), 32767));
                h[j] = (double)(n + half_up(z * ((int64_t)h[j] - n), 15));
            } else if (w->cell == CW_LSTM) {
                const int64_t i = whole_sigma(pre[0]), f = whole_sigma(pre[1]), g = whole_tanh(2 * pre[2]);
                c[j] = (double)limited(half_up(f * (int64_t)c[j] + i * g, 15), (1 << 21) - 1);
                h[j] = (double)half_up(whole_sigma(pre[3]) * whole_tanh(half_up((int64_t)c[j], 3)), 15);
            } else {
                h[j] = (double)whole_tanh(2 * pre[0]);
            }
        } else if (w->cell == CW_GRU) {
            const double r = sigma(x[j] + p[j]), z = sigma(x[H + j] + p[H + j]);
            const double n = tanh(x[2 * H + j] + r * (p[2 * H + j] + bias[2 * H + j]));
            h[j] = n + z * (h[j] - n);
        } else if (w->cell == CW_IGRU) { /* p has z and n alone */
            const double z = sigma(x[H + j] + p[j]), n = tanh(x[2 * H + j] + sigma(x[j]) * (p[H + j] + bias[H + j]));
            h[j] = n + z * (h[j] - n);
        } else if (w->cell == CW_LSTM) {
            c[j] = sigma(x[H + j] + p[H + j]) * c[j] + sigma(x[j] + p[j]) * tanh(x[2 * H + j] + p[2 * H + j]);
            h[j] = sigma(x[3 * H + j] + p[3 * H + j]) * tanh(c[j]);
        } else {
            h[j] = tanh(x[j] + p[j]);
        }
    }
}

/* The offset of the last n tokens by its definition in ngrams.py: c_0 after one step, c_1, c_2, ... in the state; the last
 * possible one where there are fewer tokens. */
static uint32_t reference_offset(int n, int bits, int32_t id, const double *before) {
    const uint64_t multipliers[9][8] = {
        [2] = {0x7984A8AB, 0x71E273A9},
        [3] = {0x081C5253, 0x9FB93535, 0xABD2D9F3},
        [4] = {0xF93FE42F, 0x14BE09AB, 0xDB149E47, 0x4A95902B},
        [5] = {0xE7D80069, 0xB9096A05, 0xAFAE5A3B, 0xC963CFE1, 0xC439F34B},
        [6] = {0xE1454C41, 0xE794EE15, 0x26B563B1, 0x42840D2B, 0xAC8BE7D7, 0xA2BEEE31},
        [7] = {0xD96E5ADF, 0xE7AA8577, 0x19FCFC65, 0xDF43EFB3, 0x53D23C0B, 0x92AC3D43, 0xE7CA430F},
        [8] = {0x2B5C5CD1, 0x06E82A01, 0x69599355, 0x6820212D, 0xFE6C2B03, 0x1333BC1D, 0x1A6E72B9, 0x20050ED3},
    };
    uint64_t sum = (uint64_t)(id + 1) * multipliers[n][0];
    if (before[n - 2] == 0) return (uint32_t)1 << bits;
    for (int k = 1; k < n; k++) sum = (sum + (uint64_t)before[k - 1] * multipliers[n][k]) % ((uint64_t)1 << 32);
    return (uint32_t)(sum % ((uint64_t)1 << 32) >> (32 - bits));
}

static void reference_votes(const writing *w, const network *net, int32_t id, double *before, double *logits) {
    for (int n = 2; n <= w->order; n++) {
        const uint32_t offset = reference_offset(n, w->bits, id, before);
        for (int i = 0; i < w->vocabulary; i++) logits[i] += net->votes[offset + i];
    }
    for (int k = w->order - 2; k > 0; k--) before[k] = before[k - 1];
    before[0] = id + 1;
}

/* One step of one text: the state (L, S, H) changes in place; logits (V). */
static void reference_step(const writing *w, const network *net, int32_t id, double *state, double *logits) {
    const int H = w->units, G = cw_gate_count(w->cell), parts = w->cell == CW_LSTM ? 2 : 1;
    double *x = room((size_t)G * H, 8), *p = room((size_t)cw_product_count(w->cell) * H, 8), *scaled = room(H, 8);
    for (int layer = 0; layer < w->layers; layer++) {
        double *h = state + (size_t)layer * parts * H;
        for (int j = 0; j < H; j++) {
            scaled[j] = h[j];
            if (layer || !net->scale) continue;
            scaled[j] *= net->scale[(size_t)id * H + j];
            if (w->storage == CW_Q8) scaled[j] = (double)half_up((int64_t)scaled[j], 15);
        }
        product_of(w, net->recurrent[layer], scaled, p);
        if (layer) product_of(w, net->inputs[layer], h - (size_t)parts * H, x);
        for (int i = 0; i < G * H; i++) {
            x[i] = layer ? x[i] + net->inputs[layer].bias[i] : net->table[(size_t)id * G * H + i];
            if (layer && w->storage == CW_Q8) x[i] = (double)limited((int64_t)x[i], 32767);
        }
        reference_gates(w, x, p, net->recurrent[layer].bias, h, h + H);
    }
    product_of(w, net->head, state + (size_t)(w->layers - 1) * parts * H, logits);
    for (int i = 0; i < w->vocabulary; i++)
        logits[i] = w->storage == CW_Q8 ? (logits[i] + net->head.bias[i]) / 65536 : logits[i] + net->head.bias[i];
    if (w->bits) reference_votes(w, net, id, state + layer_numbers(w), logits);
    free(x);
    free(p);
    free(scaled);
}

static void writing_differs(const char *what, const writing *w, int variant, int text, double by, double allowed) {
    if (by > worst && allowed > 0) worst = by;
    if (by <= allowed) return;
    printf("%s: writing's %s is off by %.2g: storage %d cell %d L %d H %d V %d threads %d bits %d order %d scaled %d "
           "text %d of %d\n",
           cw_variant_name(variant), what, by, w->storage, w->cell, w->layers, w->units, w->vocabulary, w->threads,
           w->bits, w->order, w->scaled, text, w->texts);
    exit(1);
}
/* The difference as a share of the size, which counts as at least a tenth: what cancels out is no more exact than that. */
static double distance(const double *found, const double *expected, size_t count) {
    double difference = 0, size = 0.01 * (double)count + 1e-12;
    for (size_t i = 0; i < count; i++) {
        difference += (found[i] - expected[i]) * (found[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    return sqrt(difference / size);
}

static int prompt_length(int text) { return 1 + (text + 2) % 5; }

/* One number of a state, from -1 to 1 in the layers; behind them, the tokens before. */
static void set_number(const writing *w, void *state, size_t at, double value) {
    const int is_cell = w->cell == CW_LSTM && at / w->units % 2;
    const size_t behind = at - layer_numbers(w);
    if (at < layer_numbers(w)) value *= w->storage != CW_Q8 ? 1 : is_cell ? 2097151 : 32767;
    else value = behind + 1 < (size_t)w->order && value != 0 ? whole_noise(1 << 21) : 0;
    if (w->storage == CW_Q8) ((int32_t *)state)[at] = (int32_t)value;
    else ((float *)state)[at] = (float)value;
}

/* Texts with their own prompts, options and states; a second call creates the same ones. */
static cw_text *some_texts(const writing *w, size_t numbers, uint64_t seed, int all_logits) {
    cw_text *texts = room(w->texts, sizeof *texts);
    random_state = seed;
    for (int i = 0; i < w->texts; i++) {
        cw_text *text = texts + i;
        text->state = room(numbers, 4);
        for (size_t j = 0; j < numbers; j++) set_number(w, text->state, j, i % 2 ? noise() : 0);
        text->drawing = i % 4 != 3;
        text->length = text->drawing ? prompt_length(i) : STEPS;
        text->ids = room(text->drawing ? STEPS + 1 : STEPS, sizeof *text->ids);
        for (int j = 0; j < text->length; j++) text->ids[j] = whole_noise(w->vocabulary);
        text->scores = (i + w->threads) % 2 ? room(text->drawing ? STEPS + 1 : STEPS, 8) : NULL;
        text->likeliest_count = i % 3 == 2 ? 0 : 1 + (i + w->threads) % (w->vocabulary < 20 ? w->vocabulary : 20);
        const size_t alternatives = (size_t)(text->drawing ? STEPS + 1 : STEPS) * text->likeliest_count;
        text->likeliest = alternatives ? room(alternatives, sizeof *text->likeliest) : NULL;
        text->likeliest_scores = alternatives ? room(alternatives, 8) : NULL;
        text->logits = all_logits || (i + w->threads) % 3 == 1 ? room(w->vocabulary, 8) : NULL;
        text->sampler = some_sampler(some_mask(w->vocabulary));
    }
    return texts;
}
static void free_texts(const writing *w, cw_text *texts) {
    for (int i = 0; i < w->texts; i++) {
        void *all[] = {texts[i].state, texts[i].ids, texts[i].scores, texts[i].logits, (void *)texts[i].sampler.masked,
                       texts[i].likeliest, texts[i].likeliest_scores};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) free(all[j]);
    }
    free(texts);
}

/* The scores of the id that a text reads next, and its alternatives: each is the best of the ids not yet among them. */
static void check_scores(int variant, const writing *w, int number, const cw_text *text) {
    const int V = w->vocabulary;
    double most = -INFINITY, sum = 0;
    for (int v = 0; v < V; v++) most = fmax(most, text->logits[v]);
    for (int v = 0; v < V; v++) sum += exp(text->logits[v] - most);
    const double total = most + log(sum);
    if (text->scores)
        writing_differs("score", w, variant, number,
                        fabs(text->scores[text->at] - (text->logits[text->ids[text->at]] - total)), 1e-9);
    char *used = room(V, 1);
    for (int k = 0; k < text->likeliest_count; k++) {
        int best = -1;
        for (int v = 0; v < V; v++)
            if (!used[v] && (best < 0 || text->logits[v] > text->logits[best])) best = v;
        used[best] = 1;
        const int64_t at = text->at * text->likeliest_count + k;
        writing_differs("alternative", w, variant, number, abs(text->likeliest[at] - best), 0);
        writing_differs("alternative's score", w, variant, number,
                        fabs(text->likeliest_scores[at] - (text->logits[best] - total)), 1e-9);
    }
    free(used);
}

/* The array of the n-grams in memory of the exact size, and in the network as shares of a logit. */
static void *some_votes(const writing *w, network *net) {
    const size_t count = ((size_t)1 << w->bits) + w->vocabulary;
    void *votes = room(count, w->storage == CW_Q8 ? 2 : 4);
    net->votes = room(count, 8);
    for (size_t i = 0; i < count; i++) {
        const double value = noise();
        if (w->storage == CW_Q8) net->votes[i] = (((int16_t *)votes)[i] = (int16_t)(value * 32767)) / 2048.0;
        else net->votes[i] = ((float *)votes)[i] = (float)value;
    }
    return votes;
}

/* The scale of each token in memory of the exact size, and in the network. Random numbers of its own leave the others
 * as they are in an example without it. */
static void *some_scale(const writing *w, network *net) {
    const size_t count = (size_t)w->vocabulary * w->units;
    void *scale = room(count, w->storage == CW_Q8 ? 2 : 4);
    const uint64_t before = random_state;
    random_state = ~before;
    net->scale = room(count, 8);
    for (size_t i = 0; i < count; i++) {
        const double value = i % 29 ? noise() : i % 2 ? -1 : 1;
        if (w->storage == CW_Q8) net->scale[i] = ((int16_t *)scale)[i] = (int16_t)(value * 32767);
        else net->scale[i] = ((float *)scale)[i] = (float)(1 + value);
    }
    random_state = before;
    return scale;
}

static void check_writing(int variant, writing w) {
    const int H = w.units, G = cw_gate_count(w.cell), P = cw_product_count(w.cell), V = w.vocabulary;
    const size_t inner = layer_numbers(&w), numbers = state_numbers(&w);
    const double close = w.storage == CW_Q8 ? 0 : w.storage == CW_BF16 ? 1e-2 : 2e-5;
    network net = {.table = room((size_t)V * G * H, 8)};
    void *table = room((size_t)V * G * H, w.storage == CW_F32 ? 4 : 2);
    for (size_t i = 0; i < (size_t)V * G * H; i++) {
        if (w.storage == CW_Q8) {
            ((int16_t *)table)[i] = (int16_t)(net.table[i] = rint(noise() * (i % 31 ? 4096 : 32767)));
        } else {
            keep(table, w.storage == CW_BF16, i, (float)noise() * 2);
            net.table[i] = stored(table, w.storage == CW_BF16, i);
        }
    }
    cw_matrix recurrent[2] = {{0}}, inputs[2] = {{0}};
    for (int layer = 0; layer < w.layers; layer++) {
        recurrent[layer] = packed_matrix(variant, &w, net.recurrent[layer] = some_matrix(&w, P * H, H, 11), P, 0);
        if (layer) inputs[layer] = packed_matrix(variant, &w, net.inputs[layer] = some_matrix(&w, G * H, H, 11), G, 0);
    }
    const cw_matrix head = packed_matrix(variant, &w, net.head = some_matrix(&w, V, H, 16), 1, 1);
    void *votes = w.bits ? some_votes(&w, &net) : NULL;
    void *scale = w.scaled ? some_scale(&w, &net) : NULL;
    const cw_model model = {.storage = w.storage, .cell = w.cell, .layers = w.layers, .units = H, .vocabulary = V,
                            .table = table, .recurrent = recurrent, .inputs = inputs, .head = &head,
                            .tanh_table = tanh_table, .ngrams = votes, .ngram_bits = w.bits, .ngram_order = w.order,
                            .scale = scale};

    /* One step at a time on one thread: compare each step and each sampled id with the reference. */
    const uint64_t seed = random_state;
    cw_text *texts = some_texts(&w, numbers, seed, 1);
    double *states = room(numbers * w.texts, 8), *logits = room((size_t)V * w.texts, 8), *found = room(numbers, 8);
    for (int i = 0; i < w.texts; i++)
        for (size_t j = 0; j < numbers; j++)
            states[numbers * i + j] =
                w.storage == CW_Q8 ? ((int32_t *)texts[i].state)[j] : (double)((float *)texts[i].state)[j];
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < w.texts; i++)
            reference_step(&w, &net, texts[i].ids[texts[i].at], states + numbers * i, logits + (size_t)V * i);
        if (cw_write(variant, &model, 1, texts, w.texts, 1)) exit(2);
        for (int i = 0; i < w.texts; i++) {
            const cw_text *text = texts + i;
            for (size_t j = 0; j < numbers; j++)
                found[j] = w.storage == CW_Q8 ? ((int32_t *)text->state)[j] : (double)((float *)text->state)[j];
            writing_differs("state", &w, variant, i, distance(found, states + numbers * i, inner), close);
            const double *before = states + numbers * i + inner;
            writing_differs("n-gram", &w, variant, i, distance(found + inner, before, numbers - inner), 0);
            /* Go on from the kernels' state: where rounding differs once, it would differ more and more. */
            memcpy(states + numbers * i, found, numbers * sizeof *found);
            writing_differs("logits", &w, variant, i, distance(text->logits, logits + (size_t)V * i, V), close);
            writing_differs("position", &w, variant, i, text->at != step + 1, 0);
            if (text->drawing && step + 1 >= prompt_length(i)) { /* all ids before have been read */
                cw_sampler before = text->sampler;
                before.drawn--;
                const int expected = reference_draw(&before, text->logits, V, text->ids, text->at);
                draw_differs("text", text->ids[text->at], expected, &before, V);
                writing_differs("length", &w, variant, i, text->length != step + 2, 0);
            }
            if (text->at < text->length) check_scores(variant, &w, i, text);
        }
    }

    /* All steps at once, on the requested number of threads: the same bits. */
    cw_text *again = some_texts(&w, numbers, seed, 0);
    if (cw_write(variant, &model, w.threads, again, w.texts, STEPS)) exit(2);
    for (int i = 0; i < w.texts; i++) {
        const cw_text *a = texts + i, *b = again + i;
        int same = a->length == b->length && a->at == b->at && a->sampler.drawn == b->sampler.drawn;
        same = same && !memcmp(a->ids, b->ids, (size_t)a->length * sizeof *a->ids);
        same = same && !memcmp(a->state, b->state, numbers * 4);
        same = same && (!b->logits || !memcmp(a->logits, b->logits, (size_t)V * 8));
        same = same && (!b->scores || !memcmp(a->scores, b->scores, (size_t)a->length * 8));
        const size_t alternatives = (size_t)a->length * a->likeliest_count;
        same = same && (!b->likeliest || !memcmp(a->likeliest, b->likeliest, alternatives * sizeof *a->likeliest));
        same = same && (!b->likeliest || !memcmp(a->likeliest_scores, b->likeliest_scores, alternatives * 8));
        writing_differs("text at once", &w, variant, i, !same, 0);
    }

    /* Each text alone, as far as the others: the same bits. */
    cw_text *alone = some_texts(&w, numbers, seed, 1);
    for (int i = 0; i < w.texts && i < 3; i++) {
        if (cw_write(variant, &model, 1, alone + i, 1, STEPS)) exit(2);
        int same = !memcmp(texts[i].ids, alone[i].ids, (size_t)texts[i].length * sizeof *texts[i].ids);
        same = same && !memcmp(texts[i].state, alone[i].state, numbers * 4);
        same = same && !memcmp(texts[i].logits, alone[i].logits, (size_t)V * 8);
        writing_differs("text alone", &w, variant, i, !same, 0);
    }

    free_texts(&w, texts);
    free_texts(&w, again);
    free_texts(&w, alone);
    for (int layer = 0; layer < w.layers; layer++) {
        free_matrix(net.recurrent[layer]);
        free_matrix(net.inputs[layer]);
        free_packed(recurrent[layer]);
        free_packed(inputs[layer]);
    }
    free_matrix(net.head);
    free_packed(head);
    void *all[] = {net.table, net.votes, net.scale, votes, scale, table, states, logits, found};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static int check_all_writing(int variant) {
    const int texts[] = {1, 3, 9, 37}, units[] = {16, 48, 112}, vocabularies[] = {2, 37, 66};
    int count = 0;
    for (int storage = CW_F32; storage <= CW_Q8; storage++)
        for (int cell = 0; cell <= CW_IGRU; cell++)
            for (int layers = 1; layers <= 2; layers++)
                for (int t = 0; t < 4; t++)
                    for (int threads = 1; threads <= 3; threads++, count++)
                        check_writing(variant, (writing){storage, cell, layers, units[(t + threads) % 3],
                                                         vocabularies[(t + threads + layers) % 3], texts[t], threads,
                                                         (t + threads + storage) % 2 ? 0 : 1 + 3 * t + threads,
                                                         2 + (count / 2 + storage) % 7,
                                                         (cell + layers + t / 2 + threads) % 2});
    return count;
}

/* Two threads go half of the way to equal times each time, and no thread loses its last piece. */
static void check_shares(void) {
    cw_shares shares;
    cw_share_equally(&shares, 2);
    const cw_spent slow_first[] = {{.ticks = 300}, {.ticks = 100}}, alike[] = {{.ticks = 109}, {.ticks = 100}};
    cw_adapt_shares(&shares, slow_first, 64);
    int right = shares.ends[1] == CW_WHOLE * 3 / 8 && shares.ends[2] == CW_WHOLE;
    cw_adapt_shares(&shares, alike, 64);
    right = right && shares.ends[1] == CW_WHOLE * 3 / 8 && cw_share(&shares, 64, 1) == 24;
    for (int i = 0; i < 99; i++) cw_adapt_shares(&shares, slow_first, 8);
    right = right && cw_share(&shares, 8, 1) == 1 && cw_share(&shares, 8, 2) == 8;
    const cw_spent unknown[] = {{.ticks = 0}, {.ticks = 100}};
    const int32_t before = shares.ends[1];
    cw_adapt_shares(&shares, unknown, 64);
    cw_adapt_shares(&shares, alike, 3); /* too few pieces to give any away */
    if (right && shares.ends[1] == before) return;
    printf("the shares of threads are wrong\n");
    exit(1);
}

/* Whether this program checks a variant: with trapped tiles, `amx` alone; and with the thread sanitizer, which takes minutes
 * for each, none that shares with others what threads do. */
static int is_wanted(const char *name) {
#if defined(CW_TRAPPED_TILES)
    return !strcmp(name, "amx");
#elif defined(__SANITIZE_THREAD__)
    return strcmp(name, "avx2vnni") && strcmp(name, "avx512") && strcmp(name, "avx512vnni");
#else
    return name != NULL;
#endif
}

int main(void) {
    const int sizes[][3] = {{1, 1, 16}, {3, 9, 48}, {5, 3, 16}, {2, 70, 32}, {7, 8, 112}, {3, 33, 80}, {4, 32, 64}, {2, 130, 32}};
    for (int i = 0; i < 1026; i++) tanh_table[i] = (int16_t)fmin(rint(tanh(i / 128.0) * 32768), 32767);
    check_shares();
    printf("draws: %d agree\n", check_draws());
    for (int variant = 0; cw_variant_name(variant); variant++) {
        if (!(cw_variants() >> variant & 1)) continue;
        if (!is_wanted(cw_variant_name(variant))) continue;
        worst = 0;
        int count = 0;
        for (int cell = 0; cell <= CW_IGRU; cell++)
            for (int bf16 = 0; bf16 < 2; bf16++)
                for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                    for (int threads = 1; threads <= (sizes[i][1] < 32 ? 3 : 4); threads++)
                        for (int flags = 0; flags < 6; flags++, count++)
                            check(variant, (example){cell, bf16, sizes[i][0], sizes[i][1], sizes[i][2], 5, threads,
                                                     flags & 1, flags >> 1 > 0, flags >> 2});
        for (int bf16 = 0; bf16 < 2; bf16++)
            for (int threads = 1; threads <= 3; threads++, count += 13) {
                check_outer(variant, bf16, threads, 1, 1, 16);
                check_outer(variant, bf16, threads, 5, 67, 48);
                check_outer(variant, bf16, threads, 2049, 24, 80);
                check_outer(variant, bf16, threads, 70, 66, 64);
                check_outer(variant, bf16, threads, 70, 40, 128);
                check_outer(variant, bf16, threads, 400, 410, 528);  /* several blocks with tiles */
                check_outer(variant, bf16, threads, 2049, 5, 4112); /* b in two pieces with tiles */
                check_loss(variant, bf16, threads, 1, 2, 0);
                check_loss(variant, bf16, threads, 7, 66, 0);
                check_loss(variant, bf16, threads, 33, 160, 0);
                const uint64_t before = random_state;
                check_loss(variant, bf16, threads, 1, 17, 3);
                check_loss(variant, bf16, threads, 7, 66, 3);
                check_loss(variant, bf16, threads, 33, 160, 2);
                random_state = before;
            }
        const uint64_t before = random_state;
        for (int bf16 = 0; bf16 <= 1; bf16++) count += check_heads(variant, bf16) + check_linears(variant, bf16);
        count += check_networks(variant);
        random_state = before;
        count += check_all_adam(variant);
        printf("%s: %d examples agree, the furthest to %.1g\n", cw_variant_name(variant), count, worst);
        worst = 0;
        count = check_all_writing(variant);
        printf("%s: %d examples of writing agree, the furthest to %.1g\n", cw_variant_name(variant), count, worst);
    }
    return 0;
}
