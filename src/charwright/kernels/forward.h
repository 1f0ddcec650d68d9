/* The forward pass of a recurrent layer over a sequence, for one storage type. */

/* Copy the states (B, H) before a step, of the rows of an area, to a thread's own operand. The copy fetches what other
 * threads have just written, all at once: line by line, on demand, it would take many times as long. */
static void NAME(stage_states)(elem *operand, size_t size, const elem *states, int units, cw_area area) {
    for (int b = area.row; b < area.last_row; b++)
        for (int k = 0; k < units; k += BLOCK)
            memcpy(NAME(operand_at)(operand, size, b, k), states + (size_t)b * units + k, BLOCK * sizeof(elem));
}

/* The inputs of the gates of one block in one row, `stride` apart: float, or in storage. */
typedef struct {
    const float *floats;
    const elem *stored;
    size_t stride;
} NAME(gate_input);

INLINE NAME(gate_input) NAME(input_of)(const cw_layer_job *job, int gates, size_t row, int block) {
    const cw_layer *layer = job->layer;
    const size_t units = layer->units, width = gates * units;
    if (job->table) {
        const size_t at = (size_t)block * layer->tokens + layer->ids[row];
        return (NAME(gate_input)){job->table + at * gates * BLOCK, NULL, BLOCK};
    }
    if (layer->table) return (NAME(gate_input)){layer->table + layer->ids[row] * width + block * BLOCK, NULL, units};
    return (NAME(gate_input)){NULL, (const elem *)layer->inputs + row * width + block * BLOCK, units};
}
INLINE vec NAME(input_at)(const NAME(gate_input) * gate_input, int gate, int lane) {
    const size_t at = gate * gate_input->stride + lane;
    return gate_input->floats ? load(gate_input->floats + at) : NAME(get)(gate_input->stored + at);
}

/* The gates of LANES units from `lane` of a block. `sums` has the recurrent products, a vector for each. */
typedef struct {
    NAME(gate_input) gate_input;
    const float *sums, *bias; /* bias: of the block, `units` apart, or NULL */
    float *h, *c;             /* the state of the block */
    elem *saved;              /* (slots, 16) */
    elem *cell;               /* after the step */
} NAME(gate_place);

