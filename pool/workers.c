/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of the workers: created when owed, idle, expired, joined.
 *
 * A worker is born in create_worker.  A bottom half on the loop thread (workers_manage) creates the
 * first one, and each new worker creates the next ones that are owed.  So workers inherit the
 * signal mask and the affinity of the loop thread, not those of a submitter.  A failed creation is
 * rolled back in one critical section, and a timer with back-off (workers_retry) tries again.
 * Whether a worker is owed is never remembered, but always derived from the counters.
 *
 * lanes.c decides which task a worker runs.  Nothing here runs a task but worker_main.
 */
#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "pool/pool-internal.h"

#define RETRY_LAST_NS 1000000000u /* the longest back-off */
#define NS_PER_S 1000000000u

/* How many workers may be starting at once.  A new thread needs about 50 us to its first line.
 * With 1, a burst of 64 tasks took 5 ms from cold; with 2, less than half of that (bench-pool).
 */
#define CHAIN_WIDTH 2

static void *worker_main(void *opaque);

bool workers_owed(const struct pool *pool)
{
    return pool->granted > pool->idle + pool->starting && pool->threads < pool->max_threads &&
           !pool->spawn_blocked && !pool->stopping;
}

/* Counts the worker that create_worker is about to create.  Under lock. */
static void reserve_worker(struct pool *pool)
{
    pool->threads++;
    pool->starting++;
}

/* Rolls reserve_worker back, all in one critical section, so no other thread sees a part of it.  If
 * no worker is left, nobody would come for the tasks that have a token: their tokens are withdrawn,
 * and lanes_grant gives the tasks to their callers or fails them.  Under lock.
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

/* Creates one worker.  This is the only place that does.  Loop thread or worker, without the lock,
 * after reserve_worker.
 */
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
        /* Short: the worker only has to return from worker_main. */
        pthread_join(worker->thread, NULL);
        free(worker);
        worker = next;
    }
}

/* The bottom half: joins the workers that have left, arms the retry timer after a failed creation,
 * and creates the first of the workers that are owed.
 */
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

/* The retry timer: a creation failed one back-off ago.  If there is no worker, one is created even
 * if nothing is queued, so that the next request need not find out whether creation works again.
 * The back-off doubles each time the timer fires; a worker that starts resets it.
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

/* The CLOCK_MONOTONIC time in `ns` nanoseconds. */
static struct timespec deadline_in(uint64_t ns)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ns += (uint64_t)ts.tv_nsec;
    ts.tv_sec += (time_t)(ns / NS_PER_S);
    ts.tv_nsec = (long)(ns % NS_PER_S);
    return ts;
}

/* Waits for a token for at most the idle time-out.  Returns whether the worker now holds a token.
 * Under lock; the wait releases the lock.
 */
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

/* A timed-out worker may leave only if no token is outstanding, more than min_threads workers
 * exist, and it is not the last worker while creation fails.  The first condition prevents a lost
 * wake-up: the worker's wait times out; a submitter, with the lock, counts the worker as idle and
 * posts a token for it; the worker gets the lock.  Under lock.
 */
static bool may_expire(const struct pool *pool)
{
    return pool->granted == 0 && pool->threads > pool->min_threads &&
           !(pool->spawn_blocked && pool->threads == 1);
}

/* The next task to run, or NULL when the worker is to leave.  Under lock; may wait without it. */
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

/* The worker leaves: from here on another thread may wait for it in pthread_join.  The worker only
 * has to release the lock and to return from worker_main.  Under lock.
 */
static void leave(struct pool *pool, struct worker *worker)
{
    pool->threads--;
    worker->next = pool->exited;
    pool->exited = worker;
    if (pool->stopping && pool->idle > 0) {
        /* Wakes one idle worker, which wakes the next one when it leaves. */
        pool->surplus++;
        sem_post(&pool->tokens);
    }
    if (!pool->stopping && !pool->manage_asked) {
        pool->manage_asked = true;
        bh_schedule(pool->manage_bh);
    }
}

/* Makes this worker a SCHED_BATCH thread, which does not preempt the thread that wakes it
 * (sched(7)).  That thread is about to wait for the worker anyway.  Measured over NBD with
 * dispatch=pool, ratio to ordinary workers: O_DIRECT reads, 16 in flight 1.14, 64 in flight 1.31,
 * 16 on each of 4 connections 1.21; 16 O_DIRECT writes 1.04; page cache 1.02-1.13.  With
 * dispatch=auto, write and flush: 1.05.  A scheduling policy other than SCHED_OTHER was chosen by
 * the user and stays.
 */
static void schedule_as_batch(void)
{
    if (sched_getscheduler(0) == SCHED_OTHER)
        sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0});
}

/* A worker thread: takes tasks and runs them until it is to leave. */
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
    /* Takes a task first, so that workers_owed does not count this worker for that task. */
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
