/* Threads, and the barrier at which they meet each step. */
#ifndef CHARWRIGHT_POOL_H
#define CHARWRIGHT_POOL_H

#include <stdatomic.h>

typedef struct {
    atomic_int arrived, round, threads;
} cw_barrier;

typedef void (*cw_job)(int thread, int threads, cw_barrier *barrier, void *argument);

/* Run `job` on `threads` threads, the caller being one of them, and return when all are done. */
void cw_parallel(int threads, cw_job job, void *argument);
void cw_meet(cw_barrier *barrier);

#endif
