/* The recurrent layers for one storage type, on the products of products.h.
 *
 * Each thread owns a range of units. At each step it multiplies the whole state by its own columns of the weights,
 * computes its own gates and writes its own part of the next state; a barrier ends the step.
 */
/* --- Packing: blocks of LANES units (vectors of them side by side), then k, then DEPTH. --- */

#define AT_ONCE 16 /* values of k; divides the number of units */

static void NAME(pack)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_packing *job = argument;
    (void)barrier;
    const int units = job->units, gates = cw_gate_count(job->cell);
    const float *weights = job->weights;
    elem *packed = job->packed;
    const int blocks = units / LANES;
    const int first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    if (!job->backward) { /* out[block][k][gate][lane][depth] = weights[gate * units + unit][k] */
        for (int block = first; block < last; block++)
            for (int gate = 0; gate < gates; gate++) {
                const float *rows = weights + ((size_t)gate * units + (size_t)block * LANES) * units;
                elem *out = packed + (size_t)block * units * gates * LANES + (size_t)gate * LANES * DEPTH;
                for (int k = 0; k < units; k += AT_ONCE) {
                    /* Read and narrow whole pieces of rows; each step of k then takes one value from every row. */
                    elem narrow[LANES][AT_ONCE];
                    for (int lane = 0; lane < LANES; lane++)
                        for (int i = 0; i < AT_ONCE; i += LANES)
                            NAME(put)(narrow[lane] + i, load(rows + (size_t)lane * units + k + i));
                    for (int i = 0; i < AT_ONCE; i += DEPTH, out += (size_t)gates * LANES * DEPTH)
                        for (int lane = 0; lane < LANES; lane++)
                            memcpy(out + lane * DEPTH, narrow[lane] + i, DEPTH * sizeof(elem));
                }
            }
        return;
    }
    /* out[block][k][lane][depth] = weights[row k in gradient order][unit]; a GRU's gradients start with n. */
    for (int block = first; block < last; block++) {
        elem *out = packed + (size_t)block * units * gates * LANES;
        for (int slot = 0; slot < gates; slot++) {
            int gate = job->cell == CW_GRU ? (slot + 2) % 3 : slot;
            const float *rows = weights + (size_t)gate * units * units + (size_t)block * LANES;
            for (int k = 0; k < units; k += DEPTH, out += LANES * DEPTH)
            {
                elem narrow[DEPTH][LANES];
                for (int d = 0; d < DEPTH; d++) NAME(put)(narrow[d], load(rows + (size_t)(k + d) * units));
                for (int lane = 0; lane < LANES; lane++)
                    for (int d = 0; d < DEPTH; d++) out[lane * DEPTH + d] = narrow[d][lane];
            }
        }
    }
}

/* Prefetch what the other threads have just written: all at once, it arrives many times faster than one cache line at a
 * time, on demand. `width` values of each row, `stride` apart. */
INLINE void NAME(fetch)(const elem *rows, int batch, size_t stride, size_t width, int threads) {
    if (threads == 1) return;
    for (int b = 0; b < batch; b++)
        for (size_t i = 0; i < width; i += 64 / sizeof(elem)) __builtin_prefetch(rows + b * stride + i, 0, 2);
}

/* --- Forward --- */

/* The input of gate `gate` for LANES units from `unit`, in row `row` of the sequence. */
INLINE vec NAME(input)(const cw_layer *layer, int gates, size_t row, int gate, int unit) {
    size_t width = (size_t)gates * layer->units, at = (size_t)gate * layer->units + unit;
    if (layer->table) return load(layer->table + layer->ids[row] * width + at);
    return NAME(get)((const elem *)layer->inputs + row * width + at);
}
INLINE vec NAME(bias)(const cw_layer *layer, int gate, int unit) {
    return layer->bias ? load(layer->bias + (size_t)gate * layer->units + unit) : (vec){0};
}

