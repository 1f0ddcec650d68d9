/* The gradients of weights: c (m, columns) = a (n, m) transposed times b (n, columns), on the products of products.h
 * or tiles.h. */

#define GROUP 16 /* columns that are packed together; a multiple of every ROWS and LANES, and a block of units */

/* Reads a group of columns, row by row. */
typedef struct {
    const elem *row;
    ptrdiff_t stride;      /* between rows */
    ptrdiff_t group, step; /* additionally, to the next group of rows; and from the last group to the next step */
    int rows, at;          /* of a group; the number of the row in it */
    int groups, current;   /* of a step; the number of the group in it */
} NAME(reader);

INLINE NAME(reader) NAME(read_rows)(const elem *from, size_t stride) {
    return (NAME(reader)){from, (ptrdiff_t)stride, 0, 0, INT32_MAX, 0, 1, 0};
}
INLINE NAME(reader) NAME(read_a)(const cw_outer_job *job, int column, int row) {
    const cw_layer *layer = job->layer;
    if (!layer) return NAME(read_rows)((const elem *)job->a + row * job->a_row + column, job->a_row);
    const int rows = cw_group_rows(layer, TILED), groups = layer->batch / rows, b = row % layer->batch;
    const elem *from = NAME(gates_at)(layer, rows, row / layer->batch, column % layer->units / GROUP, b);
    const ptrdiff_t stride = cw_slots(layer->cell) * GROUP, read = rows * stride, step = layer->units / GROUP * read;
    const ptrdiff_t group = layer->steps * step;
    return (NAME(reader)){from + column / layer->units * GROUP, stride, group - read, step - (groups - 1) * group - read,
                          rows, b % rows, groups, b / rows};
}
INLINE const elem *NAME(next_row)(NAME(reader) * reader) {
    const elem *row = reader->row;
    __builtin_prefetch(row + 16 * reader->stride); /* too far apart for the processor to foresee */
    reader->row += reader->stride;
    if (++reader->at == reader->rows) {
        reader->at = 0;
        const int is_last = ++reader->current == reader->groups;
        reader->row += is_last ? reader->step : reader->group;
        if (is_last) reader->current = 0;
    }
    return row;
}

/* DEPTH rows of a group, side by side: `width` columns of them exist; a row may be NULL, for zeros. */
INLINE void NAME(pair_up)(const elem *const rows[DEPTH], int width, elem *pairs) {
    if (width >= GROUP && rows[0] && rows[DEPTH - 1]) {
        NAME(interleave)(rows[0], rows[DEPTH - 1], GROUP, pairs);
        return;
    }
    for (int i = 0; i < GROUP; i++)
        for (int d = 0; d < DEPTH; d++) pairs[i * DEPTH + d] = rows[d] && i < width ? rows[d][i] : 0;
}
/* The next DEPTH rows, of `left`. */
INLINE void NAME(next_pair)(NAME(reader) * reader, int left, int width, elem *pairs) {
    const elem *rows[DEPTH];
    for (int d = 0; d < DEPTH; d++) rows[d] = d < left ? NAME(next_row)(reader) : NULL;
    NAME(pair_up)(rows, width, pairs);
}

/* b: vectors of LANES columns, then k. Each thread packs its share; all threads read all of it. */
static void NAME(pack_b)(const cw_outer_job *job, int begin, int k, int steps, int first, int last, elem *packed) {
    elem pairs[GROUP * DEPTH] __attribute__((aligned(64)));
    for (int at = first; at < last; at += GROUP) {
        const elem *b = (const elem *)job->b + (size_t)begin * job->b_row + at;
        NAME(reader) reader = NAME(read_rows)(b, job->b_row);
        for (int s = 0; s < steps; s++) {
            NAME(next_pair)(&reader, k - s * DEPTH, job->columns - at, pairs);
            for (int v = 0; v < GROUP / LANES; v++)
                memcpy(packed + ((size_t)(at / LANES + v) * steps + s) * LANES * DEPTH, pairs + v * LANES * DEPTH,
                       LANES * DEPTH * sizeof(elem));
        }
    }
}

/* What a thread computes of c: all columns of its groups of rows, or all rows of its groups of columns, if those can be
 * shared more evenly. */
INLINE cw_area NAME(part_of)(int groups, int some, int thread, int threads) {
    const int most_rows = (groups + threads - 1) / threads, most_columns = (some + threads - 1) / threads;
    if ((int64_t)most_rows * some > (int64_t)most_columns * groups)
        return (cw_area){0, groups, some * thread / threads, some * (thread + 1) / threads};
    return (cw_area){groups * thread / threads, groups * (thread + 1) / threads, 0, some};
}

#if TILED
#include "outer_tiles.h"
#else
static void NAME(outer)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_outer_job *job = argument;
    const int groups = (job->m + GROUP - 1) / GROUP, some = job->columns / GROUP;
    const int first = groups * thread / threads * GROUP, end = groups * (thread + 1) / threads * GROUP;
    const cw_area part = NAME(part_of)(groups, some, thread, threads);
    const int last_row = part.last_row * GROUP < job->m ? part.last_row * GROUP : job->m;
    const int vectors_end = part.last_column * (GROUP / LANES);
    elem *packed_b = job->scratch, *packed_a = packed_b + (size_t)job->depth * job->columns;
    elem pairs[GROUP * DEPTH] __attribute__((aligned(64)));
    for (int begin = 0; begin < job->n; begin += job->depth) {
        const int k = job->n - begin < job->depth ? job->n - begin : job->depth, steps = (k + DEPTH - 1) / DEPTH;
        NAME(pack_b)(job, begin, k, steps, some * thread / threads * GROUP, some * (thread + 1) / threads * GROUP,
                     packed_b);
        /* a: blocks of ROWS columns, then k. */
        for (int at = first; at < end; at += GROUP) {
            NAME(reader) reader = NAME(read_a)(job, at, begin);
            for (int s = 0; s < steps; s++) {
                NAME(next_pair)(&reader, k - s * DEPTH, job->m - at, pairs);
                for (int r = 0; r < GROUP / ROWS; r++)
                    memcpy(packed_a + ((size_t)(at / ROWS + r) * steps + s) * ROWS * DEPTH, pairs + r * ROWS * DEPTH,
                           ROWS * DEPTH * sizeof(elem));
            }
        }
        cw_barrier_wait(barrier);
        for (int vector = part.column * (GROUP / LANES), vectors; vector < vectors_end; vector += vectors) {
            vectors = share(vectors_end - vector, 3);
            for (int i = part.row * GROUP; i < last_row; i += ROWS) {
                NAME(product) product = {
                    .a = packed_a + (size_t)(i / ROWS) * steps * ROWS * DEPTH, .a_row = DEPTH, .a_step = ROWS * DEPTH,
                    .w = packed_b + (size_t)vector * steps * LANES * DEPTH, .w_step = LANES * DEPTH,
                    .w_vector = (size_t)steps * LANES * DEPTH,
                    .c = job->c + (size_t)((i + job->first_row) % job->m) * job->columns + (size_t)vector * LANES,
                    .c_row = job->columns, .k = steps * DEPTH, .adding = begin > 0,
                    .next = {(const char *)(packed_a + (size_t)(i / ROWS + 1) * steps * ROWS * DEPTH),
                             ROWS * DEPTH * sizeof(elem)}};
                NAME(multiply)(last_row - i < ROWS ? last_row - i : ROWS, vectors, &product);
            }
        }
        cw_barrier_wait(barrier); /* before any thread overwrites what another still reads */
    }
}
#endif
