/* The pool of threads and the scratch memory of each.
 *
 *     caller:   open a job, wake the workers ── take tasks ── close the job, wait for those still in it
 *     worker:   sleep ── join the open job ── take tasks ── leave ── sleep
 *
 * Nobody spins: a thread that waits sleeps on a condition. A worker that wakes up after the tasks are gone never joins,
 * so the caller waits for work that is being done, not for threads to wake. One job runs at a time; `region` is held
 * for all of it. After fork() the child has no workers and starts its own when it needs them.
 */
#include "strop.h"

#include <stdlib.h>

#if defined(_WIN32)
/* Windows Vista and later. Compiled by clang for it, not yet run there. */
#include <malloc.h>
#include <windows.h>
typedef SRWLOCK lock_type;
typedef CONDITION_VARIABLE signal_type;
typedef HANDLE thread_type;
#define LOCK_INIT SRWLOCK_INIT
#define SIGNAL_INIT CONDITION_VARIABLE_INIT
#define lock(l) AcquireSRWLockExclusive(l)
#define unlock(l) ReleaseSRWLockExclusive(l)
#define await(s, l) SleepConditionVariableSRW(s, l, INFINITE, 0)
#define wake_one(s) WakeConditionVariable(s)
#define wake_all(s) WakeAllConditionVariable(s)
#define THREAD_RESULT DWORD WINAPI
#define thread_start(t, f, a) ((*(t) = CreateThread(NULL, 0, f, a, 0, NULL)) != NULL)
#define thread_join(t) (WaitForSingleObject(t, INFINITE), CloseHandle(t))
#define memory_new(bytes) _aligned_malloc(bytes, 64)
#define memory_free(p) _aligned_free(p)
#else
#include <pthread.h>
#include <unistd.h>
typedef pthread_mutex_t lock_type;
typedef pthread_cond_t signal_type;
typedef pthread_t thread_type;
#define LOCK_INIT PTHREAD_MUTEX_INITIALIZER
#define SIGNAL_INIT PTHREAD_COND_INITIALIZER
#define lock(l) pthread_mutex_lock(l)
#define unlock(l) pthread_mutex_unlock(l)
#define await(s, l) pthread_cond_wait(s, l)
#define wake_one(s) pthread_cond_signal(s)
#define wake_all(s) pthread_cond_broadcast(s)
#define THREAD_RESULT void *
#define thread_start(t, f, a) (pthread_create(t, NULL, f, a) == 0)
#define thread_join(t) pthread_join(t, NULL)
#define memory_new(bytes) aligned_alloc(64, ((bytes) + 63) / 64 * 64)
#define memory_free(p) free(p)
#endif

static lock_type region = LOCK_INIT; /* held for a whole job, and by whoever changes the pool */
static lock_type state = LOCK_INIT;  /* guards what follows up to `next` */
static signal_type work = SIGNAL_INIT, done = SIGNAL_INIT;
static strop_task job_run;
static void *job_context;
static int job_tasks, job_open, joined;
static unsigned job_number;
static int limit = 1; /* workers with a number from here on end */
static int next;      /* the next task, taken atomically */

static int threads = 0; /* 0: not asked for yet, as many as the machine has */
static int started = 1; /* the caller, and the workers 1 … started-1 */
static thread_type workers[STROP_MAX_THREADS];

static struct {
    void *memory;
    size_t bytes;
} scratch[STROP_MAX_THREADS];

/* Of each thread: the worker it is while it is inside a job, else -1. */
static _Thread_local int inside = -1;

static void take_tasks(strop_task run, void *context, int tasks, int worker) {
    int task;
    while ((task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tasks) run(context, task, worker);
}

static THREAD_RESULT worker_main(void *argument) {
    const int self = (int)(intptr_t)argument;
    unsigned seen = 0; /* job numbers start at 1 */
    inside = self;
    lock(&state);
    for (;;) {
        while (self < limit && (!job_open || job_number == seen)) await(&work, &state);
        if (self >= limit) break;
        const strop_task run = job_run;
        void *const context = job_context;
        const int tasks = job_tasks;
        seen = job_number;
        joined++;
        unlock(&state);
        take_tasks(run, context, tasks, self);
        lock(&state);
        if (--joined == 0) wake_one(&done);
    }
    unlock(&state);
    return 0;
}

static int machine_threads(void) {
#if defined(_WIN32)
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    const long count = (long)info.dwNumberOfProcessors;
#else
    const long count = sysconf(_SC_NPROCESSORS_ONLN);
#endif
    return count < 1 ? 1 : count > STROP_MAX_THREADS ? STROP_MAX_THREADS : (int)count;
}

#if !defined(_WIN32)
static void before_fork(void) {
    if (inside < 0) lock(&region);
}

static void after_fork_parent(void) {
    if (inside < 0) unlock(&region);
}

static void after_fork_child(void) {
    const lock_type new_lock = LOCK_INIT;
    const signal_type new_signal = SIGNAL_INIT;
    region = state = new_lock;
    work = done = new_signal;
    job_open = joined = 0;
    started = limit = 1;
    inside = -1;
}

__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}
#endif

/* Under `region`: starts the workers that are missing. Where the system gives no more threads, those there are do. */
static void start_workers(void) {
    if (threads == 0) threads = machine_threads();
    if (started >= threads) return;
    lock(&state);
    limit = threads;
    unlock(&state);
    while (started < threads && thread_start(&workers[started], worker_main, (void *)(intptr_t)started)) started++;
}

void strop_parallel(int tasks, strop_task run, void *context) {
    if (inside >= 0) {
        for (int task = 0; task < tasks; task++) run(context, task, inside);
        return;
    }
    lock(&region);
    inside = 0;
    if (tasks > 1) start_workers();
    if (tasks <= 1 || started == 1) {
        for (int task = 0; task < tasks; task++) run(context, task, 0);
    } else {
        lock(&state);
        job_run = run;
        job_context = context;
        job_tasks = tasks;
        job_number++;
        job_open = 1;
        next = 0;
        unlock(&state);
        wake_all(&work);
        take_tasks(run, context, tasks, 0);
        lock(&state);
        job_open = 0;
        while (joined > 0) await(&done, &state);
        unlock(&state);
    }
    inside = -1;
    unlock(&region);
}

STROP_API int strop_threads(void) {
    lock(&region);
    const int count = threads == 0 ? machine_threads() : threads;
    unlock(&region);
    return count;
}

STROP_API void strop_set_threads(int count) {
    lock(&region);
    threads = count < 1 ? 1 : count > STROP_MAX_THREADS ? STROP_MAX_THREADS : count;
    if (started > threads) {
        lock(&state);
        limit = threads;
        wake_all(&work);
        unlock(&state);
        while (started > threads) thread_join(workers[--started]);
    }
    unlock(&region);
}

void *strop_scratch(int worker, size_t bytes) {
    if (scratch[worker].bytes < bytes) {
        memory_free(scratch[worker].memory);
        scratch[worker].memory = memory_new(bytes);
        scratch[worker].bytes = scratch[worker].memory ? bytes : 0;
    }
    return scratch[worker].memory;
}

STROP_API void strop_release(void) {
    lock(&region);
    for (int worker = 0; worker < STROP_MAX_THREADS; worker++) {
        memory_free(scratch[worker].memory);
        scratch[worker].memory = NULL;
        scratch[worker].bytes = 0;
    }
    unlock(&region);
}
