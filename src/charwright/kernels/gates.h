/* The gates of a step of a text, in two halves; writer.h includes this once for each storage type.
 *
 * The first half replaces `sums`, the recurrent product, a vector per gate that has one, by what the second needs: the
 * argument of the last tanh, and the gate z or o. `x` is the input, a vector per gate. Each half is applied to all rows of
 * a product in turn. Both at once are a chain of operations that wait for each other, too long for the processor to begin
 * with the next row meanwhile.
 */
#if STORAGE == CW_Q8
/* Numbers are limited here where tanh_of, which takes every number beyond 32,767 for that, does not do it. */
#define PRE_LIMIT 32767
INLINE ivec NAME(product_of)(const cw_writing *w, const cw_matrix *matrix, const sum *sums, size_t row) {
    const ivec total = load_whole(sums) + load_whole(matrix->corrections + row);
    const ivec by = load_whole(matrix->multipliers + row);
    return w->limited ? scaled(total, by, (ivec){0}, 20, INT32_MAX / 2) : requantized(total, by);
}
INLINE ivec NAME(input_of_table)(const cw_model *model, size_t at) {
    return load_short((const int16_t *)model->table + at);
}
INLINE ivec NAME(input_of_layer)(const cw_writing *w, const cw_matrix *matrix, const sum *sums, size_t row) {
    const ivec bias = load_whole((const int32_t *)matrix->bias + row);
    return within(NAME(product_of)(w, matrix, sums, row) + bias, PRE_LIMIT);
}
INLINE void NAME(first_gates)(const int cell, const cw_writing *w, const cw_matrix *matrix, state_t *c, size_t unit,
                              sum *sums, const ivec *x) {
    const int16_t *table = w->model->tanh_table;
    const size_t units = w->model->units;
    ivec pre[4];
    for (int g = 0; g < cw_product_count(cell); g++)
        pre[g] = NAME(product_of)(w, matrix, sums + g * LANES, g * units + unit);
    if (cw_is_gru(cell)) {
        const int of_z = cw_product_count(cell) - 2, of_n = of_z + 1; /* an input-reset GRU has none of r */
        const ivec r = sigmoid_of(table, of_z ? x[0] + pre[0] : x[0]), z = sigmoid_of(table, x[1] + pre[of_z]);
        const ivec u = within(pre[of_n] + load_whole((const int32_t *)matrix->bias + of_n * units + unit), PRE_LIMIT);
        store_whole(sums, (x[2] + ((r * u + (1 << 14)) >> 15)) * 2);
        store_whole(sums + LANES, z);
    } else if (cell == CW_LSTM) {
        const ivec i = sigmoid_of(table, x[0] + pre[0]), f = sigmoid_of(table, x[1] + pre[1]);
        const ivec g = tanh_of(table, within(x[2] + pre[2], PRE_LIMIT) * 2);
        const ivec o = sigmoid_of(table, x[3] + pre[3]);
        const ivec after_c = scaled(f, load_whole(c + unit), i * g, 15, (1 << 21) - 1);
        store_whole(c + unit, after_c);
        store_whole(sums, (after_c + 4) >> 3);
        store_whole(sums + LANES, o);
    } else {
        store_whole(sums, within(x[0] + pre[0], PRE_LIMIT) * 2);
    }
}
INLINE void NAME(last_gates)(const int cell, const cw_model *model, state_t *h, const sum *kept) {
    ivec after = tanh_of(model->tanh_table, load_whole(kept));
    if (cell != CW_RNN) {
        const ivec gate = load_whole(kept + LANES);
        if (cell == CW_LSTM) after = (gate * after + (1 << 14)) >> 15;
        else after += (gate * (load_whole(h) - after) + (1 << 14)) >> 15;
    }
    store_whole(h, after);
}
#else
INLINE vec NAME(input_of_table)(const cw_model *model, size_t at) { return NAME(get)((const elem *)model->table + at); }
INLINE vec NAME(input_of_layer)(const cw_writing *w, const cw_matrix *matrix, const sum *sums, size_t row) {
    (void)w;
    return load(sums) + load((const float *)matrix->bias + row);
}
INLINE void NAME(first_gates)(const int cell, const cw_writing *w, const cw_matrix *matrix, state_t *c, size_t unit,
                              sum *sums, const vec *x) {
    const size_t units = w->model->units;
    if (cw_is_gru(cell)) {
        const int of_z = cw_product_count(cell) - 2, of_n = of_z + 1; /* an input-reset GRU has none of r */
        const vec r = sigmoid(of_z ? x[0] + load(sums) : x[0]), z = sigmoid(x[1] + load(sums + of_z * LANES));
        const vec u = load(sums + of_n * LANES) + load((const float *)matrix->bias + of_n * units + unit);
        store(sums, x[2] + r * u);
        store(sums + LANES, z);
    } else if (cell == CW_LSTM) {
        const vec i = sigmoid(x[0] + load(sums)), f = sigmoid(x[1] + load(sums + LANES));
        const vec g = hyperbolic_tangent(x[2] + load(sums + 2 * LANES)), o = sigmoid(x[3] + load(sums + 3 * LANES));
        const vec after_c = f * load(c + unit) + i * g;
        store(c + unit, after_c);
        store(sums, after_c);
        store(sums + LANES, o);
    } else {
        store(sums, x[0] + load(sums));
    }
}
INLINE void NAME(last_gates)(const int cell, const cw_model *model, state_t *h, const sum *kept) {
    (void)model;
    vec after = hyperbolic_tangent(load(kept));
    if (cell != CW_RNN) {
        const vec gate = load(kept + LANES);
        if (cell == CW_LSTM) after = gate * after;
        else after += gate * (load(h) - after);
    }
    store(h, after);
}
#endif
