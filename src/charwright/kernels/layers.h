/* The recurrent layers for one storage type, on the products of products.h or tiles.h.
 *
 * Each thread owns a range of units. At each step it multiplies the whole state by its own columns of the weights,
 * computes its own gates and writes its own part of the next state; a barrier ends the step.
 *
 * Units are in blocks of 16. What the gates of a block use together lies together, in arrays that start with the number
 * of the block: rows of a batch that are a power of two apart would compete for the same few lines of a cache.
 */
#define BLOCK 16
#define VECTORS (BLOCK / LANES)

/* The operand of the recurrent product: rows of the batch, `size` values of k each, in the order of the product. */
#if TILED
#define MOST_ROWS (2 * TILE_ROWS)
#define MULTIPLE 32 /* values of k in a tile */
#define SPACING 0
#else
#define MOST_ROWS ROWS
#define MULTIPLE DEPTH
#define SPACING (64 / sizeof(elem)) /* between rows */
#endif
INLINE int NAME(padded)(int units) { return (units + MULTIPLE - 1) / MULTIPLE * MULTIPLE; }
INLINE elem *NAME(operand_at)(elem *operand, size_t size, int b, int k) {
#if TILED
    return operand + ((b / TILE_ROWS * (size / MULTIPLE) + k / MULTIPLE) * TILE_ROWS + b % TILE_ROWS) * MULTIPLE +
           k % MULTIPLE;
#else
    return operand + b * size + k;
#endif
}
/* The rows of an operand for a batch. */
INLINE size_t NAME(filled)(int batch) { return TILED ? ((size_t)batch + 15) / 16 * 16 : (size_t)batch; }
/* The number of rows in the next product, of `left`, for `vectors` columns side by side. */
INLINE int NAME(rows_of)(int left, int vectors) {
#if TILED
    (void)vectors;
    return left < MOST_ROWS ? left : MOST_ROWS;
#else
    return share(left, vectors == 4 ? ROWS_OF_4 : ROWS);
#endif
}
/* c (rows, vectors) = [c +] operand (rows from b, `k` of `size` values) * w. */
INLINE void NAME(recurrent_product)(const elem *operand, size_t size, int b, int rows, int k, const elem *w,
                                    size_t w_step, size_t w_vector, int vectors, float *c, size_t c_row, int adding) {
#if TILED
    const size_t block = size * TILE_ROWS * sizeof(elem), tile = TILE_ROWS * TILE_BYTES;
    for (int v = 0, some; v < vectors; v += some) {
        some = vectors == 4 ? 2 : vectors; /* eight tiles are too few for 2 blocks of 4 */
        const tile_product product = {
            .a = (const char *)operand + b / TILE_ROWS * block, .a_block = block, .a_step = tile, .a_row = TILE_BYTES,
            .w = w + v * w_vector, .w_vector = w_vector * sizeof(elem), .w_row = w_step * sizeof(elem),
            .w_step = TILE_ROWS * w_step * sizeof(elem), .c = c + v * LANES, .c_row = c_row * sizeof(float),
            .steps = k / MULTIPLE, .adding = adding};
        multiply_tiles_bf16(rows > TILE_ROWS ? 2 : 1, some, &product);
    }
#else
    const NAME(product) product = {.a = operand + b * size, .a_row = size, .a_step = DEPTH, .w = w, .w_step = w_step,
                                   .w_vector = w_vector, .c = c, .c_row = c_row, .k = k, .adding = adding};
    NAME(multiply)(rows, vectors, &product);
#endif
}

/* --- Packing: blocks of LANES units (vectors of them side by side), then k, then DEPTH. --- */

#define AT_ONCE 16 /* values of k; divides the number of units */

