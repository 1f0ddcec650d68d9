/* The products of a step: the activations of some texts times a panel of packed weights, by vectors or by tiles.
 *
 * writer.h includes this once for each storage type, with its types of values and sums.
 */
/* The most rows in a product. With tiles, activations and sums have room for whole tiles. A single text is read faster
 * by vectors. */
#if TILED
#define WRITER_ROWS (2 * TILE_ROWS)
INLINE int NAME(by_tiles)(int texts) { return texts > 1; }
#else
#define WRITER_ROWS ROWS
INLINE int NAME(by_tiles)(int texts) { return texts < 0; }
#endif
INLINE int NAME(rows_at_once)(int left, int texts) {
    return NAME(by_tiles)(texts) ? (left < WRITER_ROWS ? left : WRITER_ROWS) : share(left, ROWS);
}

/* Work of vectors, a part of which is done at each step of tiles: its structure begins with this. */
typedef struct NAME(other_work) {
    void (*advance)(struct NAME(other_work) *);
} NAME(other_work);
#define other_work NAME(other_work)

#if TILED
#if STORAGE == CW_BF16
#define tile_steps tile_steps_bf16
#else
#define tile_steps tile_steps_q8
#endif
/* The first values of k by tiles; returns how many. */
INLINE int NAME(panel_of_tiles)(const value *activations, size_t stride, int rows, const elem *packed, int width,
                                int vectors, int k, sum *sums, other_work *meanwhile) {
    const int steps = k * (int)sizeof(elem) / TILE_BYTES, blocks = rows > TILE_ROWS ? 2 : 1;
    for (int v = 0, some; steps && v < vectors; v += some) {
        some = share(vectors - v, blocks == 1 ? 6 : 3);
        const tile_product product = {
            .a = activations, .a_block = TILE_ROWS * stride * sizeof(value), .a_step = TILE_BYTES,
            .a_row = stride * sizeof(value), .w = packed + (size_t)v * LANES * DEPTH, .w_vector = TILE_BYTES,
            .w_row = (size_t)width * TILE_BYTES, .w_step = (size_t)TILE_ROWS * width * TILE_BYTES,
            .c = sums + (size_t)v * LANES, .c_row = (size_t)vectors * LANES * sizeof(sum), .steps = steps};
        const int at_once = meanwhile ? 1 : steps;
        begin_tile_sums(blocks, some, &product);
        for (int step = 0; step < steps; step += at_once) {
            tile_steps(blocks, some, &product, step, step + at_once);
            if (meanwhile) meanwhile->advance(meanwhile);
        }
        end_tile_sums(blocks, some, &product);
    }
    return steps * TILE_BYTES / (int)sizeof(elem);
}

#if STORAGE == CW_BF16
/* The same for a single text by vectors, in the order and with the rounding of tiles: even and odd values of k apart, and
 * denormal numbers are zero. */
INLINE void one_as_tiles(int vectors, const value *activations, const elem *packed, int width, int steps, sum *sums) {
    vec total[8];
    UNROLL_FULLY
    for (int v = 0; v < vectors; v++) total[v] = (vec){0};
    for (int step = 0; step < steps; step++) {
        vec even[8], odd[8];
        UNROLL_FULLY
        for (int v = 0; v < vectors; v++) even[v] = odd[v] = (vec){0};
        for (int pair = 0; pair < TILE_ROWS; pair++, activations += DEPTH, packed += (size_t)width * LANES * DEPTH) {
            uint32_t both;
            memcpy(&both, activations, sizeof both);
            const uvec a = both - (uvec){0};
            UNROLL_FULLY
            for (int v = 0; v < vectors; v++) {
                uvec w;
                memcpy(&w, packed + v * LANES * DEPTH, sizeof w);
                even[v] = flushed(even[v] + flushed((vec)(a << 16)) * flushed((vec)(w << 16)));
                odd[v] = flushed(odd[v] + flushed((vec)(a & 0xffff0000u)) * flushed((vec)(w & 0xffff0000u)));
            }
        }
        UNROLL_FULLY
        for (int v = 0; v < vectors; v++) total[v] = flushed(total[v] + flushed(even[v] + odd[v]));
    }
    UNROLL_FULLY
    for (int v = 0; v < vectors; v++) store(sums + v * LANES, total[v]);
}
#define ONE_CASE(vectors)                                               \
    case vectors:                                                       \
        one_as_tiles(vectors, activations, packed, width, steps, sums); \
        break;
/* A call of its own, so that no other arithmetic is within the mode without denormal numbers. */
static __attribute__((noinline)) void any_as_tiles(const value *activations, const elem *packed, int width, int vectors,
                                                   int steps, sum *sums) {
    switch (vectors) {
        ONE_CASE(1) ONE_CASE(2) ONE_CASE(3) ONE_CASE(4) ONE_CASE(5) ONE_CASE(6) ONE_CASE(7) ONE_CASE(8)
    }
}
static int panel_of_one(const value *activations, const elem *packed, int width, int vectors, int k, sum *sums) {
    const unsigned mode = without_denormals_from_here();
    any_as_tiles(activations, packed, width, vectors, k / 32, sums);
    with_denormals_again(mode);
    return k / 32 * 32;
}
#undef ONE_CASE
#endif
#endif

