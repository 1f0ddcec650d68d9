/* How the threads share the work of a step: each has a part in proportion to its speed so far. Cores differ, and a core of a
 * virtual machine may share its units with a neighbour. Whose part a sum belongs to does not change it.
 */
#ifndef CHARWRIGHT_SHARES_H
#define CHARWRIGHT_SHARES_H

#include <stdint.h>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include "pool.h"

#define CW_WHOLE (1 << 16)

/* The parts of the threads end at ends[1], ends[2], ..., CW_WHOLE. */
typedef struct {
    int threads, steps; /* steps since the last change */
    int32_t ends[CW_MOST_THREADS + 1];
} cw_shares;

/* What a thread has spent since the last change, apart from that of the others in the cache. */
typedef struct {
    uint64_t ticks;
    char padding[120];
} cw_spent;

/* The steps from a change to the next, and the fewest that tell a thread's speed. */
#ifndef CW_STEPS_OF_SHARES
#define CW_STEPS_OF_SHARES 16
#endif
#define CW_FEWEST_STEPS 4

/* A clock whose unit does not matter; always 0 where none is at hand, so that the parts stay equal. */
static inline uint64_t cw_ticks(void) {
#if defined(__x86_64__) || defined(_M_X64)
    return __rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return 0;
#endif
}

static inline void cw_share_equally(cw_shares *shares, int threads) {
    shares->threads = threads;
    shares->steps = 0;
    for (int i = 0; i <= threads; i++) shares->ends[i] = (int32_t)((int64_t)CW_WHOLE * i / threads);
}

/* Where the part of `thread` of `count` pieces begins, which is where that of the thread before ends. */
static inline int cw_share(const cw_shares *shares, int count, int thread) {
    return (int)(((int64_t)count * shares->ends[thread] + CW_WHOLE / 2) / CW_WHOLE);
}

/* Go half of the way to the parts with which all would have spent the same time. Each thread keeps at least one of
 * `pieces`, which tells its speed. Differences of less than an eighth stay: a core would have to fetch what another one
 * has in its cache. */
static inline void cw_adapt_shares(cw_shares *shares, const cw_spent *spent, int pieces) {
    const int threads = shares->threads;
    uint64_t least = UINT64_MAX, most = 0;
    for (int i = 0; i < threads; i++) {
        least = spent[i].ticks < least ? spent[i].ticks : least;
        most = spent[i].ticks > most ? spent[i].ticks : most;
    }
    shares->steps = 0;
    if (least == 0 || most < least + least / 8 || pieces < 2 * threads) return;
    double speeds = 0, parts[CW_MOST_THREADS], sum = 0;
    for (int i = 0; i < threads; i++) speeds += (shares->ends[i + 1] - shares->ends[i]) / (double)spent[i].ticks;
    for (int i = 0; i < threads; i++) {
        const double part = shares->ends[i + 1] - shares->ends[i], smallest = (CW_WHOLE + pieces) / pieces;
        parts[i] = (part + CW_WHOLE * part / (double)spent[i].ticks / speeds) / 2;
        if (parts[i] < smallest) parts[i] = smallest;
        sum += parts[i];
    }
    double end = 0;
    for (int i = 0; i + 1 < threads; i++) shares->ends[i + 1] = (int32_t)(CW_WHOLE * ((end += parts[i]) / sum));
}

#endif