static void NAME(pack)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_packing *job = argument;
    (void)barrier;
    const int units = job->units, gates = cw_gate_count(job->cell), depth = NAME(padded)(units);
    const float *weights = job->weights;
    elem *packed = job->packed;
    const int blocks = units / LANES;
    const int first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    if (!job->backward) { /* out[block][k][gate][lane][depth] = weights[gate * units + unit][k] */
        for (int block = first; block < last; block++)
            for (int gate = 0; gate < gates; gate++) {
                const float *rows = weights + ((size_t)gate * units + (size_t)block * LANES) * units;
                elem *out = packed + (size_t)block * depth * gates * LANES + (size_t)gate * LANES * DEPTH;
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
                for (int k = units; k < depth; k += DEPTH, out += (size_t)gates * LANES * DEPTH)
                    memset(out, 0, LANES * DEPTH * sizeof(elem));
            }
        return;
    }
    /* out[block][k][lane][depth] = weights[row k in gradient order][unit]; a GRU's gradients start with n. */
    for (int block = first; block < last; block++) {
        elem *out = packed + (size_t)block * depth * gates * LANES;
        for (int slot = 0; slot < gates; slot++) {
            int gate = job->cell == CW_GRU ? (slot + 2) % 3 : slot;
            const float *rows = weights + (size_t)gate * units * units + (size_t)block * LANES;
            for (int k = 0; k < units; k += DEPTH, out += LANES * DEPTH) {
                elem narrow[DEPTH][LANES];
                for (int d = 0; d < DEPTH; d++) NAME(put)(narrow[d], load(rows + (size_t)(k + d) * units));
                for (int lane = 0; lane < LANES; lane++)
                    for (int d = 0; d < DEPTH; d++) out[lane * DEPTH + d] = narrow[d][lane];
            }
            memset(out, 0, (size_t)(depth - units) * LANES * sizeof(elem));
            out += (size_t)(depth - units) * LANES;
        }
    }
}

/* --- What forward and backward share --- */

/* Copy between an array (B, H) and blocks (B, 16), for the units of blocks `first` to `last`. */
static void NAME(to_blocks)(float *blocks, const float *rows, int batch, int units, int first, int last) {
    for (int block = first; block < last; block++)
        for (int b = 0; b < batch; b++)
            memcpy(blocks + ((size_t)block * batch + b) * BLOCK, rows + (size_t)b * units + block * BLOCK,
                   BLOCK * sizeof(float));
}
static void NAME(from_blocks)(float *rows, const float *blocks, int batch, int units, int first, int last) {
    for (int block = first; block < last; block++)
        for (int b = 0; b < batch; b++)
            memcpy(rows + (size_t)b * units + block * BLOCK, blocks + ((size_t)block * batch + b) * BLOCK,
                   BLOCK * sizeof(float));
}
/* The gates of a block in row b of a step: (slots, 16). */
INLINE elem *NAME(gates_at)(const cw_layer *layer, int t, int block, int b) {
    const size_t at = ((size_t)t * (layer->units / BLOCK) + block) * layer->batch + b;
    return (elem *)layer->gates + at * cw_slots(layer->cell) * BLOCK;
}
/* The cell of a block in row b before step t. */
INLINE elem *NAME(cell_at)(const cw_layer *layer, int t, int block, int b) {
    return (elem *)layer->cells + (((size_t)t * (layer->units / BLOCK) + block) * layer->batch + b) * BLOCK;
}

/* --- Forward --- */

/* Copy the states (B, H) before a step to a thread's own operand. The copy fetches what the other threads have just
 * written, all at once: line by line, on demand, it would take many times as long. */
static void NAME(stage_states)(elem *operand, size_t size, const elem *states, int batch, int units) {
    for (int b = 0; b < batch; b++)
        for (int k = 0; k < units; k += BLOCK)
            memcpy(NAME(operand_at)(operand, size, b, k), states + (size_t)b * units + k, BLOCK * sizeof(elem));
}

/* The inputs of the gates of one block in one row, `stride` apart: float, or in storage. */
typedef struct {
    const float *floats;
    const elem *stored;
    size_t stride;
} NAME(feed);

INLINE NAME(feed) NAME(feed_of)(const cw_layer_job *job, int gates, size_t row, int block) {
    const cw_layer *layer = job->layer;
    const size_t units = layer->units, width = gates * units;
    if (job->table) {
        const size_t at = (size_t)block * layer->tokens + layer->ids[row];
        return (NAME(feed)){job->table + at * gates * BLOCK, NULL, BLOCK};
    }
    if (layer->table) return (NAME(feed)){layer->table + layer->ids[row] * width + block * BLOCK, NULL, units};
    return (NAME(feed)){NULL, (const elem *)layer->inputs + row * width + block * BLOCK, units};
}
INLINE vec NAME(fed)(const NAME(feed) * feed, int gate, int lane) {
    const size_t at = gate * feed->stride + lane;
    return feed->floats ? load(feed->floats + at) : NAME(get)(feed->stored + at);
}

