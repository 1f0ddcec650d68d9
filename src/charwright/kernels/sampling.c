/* Sample an id from logits: masks, repetition penalty, temperature, top-k, top-p, min-p, and a random number by Philox.
 *
 * generation/sampling.py is the reference: the same operations in the same order, all in double precision, so that both
 * sample the same ids. For this reason, this file is compiled without contraction into fused multiply-adds.
 */
#include <math.h>
#include <string.h>

#include "variant.h"

/* --- Philox4x64-10 (Salmon et al., 2011), with NumPy's key and counter --- */

static uint64_t multiply(uint64_t a, uint64_t b, uint64_t *high) {
#if defined(__SIZEOF_INT128__)
    const unsigned __int128 product = (unsigned __int128)a * b;
    *high = (uint64_t)(product >> 64);
    return (uint64_t)product;
#else
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (uint32_t)middle;
    *high = a1 * b1 + (middle >> 32) + (other >> 32);
    return other << 32 | (uint32_t)low;
#endif
}

/* Random number `index` of the stream, in [0, 1), with 53 bits. */
static double uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    uint64_t counter[4] = {index / 4 + 1, 0, 0, 0}, key[2] = {seed, stream};
    for (int round = 0; round < 10; round++) {
        uint64_t high0, high2;
        const uint64_t low0 = multiply(0xD2E7470EE14C6C93u, counter[0], &high0);
        const uint64_t low2 = multiply(0xCA5A826395121157u, counter[2], &high2);
        counter[0] = high2 ^ counter[1] ^ key[0];
        counter[2] = high0 ^ counter[3] ^ key[1];
        counter[1] = low2;
        counter[3] = low0;
        key[0] += 0x9E3779B97F4A7C15u;
        key[1] += 0xBB67AE8584CAA73Bu;
    }
    return (double)(counter[index % 4] >> 11) * (1.0 / 9007199254740992.0);
}

/* --- Sampling --- */

/* Lower the scores of ids that would continue a repetition: see generation/sampling.py. */
static void penalize(const cw_sampler *sampler, double *scores, int vocabulary, const int32_t *ids, int64_t length,
                     int32_t *repeats) {
    memset(repeats, 0, (size_t)vocabulary * sizeof *repeats);
    const int64_t first = length > sampler->penalty_window ? length - sampler->penalty_window : 0;
    for (int64_t next = first + 1; next < length; next++) {
        int32_t same = 0; /* length of the match between the ids before `next` and the end */
        while (next - 1 - same >= first && ids[next - 1 - same] == ids[length - 1 - same]) same++;
        if (same > repeats[ids[next]]) repeats[ids[next]] = same;
    }
    for (int i = 0; i < vocabulary; i++)
        if (repeats[i] >= sampler->penalty_from)
            scores[i] -= sampler->penalty * (double)(repeats[i] - sampler->penalty_from + 1);
}

/* A heap of ids, the most likely on top; of equals, the smaller id. */
static int before(const double *weights, int32_t a, int32_t b) {
    return weights[a] > weights[b] || (weights[a] == weights[b] && a < b);
}
static void sink(const double *weights, int32_t *heap, int size, int at) {
    for (int child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && before(weights, heap[child + 1], heap[child])) child++;
        if (!before(weights, heap[child], heap[at])) return;
        const int32_t other = heap[at];
        heap[at] = heap[child];
        heap[child] = other;
    }
}
static int32_t pop(const double *weights, int32_t *heap, int *size) {
    const int32_t top = heap[0];
    heap[0] = heap[--*size];
    sink(weights, heap, *size, 0);
    return top;
}
static void make_heap(const double *weights, int vocabulary, int32_t *heap) {
    for (int i = 0; i < vocabulary; i++) heap[i] = i;
    for (int i = vocabulary / 2 - 1; i >= 0; i--) sink(weights, heap, vocabulary, i);
}

/* The sum of each weight with those before it. */
static void add_up(const double *weights, int vocabulary, double *sums) {
    double sum = 0;
    for (int i = 0; i < vocabulary; i++) sums[i] = sum += weights[i];
}

