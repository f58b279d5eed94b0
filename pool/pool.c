/* SPDX-License-Identifier: BSD-3-Clause */
/* The way of a task (submitted, run, completed, cancelled), and the pool as a whole.  See pool.h
 * for what each function promises.  lanes.c decides which task gets the next slot.
 *
 * Submitters call in on any thread.  Workers (workers.c) take tasks out of the queues and complete
 * them.  The loop thread delivers completed tasks.  Nothing here creates a thread, and nothing here
 * runs a task on the loop thread.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "pool/pool-internal.h"
#include "pool/schedule-point.h"

#define IDLE_TIMEOUT_DEFAULT_NS 10000000000u

/* 31 years.  A deadline this far away fits a time_t of 32 bits, and no sum with it overflows. */
#define IDLE_TIMEOUT_MAX_NS 1000000000000000000u

/* --- The lock, and what holds whenever the lock is released --- */

void pool_lock(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
}

/* Every queued and running task is counted in its lane.  Every worker is starting, idle, or runs a
 * task.  Every granted or surplus token is in the semaphore or carried by a worker, which counts as
 * idle until it has the lock.  While threads cannot be created, each granted token has a worker of
 * its own to come for it.  No task waits for a slot that it may have.
 */
static void check_identities(struct pool *pool)
{
    const struct lane *fast = &pool->lanes[POOL_FAST], *slow = &pool->lanes[POOL_SLOW];
    int tokens;
    sem_getvalue(&pool->tokens, &tokens);
    assert(pool->queued == fast->queued + slow->queued);
    assert(pool->granted == fast->granted + slow->granted);
    assert(pool->running == fast->running + slow->running);
    assert(pool->threads == pool->starting + pool->idle + pool->running - pool->helpers);
    assert((unsigned)tokens <= pool->granted + pool->surplus);
    assert(pool->granted + pool->surplus - (unsigned)tokens <= pool->idle);
    assert(!pool->spawn_blocked || pool->granted <= pool->idle + pool->starting);
    assert(pool->queued == 0 || lanes_are_granted(pool));
}

void pool_unlock(struct pool *pool)
{
    check_identities(pool);
    /* A starting worker creates the next ones itself. */
    bool owed = workers_owed(pool) && pool->starting == 0;
    bool retry = pool->spawn_blocked && !pool->retry_armed && !pool->stopping;
    bool ask = (owed || retry) && !pool->manage_asked;
    if (ask)
        pool->manage_asked = true;
    if (pool->closing)
        pthread_cond_broadcast(&pool->changed);
    /* Before the unlock, because afterwards pool_free may go on and delete manage_bh. */
    if (ask)
        bh_schedule(pool->manage_bh);
    pthread_mutex_unlock(&pool->lock);
}

/* --- Completion --- */

/* The order is result, state, push, bottom half: a thread that sees the state sees the result.
 * After the push the loop thread may deliver the task, and then the task's memory may be gone.
 */
void pool_complete(struct pool *pool, struct task *task, int result)
{
    task->result = result;
    SCHEDULE_POINT();
    atomic_store(&task->state, TASK_DONE);
    SCHEDULE_POINT();
    stack_push(&pool->completed, &task->completed);
    SCHEDULE_POINT();
    bh_schedule(pool->completion_bh);
}

void pool_run_and_complete(struct pool *pool, struct task *task)
{
    pool_complete(pool, task, task->run(task));
}

static struct task *pop_delivering(struct pool *pool)
{
    struct link *link = queue_pop(&pool->delivering);
    return link ? container_of(link, struct task, completed) : NULL;
}

/* Tells the submitter that the task has its result.  waiter_wake or `done` is the last touch of the
 * task.
 */
static void deliver(struct task *task)
{
    struct task_waiter *waiter = task->waiter;
    SCHEDULE_POINT();
    atomic_store(&task->state, TASK_IDLE);
    SCHEDULE_POINT();
    if (waiter)
        waiter_wake(&waiter->waiter);
    else
        task->done(task);
}

/* The completion bottom half, on the loop thread.
 *
 * A callback may poll the loop until another task of the same batch is delivered.  Only a nested
 * call of this function can deliver that task, so the bottom half is scheduled again before the
 * first callback.  bh_cancel undoes that afterwards, and may also cancel a schedule made by a
 * worker meanwhile.  That worker has already pushed its task, so the check of `completed` below
 * finds the task.
 */