/* The gates of LANES units from `lane` of a block. `sums` has the recurrent products, a vector for each gate. */
typedef struct {
    NAME(feed) feed;
    const float *sums, *bias; /* bias: of the block, `units` apart, or NULL */
    float *h, *c;             /* the state of the block */
    elem *saved;              /* (slots, 16) */
    elem *cell;               /* after the step */
} NAME(gate_place);

INLINE vec NAME(gates_forward)(int cell, const NAME(gate_place) * p, size_t units, int lane) {
    vec pre[4];
    for (int gate = 0; gate < cw_gate_count(cell); gate++) {
        pre[gate] = load(p->sums + gate * LANES);
        if (p->bias) pre[gate] += load(p->bias + gate * units + lane);
        if (cell != CW_GRU || gate < 2) pre[gate] += NAME(fed)(&p->feed, gate, lane);
    }
    vec saved[4], h;
    if (cell == CW_GRU) {
        const vec r = NAME(sigmoid)(pre[0]), z = NAME(sigmoid)(pre[1]);
        const vec n = NAME(tanh)(NAME(fed)(&p->feed, 2, lane) + r * pre[2]);
        h = n + z * (load(p->h + lane) - n);
        saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = pre[2];
    } else if (cell == CW_LSTM) {
        const vec i = NAME(sigmoid)(pre[0]), f = NAME(sigmoid)(pre[1]), g = NAME(tanh)(pre[2]);
        const vec o = NAME(sigmoid)(pre[3]), c = f * load(p->c + lane) + i * g;
        h = o * NAME(tanh)(c);
        store(p->c + lane, c);
        NAME(put)(p->cell + lane, c);
        saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
    } else {
        h = NAME(tanh)(pre[0]);
    }
    if (cell != CW_RNN)
        for (int slot = 0; slot < 4; slot++) NAME(put)(p->saved + slot * BLOCK + lane, saved[slot]);
    store(p->h + lane, h);
    return h;
}

/* Store a new state of LANES units: for the caller and, with a mask, for the next product. */
INLINE void NAME(keep)(const cw_layer_job *job, size_t row, int b, int unit, vec h) {
    const cw_layer *layer = job->layer;
    const size_t at = row * layer->units + unit;
    NAME(put)((elem *)layer->hidden + at, h);
    if (!layer->mask) return;
    h *= load(job->mask + ((size_t)(unit / BLOCK) * layer->batch + b) * BLOCK + unit % BLOCK);
    NAME(put)((elem *)layer->masked + at, h);
}

/* Prefetch what the gates of a block in one row read and write, to arrive while the product runs. */
INLINE void NAME(expect)(const cw_layer *layer, int gates, int t, int block, int b) {
    const size_t row = (size_t)t * layer->batch + b, after = (row + layer->batch) * layer->units + block * BLOCK;
    const size_t bytes = cw_slots(layer->cell) * BLOCK * sizeof(elem);
    if (!layer->table || layer->tokens > CW_SMALL_TABLE) {
        const size_t width = (size_t)gates * layer->units, at = block * BLOCK;
        for (int gate = 0; gate < gates; gate++)
            if (layer->table) __builtin_prefetch(layer->table + layer->ids[row] * width + at + gate * layer->units);
            else __builtin_prefetch((const elem *)layer->inputs + row * width + at + gate * layer->units);
    }
    for (size_t i = 0; layer->cell != CW_RNN && i < bytes; i += 64)
        __builtin_prefetch((char *)NAME(gates_at)(layer, t, block, b) + i, 1);
    __builtin_prefetch((elem *)layer->hidden + after, 1);
    if (layer->mask) __builtin_prefetch((elem *)layer->masked + after, 1);
    if (layer->cell == CW_LSTM) __builtin_prefetch(NAME(cell_at)(layer, t + 1, block, b), 1);
}

