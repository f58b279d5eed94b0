/* SPDX-License-Identifier: BSD-3-Clause */
/* What the pool's test programs share: tasks that wait at a gate, threads that start together, and a pool with its
 * loop.  A hang is found by the test's time limit, a broken promise by CHECK, on whichever thread.
 */
#ifndef AIODISK_POOL_TEST_H
#define AIODISK_POOL_TEST_H

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

/* Usable on any thread, unlike cmocka's. */
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, \
                    #condition); \
            abort(); \
        } \
    } while (0)

/* Sanitizers make everything slower; the races stay the same. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define ROUNDS(n) ((n) / 10)
#else
#define ROUNDS(n) (n)
#endif

/* --- A gate: tasks wait at it, and the test waits until so many do --- */

struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned arrived; /* under lock, as all below */
    bool open;
};

static inline void gate_init(struct gate *gate)
{
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->changed, NULL);
    gate->arrived = 0;
    gate->open = false;
}

static inline void gate_pass(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->arrived++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

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

struct job {
    struct task task;
    struct gate *gate;         /* or NULL: returns at once */
    _Atomic unsigned runs;     /* how often run was called */
    _Atomic unsigned finished; /* how often done was called */
    int result;                /* what done saw; read after `finished` */
    _Atomic unsigned *total;   /* or NULL: counts `done`s of many jobs */
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

static inline void sleep_us(unsigned us)
{
    struct timespec ts = {us / 1000000, (us % 1000000) * 1000L};
    nanosleep(&ts, NULL);
}

/* What no event tells is polled; the test's time limit bounds it. */
#define WAIT_UNTIL(condition) \
    do { \
        while (!(condition)) \
            sleep_us(100); \
    } while (0)

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

/* Every accepted task was carried out, or failed, in exactly one way.  A worker completes a task before it gives its
 * slot back.
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
