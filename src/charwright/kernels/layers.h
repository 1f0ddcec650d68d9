/* What the forward and the backward pass of a layer share, for one storage type: how memory is laid out, the packed
 * weights, and the recurrent product, on products.h or tiles.h.
 *
 * Each thread owns a range of units. At each step it multiplies the whole state by its own columns of the weights,
 * computes its own gates and writes its own part of the next state; a barrier ends the step. Where the weights fit into
 * the cache of a core, the rows of a batch are in two groups, and of an even number of threads half have each: one that
 * has a group to itself reads all weights, but neither waits for others nor fetches what they have written until the last
 * step. See `cw_group_rows`.
 *
 * Units are in blocks of 16. What the gates of a block use together lies together: rows of a batch that are a power of two
 * apart would compete for the same few lines of a cache.
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
/* A thread's own operand. Rows and values of k that only fill up tiles are zeros. */
INLINE elem *NAME(own_operand)(const cw_layer_job *job, int thread) {
    char *own = (char *)job->operands + thread * job->operand_bytes;
    if (TILED) memset(own, 0, job->operand_bytes);
    return (elem *)own;
}
/* The rows of an operand for a batch. */
INLINE size_t NAME(filled)(int batch) { return TILED ? ((size_t)batch + 15) / 16 * 16 : (size_t)batch; }
/* The number of rows in the next product, of `left`, for `vectors` columns side by side. */
INLINE int NAME(rows_of)(int left, int vectors) {
#if TILED
    (void)vectors;
    return left < MOST_ROWS ? left : MOST_ROWS;
#else
    return share(left, vectors == 4 ? ROWS_OF_4 : vectors == 2 ? ROWS_OF_2 : ROWS);
#endif
}
/* c (rows, vectors) = [c +] operand (rows from b, `k` of `size` values) * w. */
INLINE void NAME(multiply_operand)(const elem *operand, size_t size, int b, int rows, int k, const elem *w,
                                    size_t w_step, size_t w_vector, int vectors, float *c, size_t c_row, int adding,
                                    upcoming next) {
#if TILED
    (void)next;
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
                                   .w_vector = w_vector, .c = c, .c_row = c_row, .k = k, .adding = adding,
                                   .next = next};
    NAME(multiply)(rows, vectors, &product);
#endif
}

/* --- Packing: blocks of LANES units (vectors of them side by side), then k, then DEPTH. --- */

#define AT_ONCE 16 /* values of k; divides the number of units */

/* AT_ONCE values of k of LANES rows, `stride` apart, of which `count` exist; `step` elements between values of k. Whole
 * pieces of rows are read and narrowed; each step of k then takes one value from every row. */
INLINE void NAME(pack_rows)(const float *rows, size_t stride, int count, elem *out, size_t step) {
    elem narrow[LANES][AT_ONCE];
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < AT_ONCE; i += LANES)
            NAME(put)(narrow[lane] + i, lane < count ? load(rows + lane * stride + i) : (vec){0});
    for (int i = 0; i < AT_ONCE; i += DEPTH, out += step)
        for (int lane = 0; lane < LANES; lane++) memcpy(out + lane * DEPTH, narrow[lane] + i, DEPTH * sizeof(elem));
}

/* `count` columns of DEPTH rows, the rows of each column side by side; at most 16. */
INLINE void NAME(interleave)(const elem *first, const elem *last, int count, elem *out) {
#if STORAGE == CW_BF16
    uint32_t pairs[16];
    for (int i = 0; i < count; i++) pairs[i] = first[i] | (uint32_t)last[i] << 16;
    memcpy(out, pairs, count * sizeof(uint32_t));
#else
    (void)last;
    memcpy(out, first, count * sizeof(elem));
#endif
}

/* LANES columns of DEPTH rows, `stride` apart, of which `count` exist. */
INLINE void NAME(pack_columns)(const float *rows, size_t stride, int count, elem *out) {
    elem narrow[DEPTH][LANES];
    for (int d = 0; d < DEPTH; d++) NAME(put)(narrow[d], d < count ? load(rows + d * stride) : (vec){0});
    NAME(interleave)(narrow[0], narrow[DEPTH - 1], LANES, out);
}