INLINE vec NAME(gates_forward)(int cell, const NAME(gate_place) * p, size_t units, int lane) {
    vec pre[4];
    const int first = cw_gate_count(cell) - cw_product_count(cell); /* the first gate that reads the state */
    for (int gate = 0; gate < first; gate++) pre[gate] = NAME(input_at)(&p->gate_input, gate, lane);
    for (int gate = first; gate < cw_gate_count(cell); gate++) {
        pre[gate] = load(p->sums + (gate - first) * LANES);
        if (p->bias) pre[gate] += load(p->bias + (gate - first) * units + lane);
        if (!cw_is_gru(cell) || gate < 2) pre[gate] += NAME(input_at)(&p->gate_input, gate, lane);
    }
    vec saved[4], h;
    if (cw_is_gru(cell)) {
        const vec r = NAME(sigmoid)(pre[0]), z = NAME(sigmoid)(pre[1]);
        const vec n = NAME(tanh)(NAME(input_at)(&p->gate_input, 2, lane) + r * pre[2]);
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

/* Store a new state of LANES units, that before the step of `row`: for the caller and, with a mask or a scale, for the
 * next product. */
INLINE void NAME(keep)(const cw_layer_job *job, size_t row, const float *mask, int unit, vec h) {
    const cw_layer *layer = job->layer;
    const size_t at = row * layer->units + unit;
    NAME(put)((elem *)layer->hidden + at, h);
    if (!layer->masked || row >= (size_t)layer->steps * layer->batch) return; /* no product follows the last state */
    if (layer->mask) h *= load(mask);
    if (layer->scale) h *= load(layer->scale + layer->ids[row] * layer->units + unit);
    NAME(put)((elem *)layer->masked + at, h);
}

/* Prefetch what the gates of a block in one row read and write, to arrive while the product runs. */
INLINE void NAME(prefetch_block)(const cw_layer *layer, int gates, int t, int block, int b, const char *saved, elem *cell) {
    const size_t row = (size_t)t * layer->batch + b, after = (row + layer->batch) * layer->units + block * BLOCK;
    const size_t bytes = cw_slots(layer->cell) * BLOCK * sizeof(elem);
    if (!layer->table || layer->tokens > CW_SMALL_TABLE) {
        const size_t width = (size_t)gates * layer->units, at = block * BLOCK;
        for (int gate = 0; gate < gates; gate++)
            if (layer->table) __builtin_prefetch(layer->table + layer->ids[row] * width + at + gate * layer->units);
            else __builtin_prefetch((const elem *)layer->inputs + row * width + at + gate * layer->units);
    }
    for (size_t i = 0; layer->cell != CW_RNN && i < bytes; i += 64)
        __builtin_prefetch(saved + i, 1);
    __builtin_prefetch((elem *)layer->hidden + after, 1);
    if (layer->masked) __builtin_prefetch((elem *)layer->masked + after, 1);
    if (layer->scale && t + 1 < layer->steps)
        __builtin_prefetch(layer->scale + layer->ids[row + layer->batch] * layer->units + block * BLOCK);
    if (layer->cell == CW_LSTM) __builtin_prefetch(cell, 1);
}

/* Copy the table to blocks, for blocks `first` to `last`. */
static void NAME(take_table)(const cw_layer_job *job, int first, int last) {
    const cw_layer *layer = job->layer;
    const int units = layer->units, gates = cw_gate_count(layer->cell);
    if (job->table)
        for (int block = first; block < last; block++)
            for (int token = 0; token < layer->tokens; token++)
                for (int gate = 0; gate < gates; gate++)
                    memcpy(job->table + (((size_t)block * layer->tokens + token) * gates + gate) * BLOCK,
                           layer->table + ((size_t)token * gates + gate) * units + block * BLOCK, BLOCK * sizeof(float));
}

/* The initial state, and what is copied to blocks, for an area. */
static void NAME(begin_forward)(const cw_layer_job *job, cw_area area) {
    const cw_layer *layer = job->layer;
    NAME(to_blocks)(job, job->h, layer->state_h, area);
    if (layer->mask) NAME(to_blocks)(job, job->mask, layer->mask, area);
    if (layer->cell == CW_LSTM) NAME(to_blocks)(job, job->c, layer->state_c, area);
    for (int block = area.column; block < area.last_column; block++)
        for (int b = area.row; b < area.last_row; b++)
            for (int lane = 0; lane < BLOCK; lane += LANES) {
                const size_t at = NAME(state_at)(job, block, b) + lane;
                NAME(keep)(job, b, job->mask + at, block * BLOCK + lane, load(job->h + at));
                if (layer->cell == CW_LSTM)
                    NAME(put)(NAME(cell_at)(layer, job->rows, 0, block, b) + lane, load(job->c + at));
            }
}

/* The step of a block in rows of one group; `next` is the block whose weights the thread needs next, or the same one. */
INLINE void NAME(forward_block)(int cell, const cw_layer_job *job, int t, int block, int next, const elem *operand,
                                int first_row, int last_row) {
    const cw_layer *layer = job->layer;
    const int units = layer->units, batch = layer->batch, depth = NAME(padded)(units);
    const int gates = cw_gate_count(cell), products = cw_product_count(cell);
    const size_t weights = (size_t)BLOCK * depth * products, size = depth + SPACING;
    const elem *w = (const elem *)layer->packed + block * weights;
    const elem *after = next == block ? NULL : (const elem *)layer->packed + next * weights;
    const size_t state = NAME(state_at)(job, block, first_row), slots = cw_slots(cell) * BLOCK;
    elem *saved = NAME(gates_at)(layer, job->rows, t, block, first_row);
    elem *cells = NAME(cell_at)(layer, job->rows, t + 1, block, first_row);
    float c[MOST_ROWS * 4 * BLOCK] __attribute__((aligned(64)));
    for (int b = first_row, rows; b < last_row; b += rows) {
        rows = NAME(rows_of)(last_row - b, products);
        for (int r = 0, n = b - first_row; r < rows; r++, n++)
            NAME(prefetch_block)(layer, gates, t, block, b + r, (char *)(saved + n * slots), cells + n * BLOCK);
        for (int v = 0; v < VECTORS; v++)
            NAME(multiply_operand)(operand, size, b, rows, depth, w + (size_t)v * LANES * depth * products,
                                    (size_t)products * LANES * DEPTH, LANES * DEPTH, products, c + v * products * LANES,
                                    products * BLOCK, 0,
                                    upcoming_part(after, 1, weights * sizeof(elem), 0,
                                                  (b - first_row) * VECTORS + v * rows, rows,
                                                  (last_row - first_row) * VECTORS, depth / DEPTH));
        for (int r = 0; r < rows; r++) {
            const size_t row = (size_t)t * batch + b + r, n = b + r - first_row, at = state + n * BLOCK;
            NAME(gate_place) place = {
                .gate_input = NAME(input_of)(job, gates, row, block),
                .bias = layer->bias ? layer->bias + block * BLOCK : NULL,
                .h = job->h + at, .c = job->c + at, .saved = saved + n * slots, .cell = cells + n * BLOCK};
            for (int v = 0; v < VECTORS; v++) {
                place.sums = c + ((size_t)r * VECTORS + v) * products * LANES;
                const vec h = NAME(gates_forward)(cell, &place, units, v * LANES);
                NAME(keep)(job, row + batch, job->mask + at + v * LANES, block * BLOCK + v * LANES, h);
            }
        }
    }
}

/* A step of an area. */
INLINE void NAME(forward_blocks)(int cell, const cw_layer_job *job, int t, const elem *operand, cw_area area) {
    const int first = area.column, last = area.last_column;
    for (int i = first; i < last; i++) {
        /* Back and forth: the cache still has the weights that were read last, if not all. */
        const int block = t % 2 ? first + last - 1 - i : i;
        const int next = i + 1 == last ? block : t % 2 ? block - 1 : block + 1;
        for (int row = area.row; row < area.last_row; row += job->rows)
            NAME(forward_block)(cell, job, t, block, next, operand, row, row + job->rows);
    }
}

static void NAME(forward)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_layer_job job = *(const cw_layer_job *)argument;
    const cw_layer *layer = job.layer;
    const int units = layer->units, batch = layer->batch, blocks = units / BLOCK;
    const cw_area area = cw_own_area(&job, thread, threads);
    cw_barrier *own_barrier = cw_group_barrier(&job, thread, threads, barrier);
    const size_t size = NAME(padded)(units) + SPACING;
#if TILED
    begin_tiles();
#endif
    NAME(take_table)(&job, blocks * thread / threads, blocks * (thread + 1) / threads);
    NAME(begin_forward)(&job, area);
    /* The whole table is copied, and the barriers of all groups are prepared. */
    if (own_barrier != barrier) cw_barrier_wait(barrier);
    const elem *states = layer->masked ? layer->masked : layer->hidden;
    elem *operand = NAME(own_operand)(&job, thread);
    for (int t = 0; t < layer->steps; t++) {
        cw_barrier_wait(own_barrier); /* every part of the state before this step is written */
        NAME(stage_states)(operand, size, states + (size_t)t * batch * units, units, area);
        if (layer->cell == CW_GRU) NAME(forward_blocks)(CW_GRU, &job, t, operand, area);
        else if (layer->cell == CW_IGRU) NAME(forward_blocks)(CW_IGRU, &job, t, operand, area);
        else if (layer->cell == CW_LSTM) NAME(forward_blocks)(CW_LSTM, &job, t, operand, area);
        else NAME(forward_blocks)(CW_RNN, &job, t, operand, area);
    }
#if TILED
    end_tiles();
#endif
    NAME(from_blocks)(&job, layer->state_h, job.h, area);
    if (layer->cell == CW_LSTM) NAME(from_blocks)(&job, layer->state_c, job.c, area);
}