/* The initial state, and what is copied to blocks, for blocks `first` to `last`. */
static void NAME(begin_forward)(const cw_layer_job *job, int first, int last) {
    const cw_layer *layer = job->layer;
    const int units = layer->units, batch = layer->batch, gates = cw_gate_count(layer->cell);
    if (job->table)
        for (int block = first; block < last; block++)
            for (int token = 0; token < layer->tokens; token++)
                for (int gate = 0; gate < gates; gate++)
                    memcpy(job->table + (((size_t)block * layer->tokens + token) * gates + gate) * BLOCK,
                           layer->table + ((size_t)token * gates + gate) * units + block * BLOCK, BLOCK * sizeof(float));
    NAME(to_blocks)(job->h, layer->state_h, batch, units, first, last);
    if (layer->mask) NAME(to_blocks)(job->mask, layer->mask, batch, units, first, last);
    if (layer->cell == CW_LSTM) NAME(to_blocks)(job->c, layer->state_c, batch, units, first, last);
    for (int block = first; block < last; block++)
        for (int b = 0; b < batch; b++)
            for (int lane = 0; lane < BLOCK; lane += LANES) {
                const size_t at = ((size_t)block * batch + b) * BLOCK + lane;
                NAME(keep)(job, b, b, block * BLOCK + lane, load(job->h + at));
                if (layer->cell == CW_LSTM)
                    NAME(put)(NAME(cell_at)(layer, 0, block, b) + lane, load(job->c + at));
            }
}

INLINE void NAME(forward_block)(int cell, const cw_layer_job *job, int t, int block, const elem *operand,
                                size_t size) {
    const cw_layer *layer = job->layer;
    const int units = layer->units, batch = layer->batch, gates = cw_gate_count(cell), depth = NAME(padded)(units);
    const elem *w = (const elem *)layer->packed + (size_t)block * BLOCK * depth * gates;
    float c[MOST_ROWS * 4 * BLOCK] __attribute__((aligned(64)));
    for (int b = 0, rows; b < batch; b += rows) {
        rows = NAME(rows_of)(batch - b, gates);
        for (int r = 0; r < rows; r++) NAME(expect)(layer, gates, t, block, b + r);
        for (int v = 0; v < VECTORS; v++)
            NAME(recurrent_product)(operand, size, b, rows, depth, w + (size_t)v * LANES * depth * gates,
                                    (size_t)gates * LANES * DEPTH, LANES * DEPTH, gates, c + v * gates * LANES,
                                    gates * BLOCK, 0);
        for (int r = 0; r < rows; r++) {
            const size_t row = (size_t)t * batch + b + r, at = ((size_t)block * batch + b + r) * BLOCK;
            NAME(gate_place) place = {
                .feed = NAME(feed_of)(job, gates, row, block), .bias = layer->bias ? layer->bias + block * BLOCK : NULL,
                .h = job->h + at, .c = job->c + at, .saved = NAME(gates_at)(layer, t, block, b + r),
                .cell = NAME(cell_at)(layer, t + 1, block, b + r)};
            for (int v = 0; v < VECTORS; v++) {
                place.sums = c + ((size_t)r * VECTORS + v) * gates * LANES;
                const vec h = NAME(gates_forward)(cell, &place, units, v * LANES);
                NAME(keep)(job, row + batch, b + r, block * BLOCK + v * LANES, h);
            }
        }
    }
}

static void NAME(forward)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_layer_job job = *(const cw_layer_job *)argument;
    const cw_layer *layer = job.layer;
    const int units = layer->units, batch = layer->batch, blocks = units / BLOCK;
    const int first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    const size_t size = NAME(padded)(units) + SPACING;
#if TILED
    begin_tiles();
#endif
    NAME(begin_forward)(&job, first, last);
    const elem *states = layer->mask ? layer->masked : layer->hidden;
    elem *operand = (elem *)((char *)job.operands + thread * job.operand_bytes);
    for (int t = 0; t < layer->steps; t++) {
        cw_meet(barrier); /* every part of the state before this step is written */
        NAME(stage_states)(operand, size, states + (size_t)t * batch * units, batch, units);
        for (int block = first; block < last; block++)
            if (layer->cell == CW_GRU) NAME(forward_block)(CW_GRU, &job, t, block, operand, size);
            else if (layer->cell == CW_LSTM) NAME(forward_block)(CW_LSTM, &job, t, block, operand, size);
            else NAME(forward_block)(CW_RNN, &job, t, block, operand, size);
    }
