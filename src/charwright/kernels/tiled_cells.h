/* A layer's step for several texts with tiles. These leave the units for vectors idle: while they multiply, the gates of the
 * product before are computed. writer.h includes this once for each storage type.
 */
#if TILED
#define MOST_GATES 4
#define GATES_AT_ONCE 2 /* rows whose gates are computed after each step of the tiles */

/* The products of some texts with the weights of LANES units, and how far their gates are. */
typedef struct {
    other_work as_work;
    const cw_writing *writing;
    int layer, text, rows, next; /* the first halves of the rows before `next` are done */
    size_t unit;
    NAME(weights_ahead) ahead;
    sum sums[WRITER_ROWS * MOST_GATES * LANES] __attribute__((aligned(64)));
    sum input_sums[WRITER_ROWS * MOST_GATES * LANES] __attribute__((aligned(64)));
} NAME(tiled_gates);

/* The first half of the gates of the next rows, and the second half of those before, which does not wait for it. */
INLINE void NAME(advance_gates)(const int cell, NAME(tiled_gates) *gates) {
    const int products = cw_product_count(cell), inputs = cw_gate_count(cell), next = gates->next;
    for (int r = next; r < next + GATES_AT_ONCE && r < gates->rows; r++)
        NAME(first_half)(cell, gates->writing, gates->layer, gates->text + r, gates->unit,
                         gates->sums + r * products * LANES, gates->input_sums + r * inputs * LANES);
    for (int r = next < GATES_AT_ONCE ? 0 : next - GATES_AT_ONCE; r < next && r < gates->rows; r++)
        NAME(second_half)(cell, gates->writing, gates->layer, gates->text + r, gates->unit,
                          gates->sums + r * products * LANES);
    gates->next += GATES_AT_ONCE;
}
INLINE int NAME(gates_left)(const NAME(tiled_gates) *gates) { return gates->next < gates->rows + GATES_AT_ONCE; }
INLINE void NAME(finish_gates)(const int cell, NAME(tiled_gates) *gates) {
    while (NAME(gates_left)(gates)) NAME(advance_gates)(cell, gates);
}

#define ADVANCE(name, cell)                                                \
    static void NAME(name)(other_work *work) {                             \
        NAME(tiled_gates) *gates = (NAME(tiled_gates) *)work;              \
        NAME(prefetch_some)(&gates->ahead);                                \
        if (NAME(gates_left)(gates)) NAME(advance_gates)(cell, gates);     \
    }
ADVANCE(advance_gru, CW_GRU)
ADVANCE(advance_input_reset, CW_IGRU)
ADVANCE(advance_lstm, CW_LSTM)
ADVANCE(advance_rnn, CW_RNN)

/* The gates of up to WRITER_ROWS texts from `text` on, for a block of units of a layer, before their products are made. */
INLINE void NAME(begin_gates)(const int cell, NAME(tiled_gates) *gates, const cw_writing *w, int layer, int text, int block) {
    gates->as_work.advance = cell == CW_GRU    ? NAME(advance_gru)
                             : cell == CW_IGRU ? NAME(advance_input_reset)
                             : cell == CW_LSTM ? NAME(advance_lstm)
                                               : NAME(advance_rnn);
    gates->writing = w;
    gates->layer = layer;
    gates->text = text;
    gates->rows = w->count - text < WRITER_ROWS ? w->count - text : WRITER_ROWS;
    gates->next = 0;
    gates->unit = (size_t)block * LANES;
}

INLINE void NAME(write_tiled_cells)(const int cell, const cw_writing *w, int layer, int thread) {
    const int units = w->model->units, blocks = units / LANES;
    const int gates = cw_gate_count(cell), products = cw_product_count(cell);
    const int wide = PANEL_BLOCKS(cell), panels = (blocks + wide - 1) / wide;
    const cw_matrix *recurrent = w->model->recurrent + layer, *inputs = w->model->inputs + layer;
    const value *before = NAME(recurrent_input)(w, layer), *below = layer ? NAME(activations)(w, layer - 1, 1) : NULL;
    const int begin = cw_share(w->shares, panels, thread), end = cw_share(w->shares, panels, thread + 1);
    NAME(tiled_gates) both[2], *last = NULL;
    for (int i = 0, turn = 0; i < end - begin; i++) {
        NAME(place) at = NAME(place_at)(i, begin, end, w->turn, wide, blocks);
        for (at.together = 1; at.block < at.in_panel; at.block++)
            for (int text = 0; text < w->count; text += WRITER_ROWS, turn ^= 1) {
                NAME(tiled_gates) *now = both + turn;
                const size_t row = (size_t)text * units;
                NAME(begin_gates)(cell, now, w, layer, text, at.first + at.block);
                if (last) last->ahead = NAME(ahead_of)(w, recurrent, products, at, text);
                other_work *meanwhile = last ? &last->as_work : NULL;
                NAME(multiply_blocks)(w, before + row, now->rows, recurrent, products, at, now->sums, meanwhile);
                if (layer) NAME(multiply_blocks)(w, below + row, now->rows, inputs, gates, at, now->input_sums, meanwhile);
                if (last) NAME(finish_gates)(cell, last);
                last = now;
            }
    }
    if (last) NAME(finish_gates)(cell, last);
}
#undef GATES_AT_ONCE
#undef MOST_GATES
#undef ADVANCE
#endif