/* The gates of LANES units in one row: c holds the recurrent products, a vector for each gate. Returns h'. */
INLINE vec NAME(gru_gates)(const cw_layer *layer, size_t row, int b, int unit, const float *c) {
    const size_t units = layer->units;
    vec r = sigmoid(NAME(input)(layer, 3, row, 0, unit) + load(c) + NAME(bias)(layer, 0, unit));
    vec z = sigmoid(NAME(input)(layer, 3, row, 1, unit) + load(c + LANES) + NAME(bias)(layer, 1, unit));
    vec u = load(c + 2 * LANES) + NAME(bias)(layer, 2, unit);
    vec n = hyperbolic_tangent(NAME(input)(layer, 3, row, 2, unit) + r * u);
    elem *saved = (elem *)layer->gates + row * 4 * units + unit;
    NAME(put)(saved, r);
    NAME(put)(saved + units, z);
    NAME(put)(saved + 2 * units, n);
    NAME(put)(saved + 3 * units, u);
    vec before = load(layer->state_h + b * units + unit);
    return n + z * (before - n);
}
INLINE vec NAME(lstm_gates)(const cw_layer *layer, size_t row, int b, int unit, const float *c) {
    const size_t units = layer->units;
    vec i = sigmoid(NAME(input)(layer, 4, row, 0, unit) + load(c) + NAME(bias)(layer, 0, unit));
    vec f = sigmoid(NAME(input)(layer, 4, row, 1, unit) + load(c + LANES) + NAME(bias)(layer, 1, unit));
    vec g = hyperbolic_tangent(NAME(input)(layer, 4, row, 2, unit) + load(c + 2 * LANES) + NAME(bias)(layer, 2, unit));
    vec o = sigmoid(NAME(input)(layer, 4, row, 3, unit) + load(c + 3 * LANES) + NAME(bias)(layer, 3, unit));
    elem *saved = (elem *)layer->gates + row * 4 * units + unit;
    NAME(put)(saved, i);
    NAME(put)(saved + units, f);
    NAME(put)(saved + 2 * units, g);
    NAME(put)(saved + 3 * units, o);
    float *kept = layer->state_c + b * units + unit;
    vec cell = f * load(kept) + i * g;
    store(kept, cell);
    NAME(put)((elem *)layer->cells + (row + layer->batch) * units + unit, cell);
    return o * hyperbolic_tangent(cell);
}
INLINE vec NAME(rnn_gates)(const cw_layer *layer, size_t row, int b, int unit, const float *c) {
    (void)b;
    return hyperbolic_tangent(NAME(input)(layer, 1, row, 0, unit) + load(c) + NAME(bias)(layer, 0, unit));
}

/* Store the new state of LANES units in one row: for the next product, the caller, and the gates of the next step. */
INLINE void NAME(keep)(const cw_layer *layer, size_t row, int b, int unit, vec h) {
    const size_t units = layer->units, at = (row + layer->batch) * units + unit;
    store(layer->state_h + b * units + unit, h);
    NAME(put)((elem *)layer->hidden + at, h);
    if (layer->mask) NAME(put)((elem *)layer->masked + at, h * load(layer->mask + b * units + unit));
}

/* Convert the initial state to storage, for the units from `first` to `last`. */
static void NAME(begin_state)(const cw_layer *layer, int first, int last) {
    const size_t units = layer->units;
    for (size_t b = 0; b < (size_t)layer->batch; b++)
        for (size_t unit = first; unit < (size_t)last; unit += LANES) {
            vec h = load(layer->state_h + b * units + unit);
            NAME(put)((elem *)layer->hidden + b * units + unit, h);
            if (layer->mask)
                NAME(put)((elem *)layer->masked + b * units + unit, h * load(layer->mask + b * units + unit));
            if (layer->cell == CW_LSTM)
                NAME(put)((elem *)layer->cells + b * units + unit, load(layer->state_c + b * units + unit));
        }
}