static void deliver_completed(void *opaque)
{
    struct pool *pool = opaque;
    struct task *task;
    unsigned delivered = 0;
    stack_drain(&pool->completed, &pool->delivering);
    SCHEDULE_POINT();
    bh_schedule(pool->completion_bh);
    while ((task = pop_delivering(pool))) {
        deliver(task);
        delivered++;
    }
    SCHEDULE_POINT();
    bh_cancel(pool->completion_bh);
    SCHEDULE_POINT();
    if (!stack_is_empty(&pool->completed))
        bh_schedule(pool->completion_bh); /* not a loop here, so that timers and watches run too */
    if (!delivered)
        return;
    pool_lock(pool);
    pool->undelivered -= delivered;
    pool->totals.completions += delivered;
    pool_unlock(pool);
}

/* --- The ways in --- */

int pool_submit(struct pool *pool, struct task *task)
{
    int error = 0;
    task->waiter = NULL;
    pool_lock(pool);
    if (pool->closing) {
        error = -ESHUTDOWN;
    } else if (lanes_are_stranded(pool)) {
        error = -EAGAIN;
    } else {
        pool->totals.submitted++;
        lanes_enqueue(pool, task);
        lanes_grant(pool);
    }
    pool_unlock(pool);
    return error;
}

/* Whether pool_run's caller may run its task at once.  Nothing may be queued before the task, so
 * that the lane stays a FIFO, and a slot must be free, so that the bound holds.  Under lock.
 */
static bool may_run_at_once(const struct pool *pool, const struct task *task)
{
    return lanes_waiter_runs(pool, task) && !pool->lanes[task->lane].head &&
           lanes_have_free_slot(pool, task->lane);
}

/* Runs the task on pool_run's caller, whose task occupies a slot already, and releases the slot. */
static int run_in_own_slot(struct pool *pool, struct task *task)
{
    int result = task->run(task);
    pool_lock(pool);
    atomic_store_explicit(&task->state, TASK_IDLE, memory_order_relaxed);
    pool->helpers--;
    lanes_release_slot(pool, task->lane);
    lanes_grant(pool);
    pool_unlock(pool);
    return result;
}

/* Waits until the task has its result, or until the caller gets a slot to run the task in. */
static int wait_for_task(struct pool *pool, struct task *task, struct task_waiter *waiter)
{
    waiter_wait(&waiter->waiter);
    if (waiter->runs_itself)
        task->result = run_in_own_slot(pool, task);
    return task->result;
}

int pool_run(struct pool *pool, struct task *task)
{
    assert(!loop_is_current(pool->loop));
    struct task_waiter waiter = {.runs_itself = false};
    task->waiter = &waiter;
    pool_lock(pool);
    if (pool->closing) {
        pool_unlock(pool);
        return -ESHUTDOWN;
    }
    pool->totals.submitted++;
    if (may_run_at_once(pool, task)) {
        lanes_start_on_caller(pool, task);
        lanes_count_start(pool, task, pool->helping ? POOL_HELPED : POOL_STRANDED, false);
        pool_unlock(pool);
        return task->result = run_in_own_slot(pool, task);
    }
    waiter_init(&waiter.waiter);
    lanes_enqueue(pool, task);
    lanes_grant(pool);
    pool_unlock(pool);
    int result = wait_for_task(pool, task, &waiter);
    waiter_destroy(&waiter.waiter);
    return result;
}

/* Completes a queued task with -ECANCELED.  Under lock. */
static void cancel_queued(struct pool *pool, struct task *task)
{
    lanes_dequeue(pool, task);
    if (task->has_token)
        pool->surplus++;
    pool->totals.cancelled++;
    pool_complete(pool, task, -ECANCELED);
}

int pool_cancel(struct pool *pool, struct task *task)
{
    int error;
    pool_lock(pool);
    switch (atomic_load(&task->state)) {
    case TASK_QUEUED:
        cancel_queued(pool, task);
        lanes_grant(pool);
        error = 0;
        break;
    case TASK_ACTIVE:
        error = -EBUSY;
        break;
    default:
        error = -EALREADY;
        break;
    }
    pool_unlock(pool);
    return error;
}

/* --- The pool as a whole --- */