#if TILED
    end_tiles();
#endif
    NAME(from_blocks)(layer->state_h, job.h, batch, units, first, last);
    if (layer->cell == CW_LSTM) NAME(from_blocks)(layer->state_c, job.c, batch, units, first, last);
}

/* --- Backward --- */

/* Gradients of the gates of LANES units in one row, from d_h at the output of the step. */
typedef struct {
    elem *saved;              /* (slots, 16): the gates, which the gradients replace */
    const elem *before;       /* the state before the step, and for an RNN after it */
    const elem *cells, *last; /* the cell before and after the step */
    const elem *d_output;
    float *d_h, *d_c;
} NAME(gradient_place);

/* Writes the gradients into `saved`, as slots, and returns those at the input as d_x[G]; d_u is that of U_n h + c_n.
 * What reaches the previous state directly (not through the recurrent product) remains in d_h and d_c. */
INLINE void NAME(gradients)(int cell, const NAME(gradient_place) * p, int lane, vec d_x[4], vec *d_u) {
    const vec d_h = load(p->d_h + lane) + NAME(get)(p->d_output + lane);
    elem *saved = p->saved + lane;
    if (cell == CW_GRU) {
        const vec r = NAME(get)(saved), z = NAME(get)(saved + BLOCK);
        const vec n = NAME(get)(saved + 2 * BLOCK), u = NAME(get)(saved + 3 * BLOCK);
        const vec before = NAME(get)(p->before + lane);
        d_x[2] = d_h * (1.0f - z) * (1.0f - n * n);
        d_x[1] = d_h * (before - n) * z * (1.0f - z);
        d_x[0] = d_x[2] * u * r * (1.0f - r);
        *d_u = d_x[2] * r;
        NAME(put)(saved, *d_u);
        NAME(put)(saved + BLOCK, d_x[0]);
        NAME(put)(saved + 2 * BLOCK, d_x[1]);
        NAME(put)(saved + 3 * BLOCK, d_x[2]);
        store(p->d_h + lane, d_h * z);
    } else if (cell == CW_LSTM) {
        const vec i = NAME(get)(saved), f = NAME(get)(saved + BLOCK);
        const vec g = NAME(get)(saved + 2 * BLOCK), o = NAME(get)(saved + 3 * BLOCK);
        const vec tanh_c = NAME(tanh)(NAME(get)(p->last + lane));
        const vec d_c = load(p->d_c + lane) + d_h * o * (1.0f - tanh_c * tanh_c);
        d_x[0] = d_c * g * i * (1.0f - i);
        d_x[1] = d_c * NAME(get)(p->cells + lane) * f * (1.0f - f);
        d_x[2] = d_c * i * (1.0f - g * g);
        d_x[3] = d_h * tanh_c * o * (1.0f - o);
        for (int gate = 0; gate < 4; gate++) NAME(put)(saved + gate * BLOCK, d_x[gate]);
        store(p->d_c + lane, d_c * f);
        store(p->d_h + lane, (vec){0});
    } else {
        const vec after = NAME(get)(p->before + lane);
        d_x[0] = d_h * (1.0f - after * after);
        NAME(put)(saved, d_x[0]);
        store(p->d_h + lane, (vec){0});
    }
}

