/* Cross-entropy and its gradient for one storage type, over rows of logits, which their gradients replace. */

/* LANES logits of a row with the bias, from column `at`; close to minus infinity beyond the vocabulary. The row is of
 * floats, or NULL and in storage. */
INLINE vec NAME(logits_at)(const cw_loss_job *job, const float *floats, const elem *stored, int at) {
    const int inside = job->vocabulary - at;
    if (inside >= LANES) return (floats ? load(floats + at) : NAME(get)(stored + at)) + load(job->bias + at);
    const ivec beyond = ~lanes_before(inside) & (ivec)same(-1e30f);
    const vec bias = (vec)((ivec)load_some(job->bias + at, inside) | beyond);
    return (floats ? load_some(floats + at, inside) : NAME(get_some)(stored + at, inside)) + bias;
}

#define AHEAD 2      /* rows, between asking for numbers and using them */
#define FETCHED 1024 /* columns; the processor sees by itself that it reads longer rows */

/* The sum of what the n-grams add to LANES logits of row `n`, from column `at`. */
INLINE vec NAME(ngrams_at)(const cw_loss_job *job, int n, int at) {
    const int left = job->vocabulary - at;
    vec sum = {0};
    for (int k = 0; k < job->ngrams->count; k++) {
        const float *from = job->ngrams->array + job->ngrams->offsets[(size_t)k * job->rows + n] + at;
        sum += left < LANES ? load_some(from, left) : load(from);
    }
    return sum;
}

/* Ask for the numbers of the n-grams of row `n`: they are anywhere in an array that no cache holds. Rows that lie
 * wholly before `first` or from `last` on are another thread's, which writes them: asking would take them from its cache. */
INLINE void NAME(fetch_ngrams)(const cw_ngrams *ngrams, int rows, int n, int vocabulary, int64_t first, int64_t last) {
    if (n >= rows || vocabulary > FETCHED) return;
    for (int k = 0; k < ngrams->count; k++) {
        const int64_t offset = ngrams->offsets[(size_t)k * rows + n];
        if (offset + vocabulary <= first || offset >= last) continue;
        const float *from = ngrams->array + offset;
        for (int at = 0; at < vocabulary + 15; at += 16) __builtin_prefetch(from + (at < vocabulary ? at : vocabulary - 1));
    }
}

/* Each thread has its own part of the array, and works on it in the order of the rows. */
static void NAME(descend)(int thread, int threads, cw_barrier *barrier, void *argument) {
    (void)barrier;
    const cw_descend_job *job = argument;
    const cw_ngrams *ngrams = job->ngrams;
    const int64_t first = ngrams->size * thread / threads, last = ngrams->size * (thread + 1) / threads;
    const vec rate = same(job->rate);
    for (int n = 0; n < job->rows; n++) {
        const elem *row = (const elem *)job->d_logits + (size_t)n * job->vocabulary;
        NAME(fetch_ngrams)(ngrams, job->rows, n + AHEAD, job->vocabulary, first, last);
        for (int k = 0; k < ngrams->count; k++) {
            const int64_t offset = ngrams->offsets[(size_t)k * job->rows + n];
            const int64_t begin = first > offset ? first - offset : 0;
            const int64_t end = last - offset < job->vocabulary ? last - offset : job->vocabulary;
            float *to = ngrams->array + offset;
            int64_t at = begin;
            for (; at + LANES <= end; at += LANES) store(to + at, load(to + at) - NAME(get)(row + at) * rate);
            if (at >= end) continue;
            const int left = (int)(end - at);
            store_some(to + at, load_some(to + at, left) - NAME(get_some)(row + at, left) * rate, left);
        }
    }
}

/* Row `n`: its loss from logits that include neither bias nor n-grams, of floats, or NULL and in storage; and, if it is
 * wanted, the gradient of the logits to `row`. `exponentials` is of the vocabulary and a vector; the logits may be there,
 * or in `row`. */
INLINE void NAME(row_loss)(const cw_loss_job *job, int n, const float *floats, const elem *stored, elem *row,
                           float *exponentials) {
    const int vocabulary = job->vocabulary, padded = (vocabulary + LANES - 1) / LANES * LANES;
    const int target = (int)job->targets[n];
    if (job->ngrams) NAME(fetch_ngrams)(job->ngrams, job->rows, n + AHEAD, vocabulary, 0, job->ngrams->size);
    vec highest = same(-3e38f);
    for (int at = 0; at < vocabulary; at += LANES) {
        vec x = NAME(logits_at)(job, floats, stored, at);
        if (job->ngrams) x += NAME(ngrams_at)(job, n, at);
        ivec higher = x > highest;
        highest = (vec)((higher & (ivec)x) | (~higher & (ivec)highest));
        store(exponentials + at, x);
    }
    float most = highest[0];
    for (int i = 1; i < LANES; i++) most = highest[i] > most ? highest[i] : most;
    const float wanted = exponentials[target];
    vec sums = {0};
    for (int at = 0; at < padded; at += LANES) {
        vec power = exponential(load(exponentials + at) - most);
        sums += power;
        store(exponentials + at, power);
    }
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += sums[i];
    job->losses[n] = logf(sum) + most - wanted;
    if (!job->wanted) return;
    const float share = job->scale / sum;
    exponentials[target] -= sum;
    for (int at = 0; at < vocabulary; at += LANES)
        NAME(put_some)(row + at, load(exponentials + at) * share, vocabulary - at);
}

#define COLUMNS 512
/* The gradient of the bias: each thread sums its own columns, in row order; a few hundred columns at a time, so that the
 * sums stay in the cache and each row is read in long pieces. */
static void NAME(sum_columns)(const cw_loss_job *job, int thread, int threads) {
    const int vocabulary = job->vocabulary, vectors = (vocabulary + LANES - 1) / LANES;
    const int begin = vectors * thread / threads * LANES, end = vectors * (thread + 1) / threads * LANES;
    float totals[COLUMNS];
    for (int stripe = begin; stripe < end; stripe += COLUMNS) {
        const int width = end - stripe < COLUMNS ? end - stripe : COLUMNS;
        memset(totals, 0, sizeof totals);
        for (int n = 0, some; n < job->rows; n += some) {
            some = job->rows - n < 4 ? 1 : 4; /* rows whose memory is read side by side */
            for (int i = 0; i < width; i += LANES) {
                const elem *from = (const elem *)job->logits + (size_t)n * vocabulary + stripe + i;
                vec total = load(totals + i);
                for (int row = 0; row < some; row++, from += vocabulary)
                    total += NAME(get_some)(from, vocabulary - stripe - i);
                store(totals + i, total);
            }
        }
        for (int i = 0; i < width && stripe + i < vocabulary; i++) job->d_bias[stripe + i] += totals[i];
    }
}

static void NAME(cross_entropy)(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_loss_job *job = argument;
    const size_t vocabulary = job->vocabulary, padded = (vocabulary + LANES - 1) / LANES * LANES;
    const int first = (int)((int64_t)job->rows * thread / threads);
    const int last = (int)((int64_t)job->rows * (thread + 1) / threads);
    float *exponentials = (float *)job->scratch + padded * thread;
    for (int n = first; n < last; n++) {
        elem *row = (elem *)job->logits + n * vocabulary;
        NAME(row_loss)(job, n, NULL, row, row, exponentials);
    }
    if (!job->wanted) return;
    cw_barrier_wait(barrier);
    NAME(sum_columns)(job, thread, threads);
}
