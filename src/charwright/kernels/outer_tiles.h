/* The gradients of weights by tiles, where a sum is read and written faster than memory can follow: so a block of c is
 * summed to its end before the next one is begun, and stays in the L2 cache meanwhile. */

/* 16 x 16 pairs, transposed. */
INLINE void NAME(transpose)(uint32_t *to, const uint32_t from[GROUP][GROUP]) {
#if CW_TILES == CW_HARDWARE
    /* Four exchanges of halves, quarters, eighths and sixteenths between rows. */
    __m512i rows[16], other[16];
    for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_si512(from[i]);
    for (int i = 0; i < 16; i += 2) {
        other[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        other[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(other[i], other[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(other[i], other[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(other[i + 1], other[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(other[i + 1], other[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        other[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        other[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        other[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        other[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(to + i * GROUP, _mm512_shuffle_i32x4(other[i], other[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 8) * GROUP, _mm512_shuffle_i32x4(other[i], other[i + 8], 0xdd));
    }
#else
    for (int i = 0; i < GROUP; i++)
        for (int j = 0; j < GROUP; j++) to[i * GROUP + j] = from[j][i];
#endif
}

/* The row of c, before first_row, and the column of a where a group of 16 begins. The slots of a block of units follow
 * one another, as in the gates, so that each cache line of these is read once. */
INLINE int NAME(row_of)(const cw_outer_job *job, int group) {
    const int slots = job->layer ? job->m / job->layer->units : 1;
    return group % slots * (job->m / slots) + group / slots * GROUP;
}

INLINE int NAME(parts)(int count, int most) { return (count + most - 1) / most; }

/* Block `i` of an area: whole pairs of groups, which are multiplied together, by some of the columns. */
INLINE cw_area NAME(block_of)(cw_area area, int i) {
    const int pairs = (area.last_row - area.row + 1) / 2, columns = area.last_column - area.column;
    const int bands = NAME(parts)(pairs, CW_BLOCK_GROUPS / 2), stripes = NAME(parts)(columns, CW_BLOCK_VECTORS);
    const int band = i / stripes, stripe = i % stripes, last_row = area.row + pairs * (band + 1) / bands * 2;
    return (cw_area){area.row + pairs * band / bands * 2, last_row < area.last_row ? last_row : area.last_row,
                     area.column + columns * stripe / stripes, area.column + columns * (stripe + 1) / stripes};
}
INLINE int NAME(block_count)(cw_area area) {
    return NAME(parts)((area.last_row - area.row + 1) / 2, CW_BLOCK_GROUPS / 2) *
           NAME(parts)(area.last_column - area.column, CW_BLOCK_VECTORS);
}

/* `k` rows of a from row `begin`, for the groups of a block: 16 columns, which become rows, then tiles of k. */
static void NAME(pack_a)(const cw_outer_job *job, cw_area block, int begin, int k, elem *packed) {
    const int tiles_of_k = (k + 31) / 32;
    for (int group = block.row; group < block.last_row; group++) {
        const int column = NAME(row_of)(job, group);
        NAME(reader) reader = NAME(read_a)(job, column, begin);
        for (int s = 0; s < tiles_of_k; s++, packed += TILE_ROWS * TILE_BYTES / sizeof(elem)) {
            uint32_t pairs[GROUP][GROUP] __attribute__((aligned(64)));
            for (int p = 0; p < 16; p++)
                NAME(next_pair)(&reader, k - (s * 16 + p) * DEPTH, job->m - column, (elem *)pairs[p]);
            NAME(transpose)((uint32_t *)packed, pairs);
        }
    }
}

/* The sums of a block have panels of at most 3 vectors, each with all rows of the block. */
static void NAME(add_to_block)(cw_area block, int tiles_of_k, const elem *packed_a, const elem *packed_b, int adding,
                               float *sums) {
    const size_t tile = TILE_ROWS * TILE_BYTES / sizeof(elem), strip = tiles_of_k * tile;
    const int groups = block.last_row - block.row;
    for (int vector = block.column, wide; vector < block.last_column; vector += wide) {
        wide = share(block.last_column - vector, 3);
        for (int i = 0, blocks; i < groups; i += blocks, sums += blocks * GROUP * wide * LANES) {
            blocks = i + 1 < groups ? 2 : 1;
            const tile_product product = {.a = packed_a + i * strip, .a_block = strip * sizeof(elem),
                                          .a_step = tile * sizeof(elem), .a_row = TILE_BYTES,
                                          .w = packed_b + vector * strip, .w_vector = strip * sizeof(elem),
                                          .w_step = tile * sizeof(elem), .w_row = TILE_BYTES, .c = sums,
                                          .c_row = wide * LANES * sizeof(float), .steps = tiles_of_k, .adding = adding};
            multiply_tiles_bf16(blocks, wide, &product);
        }
    }
}

static void NAME(write_block)(const cw_outer_job *job, cw_area block, const float *sums, int adding) {
    for (int vector = block.column, wide; vector < block.last_column; vector += wide) {
        wide = share(block.last_column - vector, 3);
        for (int group = block.row; group < block.last_row; group++, sums += GROUP * wide * LANES) {
            const int row = NAME(row_of)(job, group), rows = job->m - row < GROUP ? job->m - row : GROUP;
            float *c = job->c + (size_t)((row + job->first_row) % job->m) * job->columns + vector * LANES;
            for (int r = 0; r < rows; r++, c += job->columns)
                for (int v = 0; v < wide; v++) {
                    const vec sum = load(sums + (r * wide + v) * LANES);
                    store(c + v * LANES, adding ? sum + load(c + v * LANES) : sum);
                }
        }
    }
}

static void NAME(outer)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_outer_job *job = argument;
    const int groups = (job->m + GROUP - 1) / GROUP, some = job->columns / GROUP;
    const int first = some * thread / threads * GROUP, last = some * (thread + 1) / threads * GROUP;
    const cw_area part = NAME(part_of)(groups, some, thread, threads);
    const int together = cw_packed_together(job->n, job->depth, job->columns);
    elem *packed_b = job->scratch;
    elem *packed_a = packed_b + (size_t)together * job->columns + (size_t)thread * CW_BLOCK_BYTES(job->depth) / sizeof(elem);
    float *sums = (float *)(packed_a + (size_t)CW_BLOCK_GROUPS * GROUP * job->depth);
    begin_tiles();
    for (int begin = 0; begin < job->n; begin += together) {
        const int end = job->n - begin < together ? job->n : begin + together;
        if (begin) cw_barrier_wait(barrier); /* before any thread overwrites what another still reads */
        for (int at = begin; at < end; at += job->depth) {
            const int k = end - at < job->depth ? end - at : job->depth;
            NAME(pack_b)(job, at, k, (k + 31) / 32 * 16, first, last, packed_b + (size_t)(at - begin) * job->columns);
        }
        cw_barrier_wait(barrier);
        for (int i = 0; i < NAME(block_count)(part); i++) {
            const cw_area block = NAME(block_of)(part, i);
            for (int at = begin; at < end; at += job->depth) {
                const int k = end - at < job->depth ? end - at : job->depth;
                NAME(pack_a)(job, block, at, k, packed_a);
                NAME(add_to_block)(block, (k + 31) / 32, packed_a, packed_b + (size_t)(at - begin) * job->columns,
                                   at > begin, sums);
            }
            NAME(write_block)(job, block, sums, begin > 0);
        }
    }
    end_tiles();
}
