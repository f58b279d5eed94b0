/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of the pool's threads: created when owed, idle, expired, joined.
 *
 * Workers are created by a bottom half on the loop thread (so that they inherit its signal mask and affinity,
 * not a submitter's), which starts one; each new worker starts the next ones that are owed.  A
 * creation that fails is rolled back in one critical section, and tried again by a timer
 * with back-off; whether a worker is owed is never remembered, always derived.
 *
 * Which task runs when is decided in pool.c, not here.
 */
#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "pool/pool-internal.h"

#define RETRY_LAST_NS 1000000000u
#define NS_PER_S 1000000000u

/* How many workers the chain has on their way at once.  A new thread takes about 50 us to its first line: with 1 a burst of 64
 * took 5 ms from cold, with 2 less than half (bench-pool).
 */
#define CHAIN_WIDTH 2

static void *worker_main(void *opaque);

bool workers_owed(const struct pool *pool)
{
    return pool->granted > pool->idle + pool->starting && pool->threads < pool->max_threads &&
           !pool->spawn_blocked && !pool->stopping;
}

/* Under lock: counts the thread that worker_create is about to make. */
static void reserve_worker(struct pool *pool)
{
    pool->threads++;
    pool->starting++;
}

/* Under lock: worker_create failed.  All of it is rolled back before anyone can see a part.  When no
 * worker is left, those that have a token would wait for ever: lanes_grant finds other runners for them.
 */
static void creation_failed(struct pool *pool)
{
    pool->threads--;
    pool->starting--;
    pool->totals.spawn_failures++;
    pool->spawn_blocked = true;
    if (lanes_are_stranded(pool)) {
        lanes_withdraw_tokens(pool);
        lanes_grant(pool);
    }
}

/* Without the lock, after reserve_worker. */
static void create_worker(struct pool *pool)
{
    pthread_t thread;
    struct worker *worker = malloc(sizeof *worker);
    bool created = false;
    if (worker) {
        *worker = (struct worker){.pool = pool};
        created = pthread_create(&thread, NULL, worker_main, worker) == 0;
    }
    if (created)
        return;
    free(worker);
    pool_lock(pool);
    creation_failed(pool);
    pool_unlock(pool);
}

void workers_join_exited(struct pool *pool)
{
    pool_lock(pool);
    struct worker *worker = pool->exited;
    pool->exited = NULL;
    pool_unlock(pool);
    while (worker) {
        struct worker *next = worker->next;
        /* Waits for no more than the worker's return from worker_main. */
        pthread_join(worker->thread, NULL);
        free(worker);
        worker = next;
    }
}

void workers_manage(void *opaque)
{
    struct pool *pool = opaque;
    workers_join_exited(pool);

    pool_lock(pool);
    pool->manage_asked = false;
    bool arm = pool->spawn_blocked && !pool->retry_armed;
    uint64_t retry_ns = pool->retry_ns;
    if (arm)
        pool->retry_armed = true;
    bool create = workers_owed(pool) && pool->starting == 0;
    if (create)
        reserve_worker(pool);
    pool_unlock(pool);

    if (arm)
        loop_timer_arm(pool->retry_timer, retry_ns);
    if (create)
        create_worker(pool);
}

/* Creation has failed some time ago.  Without any worker one is tried even if nothing is queued, so
 * that the next request does not have to find out.
 */
void workers_retry(void *opaque)
{
    struct pool *pool = opaque;
    pool_lock(pool);
    pool->retry_armed = false;
    pool->spawn_blocked = false;
    bool create =
        pool->starting == 0 && !pool->stopping && (pool->threads == 0 || workers_owed(pool));
    if (create)
        reserve_worker(pool);
    uint64_t doubled = pool->retry_ns * 2;
    pool->retry_ns = doubled < RETRY_LAST_NS ? doubled : RETRY_LAST_NS;
    pool_unlock(pool);
    if (create)
        create_worker(pool);
}

static struct timespec deadline_in(uint64_t ns)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ns += (uint64_t)ts.tv_nsec;
    ts.tv_sec += (time_t)(ns / NS_PER_S);
    ts.tv_nsec = (long)(ns % NS_PER_S);
    return ts;
}