/* Keep the k most likely of `weights`; set the others to 0. */
static void keep_likeliest(double *weights, int vocabulary, int k, int32_t *heap, double *kept) {
    make_heap(weights, vocabulary, heap);
    memset(kept, 0, (size_t)vocabulary * sizeof *kept);
    for (int size = vocabulary; k > 0; k--) {
        const int32_t id = pop(weights, heap, &size);
        kept[id] = weights[id];
    }
    memcpy(weights, kept, (size_t)vocabulary * sizeof *kept);
}
/* Keep the most likely ids whose weights add up to `limit`. */
static void keep_nucleus(double *weights, int vocabulary, double limit, int32_t *heap, double *kept) {
    make_heap(weights, vocabulary, heap);
    memset(kept, 0, (size_t)vocabulary * sizeof *kept);
    double passed = 0;
    for (int size = vocabulary; size > 0 && passed < limit;) {
        const int32_t id = pop(weights, heap, &size);
        kept[id] = weights[id];
        passed += weights[id];
    }
    memcpy(weights, kept, (size_t)vocabulary * sizeof *kept);
}

/* The scores, their sums and those that are kept, and the heap, of a size that keeps the next thread's memory aligned. */
size_t cw_draw_bytes(int vocabulary) { return (size_t)vocabulary * (3 * sizeof(double) + 2 * sizeof(int32_t)); }

/* The first id with the largest score. Several maxima at once: one alone would wait for itself at every id. */
static int most_likely(const double *scores, int vocabulary) {
    double highest[8], largest = scores[0];
    for (int j = 0; j < 8; j++) highest[j] = scores[0];
    int i = 0;
    for (; i + 8 <= vocabulary; i += 8)
        for (int j = 0; j < 8; j++) highest[j] = scores[i + j] > highest[j] ? scores[i + j] : highest[j];
    for (; i < vocabulary; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (int j = 0; j < 8; j++) largest = highest[j] > largest ? highest[j] : largest;
    for (i = 0; i < vocabulary; i++)
        if (scores[i] == largest) return i;
    return 0; /* the first score is not a number */
}

/* The first id at which the sum of the weights so far is more than `goal`; `otherwise`, if no weight is positive, since the
 * logits are not finite or all have been left out. */
static int first_beyond(const double *sums, int vocabulary, double goal, int otherwise) {
    int low = 0, high = vocabulary;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (sums[middle] > goal) high = middle;
        else low = middle + 1;
    }
    return low < vocabulary ? low : otherwise;
}

int cw_draw(int variant, cw_sampler *sampler, const double *logits, int vocabulary, const int32_t *ids, int64_t length,
            void *scratch) {
    double *scores = scratch, *sums = scores + vocabulary, *spare = sums + vocabulary;
    int32_t *heap = (int32_t *)(spare + vocabulary);
    memcpy(scores, logits, (size_t)vocabulary * sizeof *scores);
    for (int i = 0; sampler->masked && i < vocabulary; i++)
        if (sampler->masked[i]) scores[i] = -INFINITY;
    if (sampler->penalty != 0 && length > 1) penalize(sampler, scores, vocabulary, ids, length, heap);
    const int best = most_likely(scores, vocabulary);
    const double random = uniform(sampler->seed, sampler->stream, sampler->drawn++);
    if (sampler->temperature == 0) return best;
    cw_chosen(variant)->exponentials(scores, vocabulary, scores[best], sampler->temperature, sums);
    const double *total = sums + vocabulary - 1;
    if (sampler->top_k > 0 && sampler->top_k < vocabulary) {
        keep_likeliest(scores, vocabulary, sampler->top_k, heap, spare);
        add_up(scores, vocabulary, sums);
    }
    if (sampler->top_p < 1) {
        keep_nucleus(scores, vocabulary, sampler->top_p * *total, heap, spare);
        add_up(scores, vocabulary, sums);
    }
    if (sampler->min_p > 0) { /* the most likely id has 1 */
        for (int i = 0; i < vocabulary; i++)
            if (scores[i] < sampler->min_p) scores[i] = 0;
        add_up(scores, vocabulary, sums);
    }
    return first_beyond(sums, vocabulary, random * *total, best);
}
