/* The backward pass of a recurrent layer over a sequence, for one storage type. */

/* Gradients of the gates of LANES units in one row, from d_h at the output of the step. */
typedef struct {
    elem *saved;              /* (slots, 16): the gates, which the gradients replace */
    const elem *before;       /* the state before the step, and for an RNN after it */
    const elem *cells, *last; /* the cell before and after the step */
    const elem *d_output;
    float *d_h, *d_c;
} NAME(gradient_place);

/* The slot with the gradient of a gate's input. Those of the recurrent product come first: d_u, and of the other gates
 * that read the state the same as of the input. */
INLINE int NAME(input_slot)(int cell, int gate) {
    return cell == CW_GRU ? 1 + gate : cell == CW_IGRU ? 1 + (gate + 2) % 3 : gate;
}

/* Writes the gradients into `saved`, as slots, and returns those at the input as d_x[G]; d_u is that of U_n h + c_n.
 * What reaches the previous state directly (not through the recurrent product) remains in d_h and d_c. */
INLINE void NAME(gradients)(int cell, const NAME(gradient_place) * p, int lane, vec d_x[4], vec *d_u) {
    const vec d_h = load(p->d_h + lane) + NAME(get)(p->d_output + lane);
    elem *saved = p->saved + lane;
    if (cw_is_gru(cell)) {
        const vec r = NAME(get)(saved), z = NAME(get)(saved + BLOCK);
        const vec n = NAME(get)(saved + 2 * BLOCK), u = NAME(get)(saved + 3 * BLOCK);
        const vec before = NAME(get)(p->before + lane);
        d_x[2] = d_h * (1.0f - z) * (1.0f - n * n);
        d_x[1] = d_h * (before - n) * z * (1.0f - z);
        d_x[0] = d_x[2] * u * r * (1.0f - r);
        *d_u = d_x[2] * r;
        NAME(put)(saved, *d_u);
        for (int gate = 0; gate < 3; gate++) NAME(put)(saved + NAME(input_slot)(cell, gate) * BLOCK, d_x[gate]);
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

/* The gradients of a block at step t, in rows of one group; those of the table and the bias are added up. */
INLINE void NAME(backward_block)(int cell, const cw_layer_job *job, int t, int block, int first_row, int last_row) {
    const cw_layer *layer = job->layer;
    const int units = layer->units, batch = layer->batch, gates = cw_gate_count(cell);
    const int first = gates - cw_product_count(cell); /* the first gate that reads the state */
    const cw_sums *sums = job->sums + cw_group_of(job, first_row);
    const size_t state = NAME(state_at)(job, block, first_row), slots = cw_slots(cell) * BLOCK;
    elem *saved = NAME(gates_at)(layer, job->rows, t, block, first_row);
    const elem *cells = NAME(cell_at)(layer, job->rows, t, block, first_row);
    const elem *later_cells = NAME(cell_at)(layer, job->rows, t + 1, block, first_row);
    vec d_bias[VECTORS][4];
    memset(d_bias, 0, sizeof d_bias);
    for (int b = first_row; b < last_row; b++) {
        const size_t row = (size_t)t * batch + b, at = row * units + block * BLOCK, n = b - first_row;
        const size_t after = cell == CW_RNN ? (size_t)batch * units : 0;
        const NAME(gradient_place) place = {
            .saved = saved + n * slots, .before = (const elem *)layer->hidden + at + after,
            .cells = cells + n * BLOCK, .last = later_cells + n * BLOCK,
            .d_output = (const elem *)layer->d_outputs + at, .d_h = job->h + state + n * BLOCK,
            .d_c = job->c + state + n * BLOCK};
        /* The rows are far apart: prefetch those of the next block. */
        __builtin_prefetch(place.before + BLOCK);
        __builtin_prefetch(place.d_output + BLOCK);
        float *d_table = NULL;
        size_t stride = units;
        if (sums->table) {
            d_table = sums->table + ((size_t)block * layer->tokens + layer->ids[row]) * gates * BLOCK;
            stride = BLOCK;
        } else if (layer->d_table) {
            d_table = layer->d_table + layer->ids[row] * gates * units + block * BLOCK;
        }
        for (int v = 0; v < VECTORS; v++) {
            const int lane = v * LANES;
            vec d_x[4], d_u;
            NAME(gradients)(cell, &place, lane, d_x, &d_u);
            for (int gate = 0; gate < gates; gate++) {
                if (sums->bias && gate >= first)
                    d_bias[v][gate - first] += cw_is_gru(cell) && gate == 2 ? d_u : d_x[gate];
                if (!d_table) continue;
                float *sum = d_table + gate * stride + lane;
                store(sum, load(sum) + d_x[gate]);
            }
        }
    }
    for (int v = 0; sums->bias && v < VECTORS; v++)
        for (int gate = 0; gate < cw_product_count(cell); gate++) {
            float *sum = sums->bias + gate * units + block * BLOCK + v * LANES;
            store(sum, load(sum) + d_bias[v][gate]);
        }
}

#define PANEL 64 /* rows */

/* Copy the gradients of a step's gates, of the rows of an area, to a thread's own operand (G, B, H), as `stage_states`
 * does. */
static void NAME(stage_gradients)(elem *operand, size_t size, const cw_layer_job *job, int t, int gates, cw_area area) {
    const cw_layer *layer = job->layer;
    const size_t gate_size = NAME(filled)(layer->batch) * size;
    const int slots = cw_slots(layer->cell);
    for (int row = area.row; row < area.last_row; row += job->rows) {
        const elem *from = NAME(gates_at)(layer, job->rows, t, 0, row);
        for (int block = 0; block < layer->units / BLOCK; block++)
            for (int b = row; b < row + job->rows; b++, from += slots * BLOCK)
                for (int slot = 0; slot < gates; slot++)
                    memcpy(NAME(operand_at)(operand + slot * gate_size, size, b, block * BLOCK), from + slot * BLOCK,
                           BLOCK * sizeof(elem));
    }
}

/* From the gradient of what the product of step t has multiplied, LANES units of row b: that of the scale, which is added
 * up, and that of the state. */
INLINE vec NAME(through_scale)(const cw_layer *layer, float *d_scale, int t, int b, int unit, vec gradient) {
    const size_t row = (size_t)t * layer->batch + b, at = layer->ids[row] * layer->units + unit;
    float *sum = d_scale + at;
    store(sum, load(sum) + gradient * NAME(get)((const elem *)layer->hidden + row * layer->units + unit));
    return gradient * load(layer->scale + at);
}

/* d_h of the state before step t += the operand (G, B, H) * weights, in the rows of an area, for `vectors` vectors of
 * units from `vector`; those from `next` follow, if it is another one. */
static void NAME(through_product)(const cw_layer_job *job, int t, const elem *operand, size_t size, cw_area area,
                                  int vector, int vectors, int next) {
    const cw_layer *layer = job->layer;
    const int batch = layer->batch, depth = NAME(padded)(layer->units), gates = cw_product_count(layer->cell);
    const size_t column = (size_t)gates * depth * LANES, c_row = (size_t)vectors * LANES;
    const size_t chunk = (size_t)depth * LANES * sizeof(elem);
    float c[PANEL * 3 * LANES] __attribute__((aligned(64)));
    for (int panel = area.row, end; panel < area.last_row; panel = end) {
        const int group_end = panel < job->rows ? job->rows : batch;
        end = panel + PANEL < group_end ? panel + PANEL : group_end;
        const int is_last = end == area.last_row && next != vector;
        for (int gate = 0; gate < gates; gate++) { /* one gate at a time, so that the rows stay in the cache */
            const elem *w = (const elem *)layer->packed + vector * column + (size_t)gate * depth * LANES;
            const elem *after = gate + 1 < gates ? w + (size_t)depth * LANES
                                : is_last        ? (const elem *)layer->packed + next * column : NULL;
            for (int b = panel, rows; b < end; b += rows) {
                rows = NAME(rows_of)(end - b, vectors);
                NAME(multiply_operand)(operand + gate * NAME(filled)(batch) * size, size, b, rows, depth, w,
                                        LANES * DEPTH, column, vectors, c + (b - panel) * c_row, c_row, gate > 0,
                                        upcoming_part(after, vectors, chunk, column * sizeof(elem), b - panel, rows,
                                                      end - panel, depth / DEPTH));
            }
        }
        float *d_scale = job->sums[cw_group_of(job, panel)].scale;
        for (int v = 0; v < vectors; v++) {
            const int unit = (vector + v) * LANES;
            size_t at = NAME(state_at)(job, unit / BLOCK, panel) + unit % BLOCK;
            for (int b = panel; b < end; b++, at += BLOCK) {
                vec through = load(c + (b - panel) * c_row + v * LANES);
                if (layer->mask) through *= load(job->mask + at);
                if (layer->scale) through = NAME(through_scale)(layer, d_scale, t, b, unit, through);
                float *d_h = job->h + at;
                store(d_h, load(d_h) + through);
            }
        }
    }
}

/* The gradient of the table, which each group has summed up in blocks. */
static void NAME(write_table)(const cw_layer_job *job, int first, int last) {
    const cw_layer *layer = job->layer;
    const int gates = cw_gate_count(layer->cell);
    for (int block = first; block < last; block++)
        for (int token = 0; token < layer->tokens; token++)
            for (int gate = 0; gate < gates; gate++)
                for (int lane = 0; lane < BLOCK; lane += LANES) {
                    const size_t from = (((size_t)block * layer->tokens + token) * gates + gate) * BLOCK + lane;
                    float *to = layer->d_table + ((size_t)token * gates + gate) * layer->units + block * BLOCK + lane;
                    vec sum = load(job->sums[0].table + from);
                    for (int group = 1; group < job->groups; group++) sum += load(job->sums[group].table + from);
                    store(to, sum);
                }
}

/* Add the sums of the later groups to those of the first, for blocks `first` to `last` in each of `rows` rows. */
INLINE void NAME(add_sums)(float *to, const float *from, size_t rows, int units, int first, int last) {
    if (!to) return;
    for (size_t row = 0; row < rows; row++)
        for (int unit = first * BLOCK; unit < last * BLOCK; unit += LANES)
            store(to + row * units + unit, load(to + row * units + unit) + load(from + row * units + unit));
}
static void NAME(join_sums)(const cw_layer_job *job, int first, int last) {
    const cw_layer *layer = job->layer;
    const cw_sums *all = job->sums;
    if (all->table) NAME(write_table)(job, first, last);
    for (int group = 1; group < job->groups; group++) {
        NAME(add_sums)(all->scale, all[group].scale, layer->tokens, layer->units, first, last);
        NAME(add_sums)(all->bias, all[group].bias, cw_product_count(layer->cell), layer->units, first, last);
    }
}

/* Set the sums of some blocks to zero in each of `rows` rows, if there are any. */
INLINE void NAME(clear)(float *sums, size_t rows, int units, int first, int last) {
    if (!sums) return;
    for (size_t row = 0; row < rows; row++)
        memset(sums + row * units + first * BLOCK, 0, (last - first) * BLOCK * sizeof(float));
}

/* The sums of the groups of an area begin at zero. */
static void NAME(clear_sums)(const cw_layer_job *job, cw_area area) {
    const cw_layer *layer = job->layer;
    const int gates = cw_gate_count(layer->cell), first = area.column, last = area.last_column;
    const size_t slice = (size_t)layer->tokens * gates * BLOCK;
    for (int group = cw_group_of(job, area.row); group <= cw_group_of(job, area.last_row - 1); group++) {
        const cw_sums *sums = job->sums + group;
        if (sums->table) memset(sums->table + first * slice, 0, (last - first) * slice * sizeof(float));
        else NAME(clear)(layer->d_table, (size_t)layer->tokens * gates, layer->units, first, last);
        NAME(clear)(sums->scale, layer->tokens, layer->units, first, last);
        NAME(clear)(sums->bias, cw_product_count(layer->cell), layer->units, first, last);
    }
}

/* The gradient of a final state in blocks, or zeros without one. */
INLINE void NAME(take_gradient)(const cw_layer_job *job, float *blocks, const float *rows, cw_area area) {
    if (rows) NAME(to_blocks)(job, blocks, rows, area);
    else
        for (int block = area.column; block < area.last_column; block++)
            for (int b = area.row; b < area.last_row; b++)
                memset(blocks + NAME(state_at)(job, block, b), 0, BLOCK * sizeof(float));
}

/* The gradients of a step in an area, one group of rows after the other. */
INLINE void NAME(backward_blocks)(int cell, const cw_layer_job *job, int t, cw_area area) {
    for (int block = area.column; block < area.last_column; block++)
        for (int row = area.row; row < area.last_row; row += job->rows)
            NAME(backward_block)(cell, job, t, block, row, row + job->rows);
}

/* All steps of an area; `own_barrier` is of the threads that have the same rows. */
static void NAME(backward_steps)(const cw_layer_job *job, cw_area area, cw_barrier *own_barrier, elem *operand) {
    const cw_layer *layer = job->layer;
    const size_t size = NAME(padded)(layer->units) + SPACING;
    for (int t = layer->steps - 1; t >= 0; t--) {
        if (layer->cell == CW_GRU) NAME(backward_blocks)(CW_GRU, job, t, area);
        else if (layer->cell == CW_IGRU) NAME(backward_blocks)(CW_IGRU, job, t, area);
        else if (layer->cell == CW_LSTM) NAME(backward_blocks)(CW_LSTM, job, t, area);
        else NAME(backward_blocks)(CW_RNN, job, t, area);
        cw_barrier_wait(own_barrier); /* every part of this step's gradients is written */
        NAME(stage_gradients)(operand, size, job, t, cw_product_count(layer->cell), area);
        int left = (area.last_column - area.column) * VECTORS;
        for (int done = 0, vectors; left; left -= vectors, done += vectors) {
            /* Back and forth, as in the forward pass. */
            vectors = share(left, 3);
            const int vector = area.column * VECTORS + (t % 2 ? left - vectors : done), then = left - vectors;
            const int next = !then ? vector : t % 2 ? vector - share(then, 3) : vector + vectors;
            NAME(through_product)(job, t, operand, size, area, vector, vectors, next);
        }
    }
}

static void NAME(backward)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_layer_job job = *(const cw_layer_job *)argument;
    const cw_layer *layer = job.layer;
    const int blocks = layer->units / BLOCK;
    const cw_area area = cw_own_area(&job, thread, threads);
    cw_barrier *own_barrier = cw_group_barrier(&job, thread, threads, barrier);
    elem *operand = NAME(own_operand)(&job, thread);
    NAME(take_gradient)(&job, job.h, layer->d_h, area);
    if (layer->cell == CW_LSTM) NAME(take_gradient)(&job, job.c, layer->d_c, area);
    if (layer->mask) NAME(to_blocks)(&job, job.mask, layer->mask, area);
    NAME(clear_sums)(&job, area);
    if (own_barrier != barrier) cw_barrier_wait(barrier); /* the barriers of all groups are prepared */
#if TILED
    begin_tiles();
#endif
    /* A thread alone has one group after the other: the sums of both would not stay in the cache. */
    const int rows = threads == 1 ? job.rows : area.last_row - area.row;
    for (cw_area some = area; some.row < area.last_row; some.row += rows) {
        some.last_row = some.row + rows;
        NAME(backward_steps)(&job, some, own_barrier, operand);
    }
#if TILED
    end_tiles();
#endif
    if (layer->d_h) NAME(from_blocks)(&job, layer->d_h, job.h, area);
    if (layer->cell == CW_LSTM && layer->d_c) NAME(from_blocks)(&job, layer->d_c, job.c, area);
    if (own_barrier != barrier) cw_barrier_wait(barrier); /* the sums of all groups are complete */
    NAME(join_sums)(&job, blocks * thread / threads, blocks * (thread + 1) / threads);
}

/* The gradient of the inputs (T, B, G * H), from the gates after backward. */
static void NAME(spread_inputs)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_spread_job *job = argument;
    const cw_layer *layer = job->layer;
    (void)barrier;
    const int gates = cw_gate_count(layer->cell), rows = cw_group_rows(layer, TILED);
    const int blocks = layer->units / BLOCK, begin = (int)((int64_t)layer->steps * thread / threads);
    for (int t = begin; t < (int)((int64_t)layer->steps * (thread + 1) / threads); t++)
        for (int b = 0; b < layer->batch; b++) {
            elem *row = (elem *)job->to + ((size_t)t * layer->batch + b) * gates * layer->units;
            for (int block = 0; block < blocks; block++)
                for (int gate = 0; gate < gates; gate++)
                    memcpy(row + gate * layer->units + block * BLOCK,
                           NAME(gates_at)(layer, rows, t, block, b) + NAME(input_slot)(layer->cell, gate) * BLOCK,
                           BLOCK * sizeof(elem));
        }
}

#undef PANEL

/* Outputs (rows, H), or their gradients, times a mask, which is rounded to storage first. */
static void NAME(mask_outputs)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_mask_job *job = argument;
    (void)barrier;
    const int units = job->units;
    for (int row = (int)((int64_t)job->rows * thread / threads); row < (int)((int64_t)job->rows * (thread + 1) / threads); row++)
        for (int i = 0; i < units; i += LANES) {
            const size_t at = (size_t)row * units + i;
            elem mask[LANES];
            NAME(put)(mask, load(job->mask + (size_t)(row % job->batch) * units + i));
            NAME(put)((elem *)job->to + at, NAME(get)((const elem *)job->from + at) * NAME(get)(mask));
        }
}