static void NAME(forward)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_layer *layer = argument;
    const int units = layer->units, batch = layer->batch, gates = cw_gate_count(layer->cell);
    const int blocks = units / LANES, first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    const int most_rows = gates == 4 ? ROWS_OF_4 : ROWS;
    const elem *states = layer->mask ? layer->masked : layer->hidden;
    float c[ROWS * 4 * LANES] __attribute__((aligned(64)));
    NAME(begin_state)(layer, first * LANES, last * LANES);
    for (int t = 0; t < layer->steps; t++) {
        cw_meet(barrier); /* every part of the state before this step is written */
        const elem *state = states + (size_t)t * batch * units;
        NAME(fetch)(state, batch, units, units, threads);
        for (int block = first; block < last; block++) {
            const elem *w = (const elem *)layer->packed + (size_t)block * units * gates * LANES;
            const int unit = block * LANES;
            for (int b = 0, rows; b < batch; b += rows) {
                rows = share(batch - b, most_rows);
                const NAME(product) product = {
                    .a = state + (size_t)b * units, .a_row = units, .a_step = DEPTH, .w = w,
                    .w_step = (size_t)gates * LANES * DEPTH, .w_vector = LANES * DEPTH, .c = c,
                    .c_row = (size_t)gates * LANES, .k = units};
                NAME(multiply)(rows, gates, &product);
                for (int r = 0; r < rows; r++) {
                    const size_t row = (size_t)t * batch + b + r;
                    const float *sums = c + r * gates * LANES;
                    vec h = layer->cell == CW_GRU    ? NAME(gru_gates)(layer, row, b + r, unit, sums)
                            : layer->cell == CW_LSTM ? NAME(lstm_gates)(layer, row, b + r, unit, sums)
                                                     : NAME(rnn_gates)(layer, row, b + r, unit, sums);
                    NAME(keep)(layer, row, b + r, unit, h);
                }
            }
        }
    }
}

/* --- Backward --- */

INLINE void NAME(add_to_table)(const cw_layer *layer, int gates, size_t row, int gate, int unit, vec gradient) {
    if (!layer->d_table) return;
    float *at = layer->d_table + layer->ids[row] * gates * layer->units + (size_t)gate * layer->units + unit;
    store(at, load(at) + gradient);
}
INLINE void NAME(add_to_bias)(const cw_layer *layer, int gate, int unit, vec gradient) {
    if (!layer->d_bias) return;
    float *at = layer->d_bias + (size_t)gate * layer->units + unit;
    store(at, load(at) + gradient);
}

/* Gradients of the gates of LANES units in one row, from d_h at the output of the step. The part of the gradient that
 * reaches the previous state directly (not through the recurrent product) remains in d_h (and d_c). */
INLINE void NAME(gru_gradients)(const cw_layer *layer, size_t row, int b, int unit, vec d_h) {
    const size_t units = layer->units;
    elem *saved = (elem *)layer->gates + row * 4 * units + unit;
    vec r = NAME(get)(saved), z = NAME(get)(saved + units);
    vec n = NAME(get)(saved + 2 * units), u = NAME(get)(saved + 3 * units);
    vec before = NAME(get)((const elem *)layer->hidden + row * units + unit);
    vec d_n = d_h * (1.0f - z) * (1.0f - n * n);
    vec d_z = d_h * (before - n) * z * (1.0f - z);
    vec d_r = d_n * u * r * (1.0f - r);
    vec d_u = d_n * r;
    NAME(put)(saved, d_u);
    NAME(put)(saved + units, d_r);
    NAME(put)(saved + 2 * units, d_z);
    NAME(put)(saved + 3 * units, d_n);
    NAME(add_to_table)(layer, 3, row, 0, unit, d_r);
    NAME(add_to_table)(layer, 3, row, 1, unit, d_z);
    NAME(add_to_table)(layer, 3, row, 2, unit, d_n);
    NAME(add_to_bias)(layer, 0, unit, d_r);
    NAME(add_to_bias)(layer, 1, unit, d_z);
    NAME(add_to_bias)(layer, 2, unit, d_u);
    store(layer->d_h + b * units + unit, d_h * z);
}
INLINE void NAME(lstm_gradients)(const cw_layer *layer, size_t row, int b, int unit, vec d_h) {
    const size_t units = layer->units;
    elem *saved = (elem *)layer->gates + row * 4 * units + unit;
    vec i = NAME(get)(saved), f = NAME(get)(saved + units);
    vec g = NAME(get)(saved + 2 * units), o = NAME(get)(saved + 3 * units);
    vec before = NAME(get)((const elem *)layer->cells + row * units + unit);
    vec tanh_c = hyperbolic_tangent(NAME(get)((const elem *)layer->cells + (row + layer->batch) * units + unit));
    float *kept = layer->d_c + b * units + unit;
    vec d_c = load(kept) + d_h * o * (1.0f - tanh_c * tanh_c);
    vec d[4] = {d_c * g * i * (1.0f - i), d_c * before * f * (1.0f - f), d_c * i * (1.0f - g * g),
                d_h * tanh_c * o * (1.0f - o)};
    store(kept, d_c * f);
    store(layer->d_h + b * units + unit, (vec){0});
    for (int gate = 0; gate < 4; gate++) {
        NAME(put)(saved + gate * units, d[gate]);
        NAME(add_to_table)(layer, 4, row, gate, unit, d[gate]);
        NAME(add_to_bias)(layer, gate, unit, d[gate]);
    }
}
INLINE void NAME(rnn_gradients)(const cw_layer *layer, size_t row, int b, int unit, vec d_h) {
    const size_t units = layer->units;
    vec after = NAME(get)((const elem *)layer->hidden + (row + layer->batch) * units + unit);
    vec d = d_h * (1.0f - after * after);
    NAME(put)((elem *)layer->gates + row * units + unit, d);
    NAME(add_to_table)(layer, 1, row, 0, unit, d);
    NAME(add_to_bias)(layer, 0, unit, d);
    store(layer->d_h + b * units + unit, (vec){0});
}