/* sums (rows, vectors) = activations * vectors of a panel of the matrix. */
static void NAME(panel)(const value *activations, size_t stride, int rows, const elem *packed, int width, int begin,
                        int vectors, int k, int texts, sum *sums, other_work *meanwhile) {
    const size_t w_step = (size_t)width * LANES * DEPTH, c_row = (size_t)vectors * LANES;
    packed += (size_t)begin * LANES * DEPTH;
#if TILED
    if (NAME(by_tiles)(texts) || STORAGE == CW_BF16) {
#if STORAGE == CW_BF16
        const int done = texts == 1
                             ? panel_of_one(activations, packed, width, vectors, k, sums)
                             : panel_of_tiles_bf16(activations, stride, rows, packed, width, vectors, k, sums, meanwhile);
#else
        const int done = panel_of_tiles_q8(activations, stride, rows, packed, width, vectors, k, sums, meanwhile);
#endif
        for (int v = 0, wide; done < k && v < vectors; v += wide) { /* what does not fill a tile */
            wide = share(vectors - v, 3);
            for (int r = 0; r < rows; r += ROWS) {
                const NAME(product) product = {
                    .a = activations + r * stride + done, .a_row = stride, .a_step = DEPTH,
                    .w = packed + done / DEPTH * w_step + (size_t)v * LANES * DEPTH, .w_step = w_step,
                    .w_vector = LANES * DEPTH, .c = sums + r * c_row + (size_t)v * LANES, .c_row = c_row, .k = k - done,
                    .adding = done > 0};
                NAME(multiply)(rows - r < ROWS ? rows - r : ROWS, wide, &product);
            }
        }
        return;
    }
#endif
    (void)texts, (void)meanwhile;
    const NAME(product) product = {.a = activations, .a_row = stride, .a_step = DEPTH, .w = packed, .w_step = w_step,
                                   .w_vector = LANES * DEPTH, .c = sums, .c_row = c_row, .k = k};
    NAME(multiply)(rows, vectors, &product);
}

/* Blocks of units whose products are made at once: `together` from block `block` of the panel on, which has `in_panel`
 * after `first` others; the next panel has `in_next` after `next` others. The same in both matrices of a layer, which may
 * differ in their number of gates. */
typedef struct {
    int first, in_panel, block, together, next, in_next;
} NAME(place);

/* Number i of the panels of `wide` blocks from `begin` to `end`; with `back`, from the last to the first. Every other step
 * goes back: the cache still has the weights that were read last, if not all. */
INLINE NAME(place) NAME(place_at)(int i, int begin, int end, int back, int wide, int blocks) {
    const int panel = back ? end - 1 - i : begin + i;
    const int next = begin + i + 1 == end ? panel : back ? panel - 1 : panel + 1;
    NAME(place) at = {.first = panel * wide, .next = next * wide};
    at.in_panel = blocks - at.first < wide ? blocks - at.first : wide;
    at.in_next = next == panel ? 0 : blocks - at.next < wide ? blocks - at.next : wide;
    return at;
}

#define MOST_VECTORS 12 /* in a product */

/* The products of some texts with these blocks of a matrix, in the order of text, block, gate. */
INLINE void NAME(multiply_blocks)(const cw_writing *w, const value *from, int rows, const cw_matrix *matrix, int gates,
                                  NAME(place) at, sum *sums, other_work *meanwhile) {
    const int units = w->model->units, vectors = at.together * gates;
    const elem *packed = (const elem *)matrix->packed + (size_t)at.first * gates * LANES * units;
    /* A single text may have more vectors than there are registers for sums. */
    const int most = vectors > 8 ? 6 : vectors;
    for (int v = 0; v < vectors; v += most)
        NAME(panel)(from, units, rows, packed, at.in_panel * gates, at.block * gates + v,
                    vectors - v < most ? vectors - v : most, units, w->count, sums + v * LANES, meanwhile);
}

#if TILED
/* Weights that come next, to be prefetched bit by bit: a tile's rows are apart, which the processor does not foresee. */
typedef struct {
    const elem *from;
    size_t row; /* elements from a row to the next */
    int gates, left, at_once;
} NAME(weights_ahead);

/* The part of the weights of the block after `at` that is prefetched while the texts from `text` on are multiplied. */
INLINE NAME(weights_ahead) NAME(ahead_of)(const cw_writing *w, const cw_matrix *matrix, int gates, NAME(place) at, int text) {
    const int units = w->model->units, rows = units / DEPTH, here = at.block + 1 < at.in_panel;
    const int parts = (w->count + WRITER_ROWS - 1) / WRITER_ROWS, part = text / WRITER_ROWS;
    const size_t vector = here ? (size_t)at.first * units + (at.block + 1) * DEPTH : (size_t)at.next * units;
    const size_t width = (size_t)(here ? at.in_panel : at.in_next) * gates;
    const int begin = rows * part / parts, end = width ? rows * (part + 1) / parts : begin;
    const elem *first = (const elem *)matrix->packed + vector * gates * LANES;
    const int steps = units * (int)sizeof(elem) / TILE_BYTES;
    return (NAME(weights_ahead)){.from = first + begin * width * LANES * DEPTH, .row = width * LANES * DEPTH,
                                 .gates = gates, .left = end - begin,
                                 .at_once = steps ? (end - begin + steps - 1) / steps : 0};
}
INLINE void NAME(prefetch_some)(NAME(weights_ahead) *ahead) {
    for (int i = 0; i < ahead->at_once && ahead->left; i++, ahead->left--, ahead->from += ahead->row)
        for (int gate = 0; gate < ahead->gates; gate++) __builtin_prefetch(ahead->from + gate * LANES * DEPTH, 0, 2);
}
#endif