/* The gradients of a block at step t, in all rows; those of the table and the bias are added up. */
INLINE void NAME(backward_block)(int cell, const cw_layer_job *job, int t, int block) {
    const cw_layer *layer = job->layer;
    const int units = layer->units, batch = layer->batch, gates = cw_gate_count(cell);
    vec d_bias[VECTORS][4];
    memset(d_bias, 0, sizeof d_bias);
    for (int b = 0; b < batch; b++) {
        const size_t row = (size_t)t * batch + b, at = row * units + block * BLOCK;
        const size_t after = cell == CW_RNN ? (size_t)batch * units : 0;
        const NAME(gradient_place) place = {
            .saved = NAME(gates_at)(layer, t, block, b), .before = (const elem *)layer->hidden + at + after,
            .cells = NAME(cell_at)(layer, t, block, b), .last = NAME(cell_at)(layer, t + 1, block, b),
            .d_output = (const elem *)layer->d_outputs + at, .d_h = job->h + ((size_t)block * batch + b) * BLOCK,
            .d_c = job->c + ((size_t)block * batch + b) * BLOCK};
        /* The rows are far apart: expect those of the next block. */
        __builtin_prefetch(place.before + BLOCK);
        __builtin_prefetch(place.d_output + BLOCK);
        float *d_table = NULL;
        size_t stride = units;
        if (job->table) {
            d_table = job->table + ((size_t)block * layer->tokens + layer->ids[row]) * gates * BLOCK;
            stride = BLOCK;
        } else if (layer->d_table) {
            d_table = layer->d_table + layer->ids[row] * gates * units + block * BLOCK;
        }
        for (int v = 0; v < VECTORS; v++) {
            const int lane = v * LANES;
            vec d_x[4], d_u;
            NAME(gradients)(cell, &place, lane, d_x, &d_u);
            for (int gate = 0; gate < gates; gate++) {
                if (layer->d_bias) d_bias[v][gate] += cell == CW_GRU && gate == 2 ? d_u : d_x[gate];
                if (!d_table) continue;
                float *sum = d_table + gate * stride + lane;
                store(sum, load(sum) + d_x[gate]);
            }
        }
    }
    for (int v = 0; layer->d_bias && v < VECTORS; v++)
        for (int gate = 0; gate < gates; gate++) {
            float *sum = layer->d_bias + gate * units + block * BLOCK + v * LANES;
            store(sum, load(sum) + d_bias[v][gate]);
        }
}

#define PANEL 64 /* rows */

/* Copy the gradients of a step's gates to a thread's own operand (G, B, H), as `stage_states` does. */
static void NAME(stage_gradients)(elem *operand, size_t size, const cw_layer *layer, int t, int gates) {
    const size_t gate_size = NAME(filled)(layer->batch) * size;
    const int slots = cw_slots(layer->cell);
    const elem *from = NAME(gates_at)(layer, t, 0, 0);
    for (int block = 0; block < layer->units / BLOCK; block++)
        for (int b = 0; b < layer->batch; b++, from += slots * BLOCK)
            for (int slot = 0; slot < gates; slot++)
                memcpy(NAME(operand_at)(operand + slot * gate_size, size, b, block * BLOCK), from + slot * BLOCK,
                       BLOCK * sizeof(elem));
}

/* d_h of the previous state += the operand (G, B, H) * weights, for `vectors` vectors of units from `vector`. */
static void NAME(through_product)(const cw_layer_job *job, const elem *operand, size_t size, int vector, int vectors) {
    const cw_layer *layer = job->layer;
    const int batch = layer->batch, depth = NAME(padded)(layer->units), gates = cw_gate_count(layer->cell);
    const size_t column = (size_t)gates * depth * LANES, c_row = (size_t)vectors * LANES;
    float c[PANEL * 3 * LANES] __attribute__((aligned(64)));
    for (int panel = 0; panel < batch; panel += PANEL) {
        const int end = panel + PANEL < batch ? panel + PANEL : batch;
        for (int gate = 0; gate < gates; gate++) { /* one gate at a time, so that the rows stay in the cache */
            const elem *w = (const elem *)layer->packed + vector * column + (size_t)gate * depth * LANES;
            for (int b = panel, rows; b < end; b += rows) {
                rows = NAME(rows_of)(end - b, vectors);
                NAME(recurrent_product)(operand + gate * NAME(filled)(batch) * size, size, b, rows, depth, w,
                                        LANES * DEPTH, column, vectors, c + (b - panel) * c_row, c_row, gate > 0);
            }
        }
        for (int v = 0; v < vectors; v++) {
            const int unit = (vector + v) * LANES;
            const size_t at = (size_t)(unit / BLOCK) * batch * BLOCK + unit % BLOCK;
            for (int b = panel; b < end; b++) {
                vec through = load(c + (b - panel) * c_row + v * LANES);
                if (layer->mask) through *= load(job->mask + at + b * BLOCK);
                float *d_h = job->h + at + b * BLOCK;
                store(d_h, load(d_h) + through);
            }
        }
    }
}