static void NAME(pack)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_packing *job = argument;
    (void)barrier;
    const int units = job->units, gates = cw_product_count(job->cell), depth = NAME(padded)(units);
    const float *weights = job->weights;
    elem *packed = job->packed;
    const int blocks = units / LANES;
    const int first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    if (!job->backward) { /* out[block][k][gate][lane][depth] = weights[gate * units + unit][k] */
        const size_t step = (size_t)gates * LANES * DEPTH;
        for (int block = first; block < last; block++)
            for (int gate = 0; gate < gates; gate++) {
                const float *rows = weights + ((size_t)gate * units + (size_t)block * LANES) * units;
                elem *out = packed + (size_t)block * depth * gates * LANES + (size_t)gate * LANES * DEPTH;
                for (int k = 0; k < units; k += AT_ONCE, out += step * (AT_ONCE / DEPTH))
                    NAME(pack_rows)(rows + k, units, LANES, out, step);
                for (int k = units; k < depth; k += DEPTH, out += step) memset(out, 0, LANES * DEPTH * sizeof(elem));
            }
        return;
    }
    /* out[block][k][lane][depth] = weights[row k in gradient order][unit]; a GRU's gradients start with n. */
    for (int block = first; block < last; block++) {
        elem *out = packed + (size_t)block * depth * gates * LANES;
        for (int slot = 0; slot < gates; slot++) {
            int gate = cw_is_gru(job->cell) ? (slot + gates - 1) % gates : slot;
            const float *rows = weights + (size_t)gate * units * units + (size_t)block * LANES;
            for (int k = 0; k < units; k += DEPTH, out += LANES * DEPTH)
                NAME(pack_columns)(rows + (size_t)k * units, units, DEPTH, out);
            memset(out, 0, (size_t)(depth - units) * LANES * sizeof(elem));
            out += (size_t)(depth - units) * LANES;
        }
    }
}

/* --- Blocks of units --- */

/* Where a block of row b is in an array of `steps` steps: (groups, steps, H / 16, rows of a group, 16). What the threads
 * of a group write lies together: a processor reads ahead, and would take lines from the cache of another core. */
INLINE size_t NAME(block_at)(const cw_layer *layer, int rows, int steps, int t, int block, int b) {
    const int group = b >= rows;
    return ((size_t)(group * steps + t) * (layer->units / BLOCK) + block) * rows + b - group * rows;
}
INLINE size_t NAME(state_at)(const cw_layer_job *job, int block, int b) {
    return NAME(block_at)(job->layer, job->rows, 1, 0, block, b) * BLOCK;
}

/* Copy between an array (B, H) and blocks of states, for the rows and blocks of an area. */
static void NAME(to_blocks)(const cw_layer_job *job, float *blocks, const float *rows, cw_area area) {
    const size_t units = job->layer->units;
    for (int block = area.column; block < area.last_column; block++)
        for (int b = area.row; b < area.last_row; b++)
            memcpy(blocks + NAME(state_at)(job, block, b), rows + b * units + block * BLOCK, BLOCK * sizeof(float));
}
static void NAME(from_blocks)(const cw_layer_job *job, float *rows, const float *blocks, cw_area area) {
    const size_t units = job->layer->units;
    for (int block = area.column; block < area.last_column; block++)
        for (int b = area.row; b < area.last_row; b++)
            memcpy(rows + b * units + block * BLOCK, blocks + NAME(state_at)(job, block, b), BLOCK * sizeof(float));
}
/* The gates of a block in row b of a step: (slots, 16). What a layer does not have is neither read nor written; its
 * address is one in the hidden states, since nothing may be added to a null pointer (layers without gates have 0 slots). */
INLINE elem *NAME(gates_at)(const cw_layer *layer, int rows, int t, int block, int b) {
    return (elem *)(layer->gates ? layer->gates : layer->hidden) +
           NAME(block_at)(layer, rows, layer->steps, t, block, b) * cw_slots(layer->cell) * BLOCK;
}
/* The cell of a block in row b before step t. */
INLINE elem *NAME(cell_at)(const cw_layer *layer, int rows, int t, int block, int b) {
    return (elem *)(layer->cells ? layer->cells : layer->hidden) +
           NAME(block_at)(layer, rows, layer->steps + 1, t, block, b) * BLOCK;
}
