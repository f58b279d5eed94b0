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
#include "pool/probe.h"
#include "pool/schedule-point.h"

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

/* Rolls reserve_worker back, all in one critical section, so no other thread sees a part of it.
 * Nobody may come now for tasks that have a token already.  lanes_grant withdraws such tokens, and
 * gives the tasks to their callers, leaves them to the workers that are busy, or fails them.  Under
 * lock.
 */
static void creation_failed(struct pool *pool)
{
    pool->threads--;
    pool->starting--;
    pool->totals.spawn_failures++;
    tally_add(pool->tally, POOL_TALLY_SPAWN_FAILURES, 1);
    pool->spawn_blocked = true;
    lanes_grant(pool);
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
    PROBE(worker_spawn, pool, created);
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
        SCHEDULE_POINT();
        /* Short: the worker only has to return from worker_main. */
        pthread_join(worker->thread, NULL);
        free(worker);
        worker = next;
    }
}

/* The bottom half: arms the retry timer after a failed creation, creates the first of the workers
 * that are owed, and joins the workers that have left.  The join comes last, so that no exit delays
 * a creation, and so that a worker that leaves after manage_asked was cleared finds it clear and
 * asks for the next turn, or is joined in this one.
 */
void workers_manage(void *opaque)
{
    struct pool *pool = opaque;

    pool_lock(pool);
    pool->manage_asked = false;
    bool arm = pool->spawn_blocked && !pool->retry_armed;
    uint64_t retry_ns = pool->retry_ns;
    if (arm) {
        pool->retry_armed = true;
        pool->retry_ns = retry_ns * 2 < RETRY_LAST_NS ? retry_ns * 2 : RETRY_LAST_NS;
    }
    bool create = workers_owed(pool) && pool->starting == 0;
    if (create)
        reserve_worker(pool);
    pool_unlock(pool);

    if (arm)
        loop_timer_arm(pool->retry_timer, retry_ns);
    SCHEDULE_POINT();
    if (create)
        create_worker(pool);
    workers_join_exited(pool);
}

/* The retry timer: a creation failed one back-off ago.  If there is no worker, one is created even
 * if nothing is queued, so that the next request need not find out whether creation works again.
 * The back-off doubles each time the timer is armed.  A worker that starts resets the back-off, and
 * so does a timer that finds nothing to create: the next failure is not a repetition of the last.
 */
void workers_retry(void *opaque)
{
    struct pool *pool = opaque;
    pool_lock(pool);
    pool->retry_armed = false;
    bool was_blocked = pool->spawn_blocked;
    pool->spawn_blocked = false;
    lanes_grant(pool); /* tokens again for tasks that have no worker, so that one is owed */
    bool create = was_blocked && pool->starting == 0 && !pool->stopping &&
                  (pool->threads == 0 || workers_owed(pool));
    if (create)
        reserve_worker(pool);
    else if (pool->starting == 0)
        pool->retry_ns = POOL_RETRY_FIRST_NS;
    pool_unlock(pool);
    if (create)
        create_worker(pool);
}

/* The CLOCK_MONOTONIC time. */
static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static unsigned smaller(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

/* Waits for a token for at most the idle time-out.  Returns whether the worker now holds a token.
 * Under lock; the wait releases the lock.
 */
static bool wait_for_token(struct pool *pool, uint64_t now)
{
    uint64_t end_ns = now + pool->idle_timeout_ns;
    struct timespec deadline = {(time_t)(end_ns / NS_PER_S), (long)(end_ns % NS_PER_S)};
    int rc;
    pool->idle++;
    /* While threads cannot be created, the number of tokens follows the number of idle workers. */
    if (pool->spawn_blocked)
        lanes_grant(pool);
    pool_unlock(pool);
    do
        rc = sem_clockwait(&pool->tokens, CLOCK_MONOTONIC, &deadline);
    while (rc < 0 && errno == EINTR);
    assert(rc == 0 || errno == ETIMEDOUT);
    pool_lock(pool);
    pool->idle--;
    pool->least_idle = smaller(pool->least_idle, pool->idle);
    pool->unneeded = smaller(pool->unneeded, pool->idle);
    return rc == 0;
}

/* Counts the workers that the pool can do without.  A window lasts one idle time-out.  If at least
 * n workers were idle at each moment of a window, n workers were not needed in that window, and as
 * many may leave in the next window, unless they are needed after all.
 *
 * The time-out of each worker's own sleep is not enough: the semaphore wakes the sleepers in turn,
 * so a light load wakes each of many workers before its time-out.  Under lock.
 */
static void count_unneeded(struct pool *pool, uint64_t now)
{
    if (now < pool->window_end_ns)
        return;
    pool->unneeded = pool->least_idle;
    pool->least_idle = pool->idle;
    pool->window_end_ns = now + pool->idle_timeout_ns;
}

/* Whether a worker without a task is to leave: its wait has timed out, or the pool was able to do
 * without so many workers.
 *
 * A worker may leave only if no token is outstanding, more than min_threads workers exist, and it
 * is not the last worker while creation fails.  The first condition prevents a lost wake-up: the
 * worker's wait times out; a submitter, with the lock, counts the worker as idle and posts a token
 * for it; the worker gets the lock.  Under lock.
 */
static bool is_to_leave(struct pool *pool, bool timed_out, uint64_t now)
{
    count_unneeded(pool, now);
    if (!timed_out && pool->unneeded == 0)
        return false;
    if (pool->granted > 0 || pool->threads <= pool->min_threads ||
        (pool->spawn_blocked && pool->threads == 1))
        return false;
    if (pool->unneeded > 0)
        pool->unneeded--;
    return true;
}

/* The next task to run, or NULL when the worker is to leave.  Under lock; may wait without it. */
static struct task *next_task(struct pool *pool)
{
    bool holds_token = false;
    bool timed_out = false;
    for (;;) {
        struct task *task = lanes_take(pool, holds_token);
        if (task || pool->stopping)
            return task;
        uint64_t now = now_ns();
        if (is_to_leave(pool, timed_out, now))
            return NULL;
        holds_token = wait_for_token(pool, now);
        timed_out = !holds_token;
    }
}

/* The worker leaves: from here on another thread may wait for it in pthread_join.  The worker only
 * has to release the lock and to return from worker_main.  Under lock.
 */
static void leave(struct pool *pool, struct worker *worker)
{
    pool->threads--;
    PROBE(worker_exit, pool, pool->threads);
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
    SCHEDULE_POINT();

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
