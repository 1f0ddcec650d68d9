/* The kernels against the plain equations in double precision, values and gradients, for every variant that this
 * machine runs. A program of its own, so that sanitizers and emulators of other processors can run it without Python.
 *
 * Prints a line for each variant and exits with 1 when anything is further away than its arithmetic allows.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "charwright_kernels.h"

typedef struct {
    int cell, bf16, steps, batch, units, tokens, threads, masked, by_table;
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
    double *hidden, *cells, *active, *u, *d_u, *d_table, *d_bias, *d_h, *d_c;
} reference;

static double sigma(double x) { return 1 / (1 + exp(-x)); }

static void reference_forward(const example *e, const float *input, const float *weights, const float *bias,
                              const float *mask, reference *ref) {
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
                        p[g] += (double)weights[((size_t)g * H + j) * H + k] * h[k] * (mask ? mask[b * H + k] : 1);
                }
                size_t at = ((size_t)t * B + b) * H + j, next = at + (size_t)B * H;
                double *a = ref->active + at * 4;
                if (e->cell == CW_GRU) {
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
                               const float *d_outputs, reference *ref) {
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
                if (e->cell == CW_GRU) {
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
                    ref->d_bias[g * H + j] += at_product[g];
                }
            }
            for (int i = 0; i < G * H; i++)
                for (int k = 0; k < H; k++) {
                    double masked = mask ? mask[b * H + k] : 1;
                    d_h[k] += through[i] * weights[(size_t)i * H + k] * masked;
                    ref->d_u[(size_t)i * H + k] += through[i] * h[k] * masked;
                }
        }
    free(through);
}

/* --- One example, both ways --- */

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
        printf("%s: %s is off by %.2g: cell %d bf16 %d T %d B %d H %d threads %d mask %d table %d\n", variant, what,
               relative, e->cell, e->bf16, e->steps, e->batch, e->units, e->threads, e->masked, e->by_table);
        exit(1);
    }
}