/* Under lock, which is released while it sleeps.  Returns whether it brings a token back. */
static bool wait_for_token(struct pool *pool)
{
    struct timespec deadline = deadline_in(pool->idle_timeout_ns);
    int rc;
    pool->idle++;
    pool_unlock(pool);
    do
        rc = sem_clockwait(&pool->tokens, CLOCK_MONOTONIC, &deadline);
    while (rc < 0 && errno == EINTR);
    assert(rc == 0 || errno == ETIMEDOUT);
    pool_lock(pool);
    pool->idle--;
    return rc == 0;
}

/* Under lock.  May this worker, which waited in vain, go?  Not while there are tokens: one may have been posted
 * between its time-out and its lock, counting on it.  Not as the last one while none can be created.
 */
static bool may_expire(const struct pool *pool)
{
    return pool->granted == 0 && pool->threads > pool->min_threads &&
           !(pool->spawn_blocked && pool->threads == 1);
}

/* Under lock.  The next task to run, or NULL when the worker is to leave. */
static struct task *next_task(struct pool *pool)
{
    bool holds_token = false;
    bool expired = false;
    for (;;) {
        struct task *task = lanes_take(pool, holds_token);
        if (task || pool->stopping || (expired && may_expire(pool)))
            return task;
        holds_token = wait_for_token(pool);
        expired = !holds_token;
    }
}

/* Under lock.  The worker's last act: from here on it touches nothing of the pool's but the lock. */
static void leave(struct pool *pool, struct worker *worker)
{
    pool->threads--;
    worker->next = pool->exited;
    pool->exited = worker;
    if (pool->stopping && pool->idle > 0) {
        /* Wake the next one, which wakes the next: all leave. */
        pool->surplus++;
        sem_post(&pool->tokens);
    }
    if (!pool->stopping && !pool->manage_asked) {
        pool->manage_asked = true;
        bh_schedule(pool->manage_bh);
    }
}

/* A worker is woken by those who wait for it: it need not preempt them (sched(7): SCHED_BATCH).  Measured over NBD with
 * dispatch=pool, ratio to ordinary workers, O_DIRECT: 16 reads in flight 1.14, 64 1.31, 16 on 4 connections 1.21, 16 writes
 * 1.04; page cache: 1.02-1.13; write and flush with dispatch=auto 1.05.  A policy inherited from the user stays.
 */
static void schedule_as_batch(void)
{
    if (sched_getscheduler(0) == SCHED_OTHER)
        sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0});
}

static void *worker_main(void *opaque)
{
    struct worker *worker = opaque;
    struct pool *pool = worker->pool;
    pthread_setname_np(pthread_self(), "aiodisk-worker");
    schedule_as_batch();

    pool_lock(pool);
    worker->thread = pthread_self();
    pool->totals.threads_created++;
    pool->starting--;
    pool->spawn_blocked = false;
    pool->retry_ns = POOL_RETRY_FIRST_NS;
    /* Taken before anything else, so that the counters tell whether another worker is owed. */
    struct task *task = lanes_take(pool, false);
    while (workers_owed(pool) && pool->starting < CHAIN_WIDTH) {
        reserve_worker(pool);
        pool_unlock(pool);
        create_worker(pool);
        pool_lock(pool);
    }
    if (!task)
        task = next_task(pool);
    while (task) {
        enum pool_lane lane = task->lane;
        pool_unlock(pool);
        pool_run_and_complete(pool, task);
        pool_lock(pool);
        lanes_release_slot(pool, lane);
        task = next_task(pool);
    }
    leave(pool, worker);
    pool_unlock(pool);
    return NULL;
}

void workers_stop(struct pool *pool)
{
    pool->stopping = true;
    if (pool->idle > 0) {
        pool->surplus++;
        sem_post(&pool->tokens);
    }
    while (pool->threads > 0)
        pthread_cond_wait(&pool->changed, &pool->lock);
}