/* d_h of the previous state += gradients (rows, G * H) * weights, for `vectors` blocks of units from `block`. */
#define PANEL 64
static void NAME(through_product)(const cw_layer *layer, int gates, const elem *gradients, int block, int vectors,
                                  float *c) {
    const size_t units = layer->units, stride = (size_t)cw_slots(layer->cell) * units;
    for (int panel = 0; panel < layer->batch; panel += PANEL) {
        const int end = panel + PANEL < layer->batch ? panel + PANEL : layer->batch;
        for (int gate = 0; gate < gates; gate++) { /* one gate at a time, so that the rows stay in the cache */
            const elem *w = (const elem *)layer->packed + ((size_t)block * gates + gate) * units * LANES;
            for (int b = panel, rows; b < end; b += rows) {
                rows = share(end - b, ROWS);
                const NAME(product) product = {
                    .a = gradients + b * stride + gate * units, .a_row = stride, .a_step = DEPTH, .w = w,
                    .w_step = LANES * DEPTH, .w_vector = units * gates * LANES,
                    .c = c + (size_t)(b - panel) * vectors * LANES, .c_row = (size_t)vectors * LANES,
                    .k = layer->units, .adding = gate > 0};
                NAME(multiply)(rows, vectors, &product);
            }
        }
        for (int b = panel; b < end; b++)
            for (int v = 0; v < vectors; v++) {
                const size_t at = b * units + (size_t)(block + v) * LANES;
                vec through = load(c + ((size_t)(b - panel) * vectors + v) * LANES);
                if (layer->mask) through *= load(layer->mask + at);
                store(layer->d_h + at, load(layer->d_h + at) + through);
            }
    }
}

static void NAME(backward)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_layer *layer = argument;
    const size_t units = layer->units;
    const int batch = layer->batch, gates = cw_gate_count(layer->cell);
    const int blocks = layer->units / LANES;
    const int first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    float c[PANEL * 3 * LANES] __attribute__((aligned(64)));
    for (int t = layer->steps - 1; t >= 0; t--) {
        for (int b = 0; b < batch; b++) {
            const size_t row = (size_t)t * batch + b;
            for (int unit = first * LANES; unit < last * LANES; unit += LANES) {
                vec d_h = load(layer->d_h + b * units + unit) +
                          NAME(get)((const elem *)layer->d_outputs + row * units + unit);
                if (layer->cell == CW_GRU) NAME(gru_gradients)(layer, row, b, unit, d_h);
                else if (layer->cell == CW_LSTM) NAME(lstm_gradients)(layer, row, b, unit, d_h);
                else NAME(rnn_gradients)(layer, row, b, unit, d_h);
            }
        }
        cw_meet(barrier); /* every part of this step's gradients is written */
        const size_t stride = cw_slots(layer->cell) * units;
        const elem *gradients = (const elem *)layer->gates + (size_t)t * batch * stride;
        NAME(fetch)(gradients, batch, stride, gates * units, threads);
        for (int block = first, vectors; block < last; block += vectors) {
            vectors = share(last - block, 3);
            NAME(through_product)(layer, gates, gradients, block, vectors, c);
        }
    }
}