static bool bounds_are_valid(unsigned min_threads, unsigned max_threads)
{
    return max_threads >= 1 && max_threads <= POOL_MAX_THREADS && min_threads <= max_threads;
}

int pool_set_bounds(struct pool *pool, unsigned min_threads, unsigned max_threads)
{
    if (!bounds_are_valid(min_threads, max_threads))
        return -EINVAL;
    pool_lock(pool);
    pool->min_threads = min_threads;
    pool->max_threads = max_threads;
    lanes_withdraw_tokens(pool);
    lanes_grant(pool);
    pool_unlock(pool);
    return 0;
}

void pool_read_counters(struct pool *pool, struct pool_counters *counters)
{
    pool_lock(pool);
    *counters = pool->totals;
    counters->max_threads = pool->max_threads;
    counters->min_threads = pool->min_threads;
    counters->threads = pool->threads;
    counters->starting = pool->starting;
    counters->idle = pool->idle;
    counters->queued = pool->queued;
    counters->queued_slow = pool->lanes[POOL_SLOW].queued;
    counters->running = pool->running;
    counters->running_slow = pool->lanes[POOL_SLOW].running;
    pool_unlock(pool);
}

/* An adaptive mutex spins before it sleeps.  The lock is held for less than a microsecond, and a
 * sleep costs about 50 us.  Measured with bench-pool, empty tasks: 1.3 times the throughput with 16
 * tasks in flight, 1.2 times with 64.
 */
static void init_lock(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static void free_memory(struct pool *pool)
{
    sem_destroy(&pool->tokens);
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* Afterwards no callback of the pool runs any more.  Loop thread. */
static void delete_callbacks(void *opaque)
{
    struct pool *pool = opaque;
    if (pool->completion_bh)
        bh_delete(pool->completion_bh);
    if (pool->manage_bh)
        bh_delete(pool->manage_bh);
    if (pool->retry_timer)
        loop_timer_delete(pool->retry_timer);
}

int pool_new(struct loop *loop, const struct pool_config *config, struct pool **out)
{
    if (!bounds_are_valid(config->min_threads, config->max_threads))
        return -EINVAL;
    struct pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return -ENOMEM;
    pool->loop = loop;
    pool->idle_timeout_ns =
        config->idle_timeout_ns ? config->idle_timeout_ns : IDLE_TIMEOUT_DEFAULT_NS;
    if (pool->idle_timeout_ns > IDLE_TIMEOUT_MAX_NS)
        pool->idle_timeout_ns = IDLE_TIMEOUT_MAX_NS;
    pool->helping = config->helping;
    pool->tally = config->tally;
    pool->max_threads = config->max_threads;
    pool->min_threads = config->min_threads;
    pool->retry_ns = POOL_RETRY_FIRST_NS;
    queue_init(&pool->delivering);
    sem_init(&pool->tokens, 0, 0);
    init_lock(&pool->lock);
    pthread_cond_init(&pool->changed, NULL);
    pool->completion_bh = bh_new(loop, deliver_completed, pool);
    pool->manage_bh = bh_new(loop, workers_manage, pool);
    pool->retry_timer = loop_timer_new(loop, workers_retry, pool);
    if (!pool->completion_bh || !pool->manage_bh || !pool->retry_timer) {
        if (loop_is_current(loop))
            delete_callbacks(pool);
        else
            loop_call(loop, delete_callbacks, pool);
        free_memory(pool);
        return -ENOMEM;
    }
    *out = pool;
    return 0;
}

void pool_free(struct pool *pool, enum pool_free_policy policy)
{
    assert(!loop_is_current(pool->loop));
    pool_lock(pool);
    pool->closing = true;
    for (unsigned i = 0; i < POOL_LANES && policy == POOL_CANCEL; i++)
        while (pool->lanes[i].head)
            cancel_queued(pool, pool->lanes[i].head);
    /* Workers are still created meanwhile when they are owed, because queued tasks must run. */
    while (pool->queued || pool->running || pool->undelivered || pool->starting)
        pthread_cond_wait(&pool->changed, &pool->lock);
    workers_stop(pool);
    pool_unlock(pool);
    SCHEDULE_POINT();
    loop_call(pool->loop, delete_callbacks, pool);
    SCHEDULE_POINT();
    workers_join_exited(pool);
    free_memory(pool);
}