static void check(int variant, example e) {
    const int H = e.units, G = cw_gate_count(e.cell), B = e.batch, T = e.steps;
    const size_t rows = (size_t)T * B, width = (size_t)G * H, size = e.bf16 ? 2 : 4;
    const char *name = cw_variant_name(variant);
    const int tokens = e.by_table ? e.tokens : (int)rows;
    float *table = noises(tokens * width, 1), *weights = noises(width * H, 1.5 / sqrt(H)), *d_out = noises(rows * H, 1);
    float *bias = e.cell == CW_GRU ? noises(width, 0.5) : NULL, *mask = e.masked ? noises((size_t)B * H, 1.5) : NULL;
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
                     room(tokens * width, 8), room(width, 8), room((size_t)B * H, 8), room((size_t)B * H, 8)};
    for (int i = 0; i < B * H; i++) {
        ref.hidden[i] = h[i];
        ref.cells[i] = c[i];
        ref.d_h[i] = d_h[i];
        ref.d_c[i] = d_c[i];
    }
    reference_forward(&e, spread, weights, bias, mask, &ref);
    reference_backward(&e, ids, weights, mask, d_out, &ref);

    void *packed = room(cw_packed_bytes(variant, e.cell, H, e.bf16), 1);
    float *d_table = room(tokens * width, 4), *d_bias = room(width, 4);
    const int slots = cw_slots(e.cell);
    cw_layer layer = {.cell = e.cell, .bf16 = e.bf16, .steps = T, .batch = B, .units = H, .threads = e.threads,
                      .table = e.by_table ? table : NULL, .ids = e.by_table ? ids : NULL,
                      .inputs = e.by_table ? NULL : inputs, .bias = bias, .mask = mask, .packed = packed,
                      .hidden = room((rows + B) * H, size), .masked = mask ? room((rows + B) * H, size) : NULL,
                      .gates = room(rows * slots * H, size), .cells = room((rows + B) * H, size), .state_h = h,
                      .state_c = c, .d_outputs = stored_d_out, .d_h = d_h, .d_c = d_c,
                      .d_table = e.by_table ? d_table : NULL, .d_bias = d_bias};
    cw_pack(variant, e.cell, H, e.bf16, 0, e.threads, weights, packed);
    cw_forward(variant, &layer);
    far_apart("hidden", &e, name, layer.hidden, e.bf16, ref.hidden, (rows + B) * H);
    far_apart("last h", &e, name, h, 0, ref.hidden + rows * H, (size_t)B * H);
    if (e.cell == CW_LSTM) far_apart("last c", &e, name, c, 0, ref.cells + rows * H, (size_t)B * H);
    cw_pack(variant, e.cell, H, e.bf16, 1, e.threads, weights, packed);
    cw_backward(variant, &layer);
    far_apart("d h", &e, name, d_h, 0, ref.d_h, (size_t)B * H);
    if (e.cell == CW_LSTM) far_apart("d c", &e, name, d_c, 0, ref.d_c, (size_t)B * H);
    if (e.by_table) far_apart("d table", &e, name, d_table, 0, ref.d_table, tokens * width);
    far_apart("d bias", &e, name, d_bias, 0, ref.d_bias, width);

    /* The gradient of the weights, made of what the kernels left: a GRU's slots begin with gate n. */
    float *d_u = room(width * H, sizeof *d_u);
    void *scratch = room(cw_outer_bytes(e.bf16, (int)rows, (int)width, H), 1);
    cw_outer(variant, e.bf16, e.threads, (int)rows, (int)width, H, e.cell == CW_GRU ? 2 * H : 0, layer.gates,
             (size_t)slots * H, mask ? layer.masked : layer.hidden, H, scratch, d_u);
    far_apart("d weights", &e, name, d_u, 0, ref.d_u, width * H);

    void *all[] = {table, weights, d_out, bias, mask, h, c, d_h, d_c, ids, spread, inputs, stored_d_out, ref.hidden,
                   ref.cells, ref.active, ref.d_u, ref.d_table, ref.d_bias, ref.d_h, ref.d_c, packed, d_table, d_bias,
                   layer.hidden, layer.masked, layer.gates, layer.cells, d_u, scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Products of odd shapes, deeper than one slice; and the loss of vocabularies that fit no vector. */
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
    void *scratch = room(cw_outer_bytes(bf16, n, m, columns), 1);
    cw_outer(variant, bf16, threads, n, m, columns, 0, a, a_row, b, columns, scratch, c);
    far_apart("outer product", &e, cw_variant_name(variant), c, 0, expected, (size_t)m * columns);
    void *all[] = {a, b, expected, c, scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void check_loss(int variant, int bf16, int threads, int rows, int vocabulary) {
    const example e = {.bf16 = bf16, .threads = threads, .steps = rows, .units = vocabulary};
    const size_t count = (size_t)rows * vocabulary;
    void *logits = room(count, bf16 ? 2 : 4), *scratch = room((size_t)threads * (vocabulary + 16), 4);
    float *bias = noises(vocabulary, 1), *losses = room(rows, 4), *d_bias = room(vocabulary, 4);
    int64_t *targets = room(rows, sizeof *targets);
    double *expected = room(count, 8), *expected_losses = room(rows, 8), *expected_bias = room(vocabulary, 8);
    for (size_t i = 0; i < count; i++) keep(logits, bf16, i, (float)(noise() * 4));
    for (int n = 0; n < rows; n++) {
        targets[n] = (n * 5 + 3) % vocabulary;
        double most = -1e300, sum = 0;
        for (int v = 0; v < vocabulary; v++) most = fmax(most, stored(logits, bf16, (size_t)n * vocabulary + v) + bias[v]);
        for (int v = 0; v < vocabulary; v++) sum += exp(stored(logits, bf16, (size_t)n * vocabulary + v) + bias[v] - most);
        for (int v = 0; v < vocabulary; v++) {
            const size_t at = (size_t)n * vocabulary + v;
            const double score = stored(logits, bf16, at) + bias[v] - most - log(sum);
            if (v == targets[n]) expected_losses[n] = -score;
            expected[at] = (exp(score) - (v == targets[n])) / 7;
            expected_bias[v] += expected[at];
        }
    }
    cw_cross_entropy(variant, bf16, threads, rows, vocabulary, logits, bias, targets, 1 / 7.0f, losses, d_bias, scratch);
    far_apart("loss", &e, cw_variant_name(variant), losses, 0, expected_losses, rows);
    far_apart("d logits", &e, cw_variant_name(variant), logits, bf16, expected, count);
    far_apart("d bias of the head", &e, cw_variant_name(variant), d_bias, 0, expected_bias, vocabulary);
    void *all[] = {logits, scratch, bias, losses, d_bias, targets, expected, expected_losses, expected_bias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

int main(void) {
    const int sizes[][3] = {{1, 1, 16}, {3, 9, 48}, {5, 3, 16}, {2, 70, 32}, {7, 8, 112}};
    for (int variant = 0; cw_variant_name(variant); variant++) {
        if (!(cw_variants() >> variant & 1)) continue;
        worst = 0;
        int count = 0;
        for (int cell = 0; cell < 3; cell++)
            for (int bf16 = 0; bf16 < 2; bf16++)
                for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                    for (int threads = 1; threads <= 3; threads++)
                        for (int flags = 0; flags < 4; flags++, count++)
                            check(variant, (example){cell, bf16, sizes[i][0], sizes[i][1], sizes[i][2], 5, threads,
                                                     flags & 1, flags >> 1});
        for (int bf16 = 0; bf16 < 2; bf16++)
            for (int threads = 1; threads <= 3; threads++, count += 6) {
                check_outer(variant, bf16, threads, 1, 1, 16);
                check_outer(variant, bf16, threads, 5, 67, 48);
                check_outer(variant, bf16, threads, 2049, 24, 80);
                check_loss(variant, bf16, threads, 1, 2);
                check_loss(variant, bf16, threads, 7, 66);
                check_loss(variant, bf16, threads, 33, 160);
            }
        printf("%s: %d examples agree, the furthest to %.1g\n", cw_variant_name(variant), count, worst);
    }
    return 0;
}
