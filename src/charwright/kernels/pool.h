/* Threads, and the barrier that synchronizes them at each step. */
#ifndef CHARWRIGHT_POOL_H
#define CHARWRIGHT_POOL_H

#include <stdatomic.h>

#define CW_MOST_THREADS 256

typedef struct {
    atomic_int arrived, threads;
    atomic_uint generation; /* begins again at 0 after the largest */
} cw_barrier;

typedef void (*cw_job)(int thread, int threads, cw_barrier *barrier, void *argument);

/* To be called when the library is loaded: a forked process has none of the threads. */
void cw_watch_forks(void);
/* Run `job` on `threads` threads, including the caller's, and return when all are done. */
void cw_parallel(int threads, cw_job job, void *argument);
void cw_barrier_wait(cw_barrier *barrier);

#endif
