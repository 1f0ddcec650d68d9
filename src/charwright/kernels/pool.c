/* Two kinds of threads: the library's own, which sleep between jobs, or those of an OpenMP runtime already in the
 * process. A runtime's threads spin for a while after each of its jobs and would compete with other threads for the
 * cores, so they are used if there is such a runtime.
 *
 * The library's own threads run one job at a time: a second caller waits for the first.
 */
#include "charwright_kernels.h"
#include "pool.h"

#if defined(_WIN32)
#include <windows.h>
typedef SRWLOCK lock_t;
typedef CONDITION_VARIABLE signal_t;
#define LOCK_READY SRWLOCK_INIT
#define SIGNAL_READY CONDITION_VARIABLE_INIT
#define acquire(lock) AcquireSRWLockExclusive(lock)
#define release(lock) ReleaseSRWLockExclusive(lock)
#define wait_for(signal, lock) SleepConditionVariableSRW(signal, lock, INFINITE, 0)
#define wake_all(signal) WakeAllConditionVariable(signal)
#define yield_cpu() SwitchToThread()
#else
#include <pthread.h>
#include <sched.h>
typedef pthread_mutex_t lock_t;
typedef pthread_cond_t signal_t;
#define LOCK_READY PTHREAD_MUTEX_INITIALIZER
#define SIGNAL_READY PTHREAD_COND_INITIALIZER
#define acquire(lock) pthread_mutex_lock(lock)
#define release(lock) pthread_mutex_unlock(lock)
#define wait_for(signal, lock) pthread_cond_wait(signal, lock)
#define wake_all(signal) pthread_cond_broadcast(signal)
#define yield_cpu() sched_yield()
#endif

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define cpu_relax() _mm_pause()
#elif defined(__aarch64__)
#define cpu_relax() __asm__ volatile("yield")
#else
#define cpu_relax() ((void)0)
#endif

/* Some 20 to 200 microseconds, as the processor's pauses are: longer than the imbalance of a step, too short to notice. */
#define SPINS 4000

static lock_t one_job = LOCK_READY; /* held during a job */
static lock_t lock = LOCK_READY;    /* guards the variables below */
static signal_t begin = SIGNAL_READY, end = SIGNAL_READY;
static int started;           /* number of threads created */
static atomic_int job_number; /* the number of the current job */
static atomic_int busy;       /* workers that have not finished it */
static int wanted;            /* workers that take part in it */
static cw_job current_job;
static void *current_argument;
static cw_barrier barrier;

void cw_barrier_wait(cw_barrier *at) {
    const int threads = atomic_load_explicit(&at->threads, memory_order_relaxed);
    if (threads == 1) return;
    const unsigned generation = atomic_load_explicit(&at->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&at->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&at->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&at->generation, generation + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&at->generation, memory_order_acquire) == generation; spins++) {
        if (spins < SPINS) cpu_relax();
        else yield_cpu(); /* let another thread use the processor */
    }
}

/* --- The threads of an OpenMP runtime --- */

typedef void (*run_parallel)(void (*)(void *), void *, unsigned, unsigned);
static _Atomic(run_parallel) openmp_parallel; /* written last: who reads it finds the others */
static int (*openmp_thread)(void), (*openmp_threads)(void);
static atomic_int forked; /* whether this process has none of the runtime's threads */

#if defined(_WIN32)
void cw_watch_forks(void) {}
#else
/* A forked process has none of the threads, neither ours nor the runtime's; its locks are copied in any state. */
static void reset_after_fork(void) {
    const lock_t free_lock = LOCK_READY;
    const signal_t quiet = SIGNAL_READY;
    one_job = lock = free_lock;
    begin = end = quiet;
    started = 0;
    forked = 1;
    openmp_parallel = NULL; /* It would wait for its threads forever; ours are created again. */
}
void cw_watch_forks(void) {
    static atomic_int watching;
    if (!atomic_exchange(&watching, 1)) pthread_atfork(NULL, NULL, reset_after_fork);
}
#endif

