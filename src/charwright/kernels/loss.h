/* Cross-entropy and its gradient for one storage type, over rows of logits, which their gradients replace. */

/* LANES logits of a row with the bias, from column `at`; close to minus infinity beyond the vocabulary. */
INLINE vec NAME(logits_at)(const cw_loss_job *job, const elem *row, int at) {
    if (at + LANES <= job->vocabulary) return NAME(get)(row + at) + load(job->bias + at);
    elem rest[LANES] = {0};
    float bias[LANES];
    for (int i = 0; i < LANES; i++) {
        const int inside = at + i < job->vocabulary;
        rest[i] = inside ? row[at + i] : 0;
        bias[i] = inside ? job->bias[at + i] : -1e30f;
    }
    return NAME(get)(rest) + load(bias);
}
INLINE void NAME(put_some)(elem *row, int at, int vocabulary, vec v) {
    if (at + LANES <= vocabulary) {
        NAME(put)(row + at, v);
        return;
    }
    elem all[LANES];
    NAME(put)(all, v);
    memcpy(row + at, all, (size_t)(vocabulary - at) * sizeof(elem));
}

#define COLUMNS 512
static void NAME(cross_entropy)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_loss_job *job = argument;
    const int vocabulary = job->vocabulary, padded = (vocabulary + LANES - 1) / LANES * LANES;
    const int first = (int)((int64_t)job->rows * thread / threads);
    const int last = (int)((int64_t)job->rows * (thread + 1) / threads);
    float *powers = (float *)job->scratch + (size_t)padded * thread;
    for (int n = first; n < last; n++) {
        elem *row = (elem *)job->logits + (size_t)n * vocabulary;
        const int target = (int)job->targets[n];
        vec highest = same(-3e38f);
        for (int at = 0; at < vocabulary; at += LANES) {
            vec x = NAME(logits_at)(job, row, at);
            ivec higher = x > highest;
            highest = (vec)((higher & (ivec)x) | (~higher & (ivec)highest));
            store(powers + at, x);
        }
        float most = highest[0];
        for (int i = 1; i < LANES; i++) most = highest[i] > most ? highest[i] : most;
        const float wanted = powers[target];
        vec sums = {0};
        for (int at = 0; at < padded; at += LANES) {
            vec power = exponential(load(powers + at) - most);
            sums += power;
            store(powers + at, power);
        }
        float sum = 0;
        for (int i = 0; i < LANES; i++) sum += sums[i];
        job->losses[n] = logf(sum) + most - wanted;
        if (!job->wanted) continue;
        const float share = job->scale / sum;
        powers[target] -= sum;
        for (int at = 0; at < vocabulary; at += LANES) NAME(put_some)(row, at, vocabulary, load(powers + at) * share);
    }
    if (!job->wanted) return;
    cw_meet(barrier);
    /* The gradient of the bias: each thread sums its own columns, in row order; a few hundred columns at a time, so
     * that the sums stay in the cache and each row is read in long pieces. */
    const int vectors = padded / LANES;
    const int begin = vectors * thread / threads * LANES, end = vectors * (thread + 1) / threads * LANES;
    float totals[COLUMNS];
    for (int stripe = begin; stripe < end; stripe += COLUMNS) {
        const int width = end - stripe < COLUMNS ? end - stripe : COLUMNS;
        memset(totals, 0, sizeof totals);
        for (int n = 0; n < job->rows; n++)
            for (int i = 0; i < width; i += LANES) {
                const elem *from = (const elem *)job->logits + (size_t)n * vocabulary + stripe + i;
                const int count = vocabulary - stripe - i;
                elem some[LANES] = {0};
                if (count < LANES) memcpy(some, from, count * sizeof(elem));
                store(totals + i, load(totals + i) + NAME(get)(count < LANES ? some : from));
            }
        for (int i = 0; i < width && stripe + i < vocabulary; i++) job->d_bias[stripe + i] += totals[i];
    }
}
