/* SPDX-License-Identifier: BSD-3-Clause */
/* What the pool's test programs share: tasks that wait at a gate, and a pool with its loop.
 *
 * The functions run on any thread.  A hang is found by the time limit of meson's test; a broken
 * promise is found by CHECK.  Nothing here knows the inside of the pool: the tests use pool.h and
 * loop.h only.
 */
#ifndef AIODISK_POOL_TEST_H
#define AIODISK_POOL_TEST_H

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "pool/pool.h"

/* Aborts the program unless the condition is true.  Any thread; cmocka's own macros need the thread
 * that runs the test.
 */
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, \
                    #condition); \
            abort(); \
        } \
    } while (0)

/* The number of rounds of a test; fewer under a sanitizer, which makes every round slower, and in
 * the build that tries schedules, where many short runs try more orders than a long one.
 */
#if defined(AIODISK_SCHEDULES)
#define ROUNDS(n) ((n) < 500 ? ((n) + 9) / 10 : (n) / 50)
#elif defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define ROUNDS(n) ((n) / 10)
#else
#define ROUNDS(n) (n)
#endif

/* The number of open descriptors, and a constant more. */
static inline unsigned descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;
    CHECK(directory);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* --- A gate: tasks wait at the gate, and the test waits until enough tasks do --- */

struct gate {
    /* Any thread. */
    pthread_mutex_t lock;
    pthread_cond_t changed;

    /* Under lock. */
    unsigned arrived; /* threads that have called gate_pass */
    bool open;
};

static inline void gate_init(struct gate *gate)
{
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->changed, NULL);
    gate->arrived = 0;
    gate->open = false;
}

/* Waits until the gate is open. */
static inline void gate_pass(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->arrived++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

/* Waits until so many threads have called gate_pass. */
static inline void gate_wait_for(struct gate *gate, unsigned arrived)
{
    pthread_mutex_lock(&gate->lock);
    while (gate->arrived < arrived)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

static inline void gate_open(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->open = true;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

static inline void gate_destroy(struct gate *gate)
{
    pthread_mutex_destroy(&gate->lock);
    pthread_cond_destroy(&gate->changed);
}

/* --- Tasks --- */

/* A task, and what became of it. */
struct job {
    struct task task;
    struct gate *gate;         /* where `run` waits, or NULL */
    _Atomic unsigned runs;     /* calls of `run` */
    _Atomic unsigned finished; /* calls of `done` */
    int result;                /* what `done` found; valid once `finished` is 1 */
    _Atomic unsigned *total;   /* counts the calls of `done` of many jobs, or NULL */
};

#define JOB_RESULT 42

static inline int job_run(struct task *task)
{
    struct job *job = (struct job *)task;
    if (job->gate)
        gate_pass(job->gate);
    atomic_fetch_add(&job->runs, 1);
    return JOB_RESULT;
}

static inline void job_done(struct task *task)
{
    struct job *job = (struct job *)task;
    _Atomic unsigned *total = job->total;
    job->result = task->result;
    atomic_fetch_add(&job->finished, 1);
    if (total)
        atomic_fetch_add(total, 1);
}

static inline void job_init(struct job *job, enum pool_lane lane, struct gate *gate,
                            _Atomic unsigned *total)
{
    memset(job, 0, sizeof *job);
    job->task.run = job_run;
    job->task.done = job_done;
    job->task.lane = lane;
    job->gate = gate;
    job->total = total;
}

static inline struct job *jobs_new(unsigned n, enum pool_lane lane, struct gate *gate,
                                   _Atomic unsigned *total)
{
    struct job *jobs = malloc(n * sizeof *jobs);
    CHECK(jobs);
    for (unsigned i = 0; i < n; i++)
        job_init(&jobs[i], lane, gate, total);
    return jobs;
}

static inline void jobs_submit(struct pool *pool, struct job *jobs, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        CHECK(pool_submit(pool, &jobs[i].task) == 0);
}

static inline void sleep_us(unsigned us)
{
    struct timespec ts = {us / 1000000, (us % 1000000) * 1000L};
    nanosleep(&ts, NULL);
}

/* Polls a condition that no event tells.  The test's time limit bounds the wait. */
#define WAIT_UNTIL(condition) \
    do { \
        while (!(condition)) \
            sleep_us(100); \
    } while (0)

/* Submits n tasks that wait at a gate, waits until `expected` of them run at once, and opens the
 * gate.  Returns when all have finished.
 */
static inline void jobs_run_at_once(struct pool *pool, unsigned n, unsigned expected)
{
    _Atomic unsigned finished = 0;
    struct gate gate;

    gate_init(&gate);
    struct job *jobs = jobs_new(n, POOL_FAST, &gate, &finished);
    jobs_submit(pool, jobs, n);
    gate_wait_for(&gate, expected);
    struct pool_counters c;
    pool_read_counters(pool, &c);
    CHECK(c.running == expected);
    gate_open(&gate);
    WAIT_UNTIL(atomic_load(&finished) == n);
    gate_destroy(&gate);
    free(jobs);
}

/* --- A pool with its loop --- */

struct rig {
    struct loop *loop;
    struct pool *pool;
};

static inline void rig_new(struct rig *rig, const struct pool_config *config)
{
    CHECK(loop_new(&rig->loop) == 0);
    CHECK(pool_new(rig->loop, config, &rig->pool) == 0);
}

static inline void rig_free(struct rig *rig, enum pool_free_policy policy)
{
    pool_free(rig->pool, policy);
    loop_free(rig->loop);
}

static inline struct pool_counters counters_of(struct pool *pool)
{
    struct pool_counters c;
    pool_read_counters(pool, &c);
    return c;
}

/* Every accepted task was run, or failed, in exactly one way.  The wait is for workers that have
 * completed their task and not released the slot yet.
 */
static inline void check_totals(struct pool *pool)
{
    WAIT_UNTIL(counters_of(pool).running == 0);
    struct pool_counters c = counters_of(pool);
    CHECK(c.submitted == c.worker_runs + c.helped + c.taken_back + c.stranded_runs +
                             c.stranded_errors + c.cancelled);
    CHECK(c.queued == 0 && c.running_slow == 0);
}

#endif
