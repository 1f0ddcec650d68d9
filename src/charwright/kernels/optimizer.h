/* The update of a model's weights by Adam, and the norm of its gradients.
 *
 * Both read each number once, so memory is the limit. The cautious update (Liang et al., 2024, arXiv:2411.16085) reads
 * most of them twice: how far a number moves depends on how many others of its parameter do.
 *
 * The numbers are divided into chunks, and each thread has a range of them. What happens to a chunk does not depend on
 * the thread, so the result has the same bits with any number of threads.
 */

INLINE vec root(vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__) && LANES == 4
    return (vec)_mm_sqrt_ps((__m128)x);
#else
    vec result;
    for (int i = 0; i < LANES; i++) result[i] = sqrtf(x[i]);
    return result;
#endif
}

/* The sum of the squares of at most one chunk. Four sums hide the latency of an addition. */
static double squares(const float *values, int count) {
    vec sums[4] = {{0}};
    int at = 0;
    for (; at + 4 * LANES <= count; at += 4 * LANES)
        for (int i = 0; i < 4; i++) {
            const vec x = load(values + at + i * LANES);
            sums[i] += x * x;
        }
    double total = 0;
    const vec sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int i = 0; i < LANES; i++) total += sum[i];
    for (; at < count; at++) total += (double)values[at] * values[at];
    return total;
}

/* What is the same for all numbers of a parameter. */
typedef struct {
    float scale, added_decay, decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, correction, epsilon;
} adam_terms;

static adam_terms adam_terms_of(const cw_parameter *p, float scale) {
    const double corrected1 = 1 - pow(p->beta1, *p->step), corrected2 = 1 - pow(p->beta2, *p->step);
    return (adam_terms){
        .scale = scale,
        .added_decay = p->decoupled ? 0 : (float)p->decay,
        .decay_factor = p->decoupled ? (float)(1 - p->rate * p->decay) : 1,
        .beta1 = (float)p->beta1,
        .one_minus_beta1 = (float)(1 - p->beta1),
        .beta2 = (float)p->beta2,
        .one_minus_beta2 = (float)(1 - p->beta2),
        .step_size = (float)(p->rate / corrected1),
        .correction = (float)(1 / sqrt(corrected2)),
        .epsilon = (float)p->epsilon,
    };
}

/* What is done to the numbers of a chunk. */
enum { SQUARES, WHOLE_UPDATE, MOMENTS, CAUTIOUS_UPDATE };

/* The moments and the weights of a vector, or one of both. Returns 1 where they move: where the mean gradient agrees
 * with this one. */
INLINE ivec adam_vector(const adam_terms *terms, int work, float *weight, const float *gradient, float *mean,
                        float *square) {
    const vec w = load(weight), g = load(gradient) * terms->scale + w * terms->added_decay;
    vec m = load(mean), v = load(square);
    if (work != CAUTIOUS_UPDATE) {
        m = m * terms->beta1 + g * terms->one_minus_beta1;
        v = v * terms->beta2 + g * g * terms->one_minus_beta2;
        store(mean, m);
        store(square, v);
    }
    const ivec agree = ~(ivec)(m * g <= 0); /* also where that is not a number, which makes the weight one that is not */
    if (work != MOMENTS) {
        const vec moved = m * terms->step_size / (root(v) * terms->correction + terms->epsilon);
        store(weight, w * terms->decay_factor - (work == CAUTIOUS_UPDATE ? (vec)((ivec)moved & agree) : moved));
    }
    return -agree;
}

/* Works on a chunk; returns how many of its numbers move. */
INLINE int adam_chunk(const adam_terms *terms, int work, const cw_parameter *p, int64_t begin, int count) {
    float *weight = p->weight + begin, *mean = p->mean + begin, *square = p->square + begin;
    const float *gradient = p->gradient + begin;
    const adam_terms local = *terms; /* a copy, which no store can change: its fields stay in registers */
    ivec moving = {0};
    int at = 0;
    for (; at + LANES <= count; at += LANES)
        moving += adam_vector(&local, work, weight + at, gradient + at, mean + at, square + at);
    if (at < count) {
        float some[4][LANES] = {{0}};
        const size_t bytes = (size_t)(count - at) * sizeof(float);
        memcpy(some[0], weight + at, bytes);
        memcpy(some[1], gradient + at, bytes);
        memcpy(some[2], mean + at, bytes);
        memcpy(some[3], square + at, bytes);
        moving += adam_vector(&local, work, some[0], some[1], some[2], some[3]);
        memcpy(weight + at, some[0], bytes);
        memcpy(mean + at, some[2], bytes);
        memcpy(square + at, some[3], bytes);
    }
    int total = 0;
    for (int i = 0; i < LANES; i++) total += moving[i];
    return total;
}

/* The terms of a cautious parameter: its numbers move further, as few as they are, so that the mean step stays as long
 * as if all of them moved; `moving` (chunks) has how many do. */
static adam_terms rescaled(adam_terms terms, const cw_parameter *p, const double *moving) {
    double total = 0;
    for (int64_t i = 0; i < cw_chunks(p->count); i++) total += moving[i];
    const double share = total / (double)p->count;
    terms.step_size = (float)(terms.step_size / (share > 1e-3 ? share : 1e-3));
    return terms;
}

/* A thread's chunks of all parameters. */
INLINE void own_chunks(const cw_adam_job *job, int thread, int threads, int work) {
    const int64_t first = job->chunks * thread / threads, last = job->chunks * (thread + 1) / threads;
    int64_t begin = 0; /* the number of the parameter's first chunk */
    for (int i = 0; i < job->count && begin < last; i++) {
        const cw_parameter *p = job->parameters + i;
        const int64_t end = begin + cw_chunks(p->count);
        if (end > first && !(work == CAUTIOUS_UPDATE && !p->cautious)) {
            adam_terms terms = work == SQUARES ? (adam_terms){0} : adam_terms_of(p, job->scale);
            if (work == CAUTIOUS_UPDATE) terms = rescaled(terms, p, job->partial + begin);
            for (int64_t chunk = first > begin ? first : begin; chunk < end && chunk < last; chunk++) {
                const int64_t at = (chunk - begin) * CW_CHUNK, left = p->count - at;
                const int count = left < CW_CHUNK ? (int)left : CW_CHUNK;
                if (work == SQUARES) job->partial[chunk] = squares(p->gradient + at, count);
                else if (work == CAUTIOUS_UPDATE) adam_chunk(&terms, CAUTIOUS_UPDATE, p, at, count);
                else if (p->cautious) job->partial[chunk] = adam_chunk(&terms, MOMENTS, p, at, count);
                else adam_chunk(&terms, WHOLE_UPDATE, p, at, count);
            }
        }
        begin = end;
    }
}
static void norm(int thread, int threads, cw_barrier *barrier, void *argument) {
    (void)barrier;
    own_chunks(argument, thread, threads, SQUARES);
}
static void adam(int thread, int threads, cw_barrier *barrier, void *argument) {
    const cw_adam_job *job = argument;
    own_chunks(job, thread, threads, WHOLE_UPDATE);
    if (!job->partial) return;
    cw_barrier_wait(barrier); /* how many numbers move is written */
    own_chunks(job, thread, threads, CAUTIOUS_UPDATE);
}