void cw_use_openmp(void *parallel, void *thread_number, void *thread_count) {
    if (forked || atomic_load_explicit(&openmp_parallel, memory_order_acquire) == (run_parallel)parallel) return;
    openmp_thread = (int (*)(void))thread_number;
    openmp_threads = (int (*)(void))thread_count;
    atomic_store_explicit(&openmp_parallel, (run_parallel)parallel, memory_order_release);
}

typedef struct {
    cw_job job;
    void *argument;
    cw_barrier barrier;
} team_job;

static void run_in_team(void *argument) {
    team_job *team = argument;
    /* The runtime may provide fewer threads than requested; all of them write the same number here. */
    const int threads = openmp_threads();
    atomic_store_explicit(&team->barrier.threads, threads, memory_order_relaxed);
    team->job(openmp_thread(), threads, &team->barrier, team->argument);
}

/* --- Our own threads --- */

static void work(int index) {
    int seen = 0;
    for (;;) {
        for (int spins = 0; spins < SPINS && atomic_load_explicit(&job_number, memory_order_acquire) == seen; spins++)
            cpu_relax();
        acquire(&lock);
        while (atomic_load(&job_number) == seen) wait_for(&begin, &lock);
        seen = atomic_load(&job_number);
        int takes_part = index <= wanted;
        release(&lock);
        if (!takes_part) continue;
        current_job(index, wanted + 1, &barrier, current_argument);
        if (atomic_fetch_sub_explicit(&busy, 1, memory_order_acq_rel) == 1) {
            acquire(&lock);
            wake_all(&end);
            release(&lock);
        }
    }
}

#if defined(_WIN32)
static DWORD WINAPI thread_main(void *index) {
    work((int)(intptr_t)index);
    return 0;
}
static int start_thread(int index) {
    HANDLE handle = CreateThread(NULL, 0, thread_main, (void *)(intptr_t)index, 0, NULL);
    if (handle == NULL) return 0;
    CloseHandle(handle);
    return 1;
}
#else
static void *thread_main(void *index) {
    work((int)(long)index);
    return NULL;
}
static int start_thread(int index) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, thread_main, (void *)(long)index) != 0) return 0;
    pthread_detach(thread);
    return 1;
}
#endif

/* Create threads until `helpers` exist; returns how many do. */
static int ensure(int helpers) {
    while (started < helpers && start_thread(started + 1)) started++;
    return started < helpers ? started : helpers;
}

void cw_parallel(int threads, cw_job job, void *argument) {
    if (threads > CW_MOST_THREADS) threads = CW_MOST_THREADS;
    const run_parallel run = threads > 1 ? atomic_load_explicit(&openmp_parallel, memory_order_acquire) : NULL;
    if (run) {
        team_job team = {.job = job, .argument = argument};
        run(run_in_team, &team, threads, 0);
        return;
    }
    if (threads <= 1) { /* without a lock, so that single-threaded callers do not wait for each other */
        cw_barrier alone = {.threads = 1};
        job(0, 1, &alone, argument);
        return;
    }
    acquire(&one_job);
    acquire(&lock);
    int helpers = ensure(threads - 1);
    atomic_store(&barrier.threads, helpers + 1);
    atomic_store(&barrier.arrived, 0);
    if (helpers) {
        current_job = job;
        current_argument = argument;
        wanted = helpers;
        atomic_store(&busy, helpers);
        atomic_fetch_add_explicit(&job_number, 1, memory_order_release);
        wake_all(&begin);
    }
    release(&lock);
    job(0, helpers + 1, &barrier, argument);
    if (helpers) {
        for (int spins = 0; spins < SPINS && atomic_load_explicit(&busy, memory_order_acquire); spins++) cpu_relax();
        acquire(&lock);
        while (atomic_load(&busy)) wait_for(&end, &lock);
        release(&lock);
    }
    release(&one_job);
}