/* Add the gradient of the table, which was summed up in blocks. */
static void NAME(add_table)(const cw_layer_job *job, int first, int last) {
    const cw_layer *layer = job->layer;
    const int gates = cw_gate_count(layer->cell);
    for (int block = first; block < last; block++)
        for (int token = 0; token < layer->tokens; token++)
            for (int gate = 0; gate < gates; gate++)
                for (int lane = 0; lane < BLOCK; lane += LANES) {
                    const size_t from = (((size_t)block * layer->tokens + token) * gates + gate) * BLOCK + lane;
                    float *to = layer->d_table + ((size_t)token * gates + gate) * layer->units + block * BLOCK + lane;
                    store(to, load(to) + load(job->table + from));
                }
}

static void NAME(backward)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_layer_job job = *(const cw_layer_job *)argument;
    const cw_layer *layer = job.layer;
    const int units = layer->units, batch = layer->batch, gates = cw_gate_count(layer->cell), blocks = units / BLOCK;
    const int first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    const size_t size = NAME(padded)(units) + SPACING;
    NAME(to_blocks)(job.h, layer->d_h, batch, units, first, last);
    if (layer->cell == CW_LSTM) NAME(to_blocks)(job.c, layer->d_c, batch, units, first, last);
    if (layer->mask) NAME(to_blocks)(job.mask, layer->mask, batch, units, first, last);
    const size_t slice = (size_t)layer->tokens * gates * BLOCK;
    elem *operand = (elem *)((char *)job.operands + thread * job.operand_bytes);
    if (job.table) memset(job.table + first * slice, 0, (last - first) * slice * sizeof(float));
#if TILED
    begin_tiles();
#endif
    for (int t = layer->steps - 1; t >= 0; t--) {
        for (int block = first; block < last; block++)
            if (layer->cell == CW_GRU) NAME(backward_block)(CW_GRU, &job, t, block);
            else if (layer->cell == CW_LSTM) NAME(backward_block)(CW_LSTM, &job, t, block);
            else NAME(backward_block)(CW_RNN, &job, t, block);
        cw_meet(barrier); /* every part of this step's gradients is written */
        NAME(stage_gradients)(operand, size, layer, t, gates);
        for (int vector = first * VECTORS, vectors; vector < last * VECTORS; vector += vectors) {
            vectors = share(last * VECTORS - vector, 3);
            NAME(through_product)(&job, operand, size, vector, vectors);
        }
    }
#if TILED
    end_tiles();
#endif
    if (job.table) NAME(add_table)(&job, first, last);
    NAME(from_blocks)(layer->d_h, job.h, batch, units, first, last);
    if (layer->cell == CW_LSTM) NAME(from_blocks)(layer->d_c, job.c, batch, units, first, last);
}

/* The gradient of the inputs (T, B, G * H), from the gates after backward. */
static void NAME(spread_inputs)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_spread_job *job = argument;
    const cw_layer *layer = job->layer;
    (void)barrier;
    const int gates = cw_gate_count(layer->cell), first = layer->cell == CW_GRU; /* a GRU's slots: n * r, r, z, n */
    const int blocks = layer->units / BLOCK, begin = (int)((int64_t)layer->steps * thread / threads);
    for (int t = begin; t < (int)((int64_t)layer->steps * (thread + 1) / threads); t++)
        for (int b = 0; b < layer->batch; b++) {
            elem *row = (elem *)job->to + ((size_t)t * layer->batch + b) * gates * layer->units;
            for (int block = 0; block < blocks; block++)
                for (int gate = 0; gate < gates; gate++)
                    memcpy(row + gate * layer->units + block * BLOCK,
                           NAME(gates_at)(layer, t, block, b) + (first + gate) * BLOCK, BLOCK * sizeof(elem));
        }
}
#undef AHEAD
#undef PANEL
#undef MOST_ROWS
#undef MULTIPLE
#undef SPACING
