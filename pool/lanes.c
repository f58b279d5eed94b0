/* SPDX-License-Identifier: BSD-3-Clause */
/* The lanes: which tasks are queued, which have a token, and which task gets the next slot.
 * pool-internal.h explains tokens and slots.
 *
 * Everything here runs under the pool's lock, on whichever thread holds the lock: a submitter, a
 * worker, a canceller, or the loop thread.  Nothing here blocks, creates a thread, or runs a task.
 */
#include <assert.h>
#include <errno.h>

#include "pool/pool-internal.h"
#include "pool/probe.h"
#include "pool/schedule-point.h"

/* --- Queues and tokens --- */

void lanes_enqueue(struct pool *pool, struct task *task)
{
    struct lane *lane = &pool->lanes[task->lane];
    task->sequence = pool->next_sequence++;
    task->has_token = false;
    task->next = NULL;
    task->prev = lane->tail;
    *(lane->tail ? &lane->tail->next : &lane->head) = task;
    lane->tail = task;
    if (!lane->waiting)
        lane->waiting = task;
    lane->queued++;
    lane->callers += task->waiter != NULL;
    pool->queued++;
    pool->undelivered++;
    pool->totals.enqueued++;
    if (pool->tally)
        task->enqueued_ns = tally_now();
    atomic_store(&task->state, TASK_QUEUED);
    PROBE(task_queue, task, task->lane, pool->queued);
}

void lanes_dequeue(struct pool *pool, struct task *task)
{
    struct lane *lane = &pool->lanes[task->lane];
    *(task->prev ? &task->prev->next : &lane->head) = task->next;
    *(task->next ? &task->next->prev : &lane->tail) = task->prev;
    lane->queued--;
    lane->callers -= task->waiter != NULL;
    pool->queued--;
    if (task->has_token) {
        lane->granted--;
        pool->granted--;
    } else if (lane->waiting == task) {
        lane->waiting = task->next;
    }
}

/* Takes surplus tokens out of the semaphore; called when no task is left to grant them to.  A
 * surplus token that is not in the semaphore is carried by a worker, which will find no task.  That
 * token stays surplus, and the next grant relies on that worker.
 *
 * While the workers leave, the surplus tokens stay, because they wake the sleeping workers.
 * Otherwise: pool_free posts a token; another thread changes the bounds, or the retry timer runs,
 * and takes the token back before a worker has it; the worker sleeps until its time-out, and
 * pool_free waits for the worker.
 */
static void reclaim_surplus(struct pool *pool)
{
    while (!pool->stopping && pool->surplus > 0 && sem_trywait(&pool->tokens) == 0)
        pool->surplus--;
}

static void grant_token(struct pool *pool, struct task *task)
{
    struct lane *lane = &pool->lanes[task->lane];
    assert(task == lane->waiting);
    task->has_token = true;
    lane->waiting = task->next;
    lane->granted++;
    pool->granted++;
    if (pool->surplus > 0)
        pool->surplus--;
    else
        sem_post(&pool->tokens);
}

void lanes_withdraw_tokens(struct pool *pool)
{
    for (unsigned i = 0; i < POOL_LANES; i++) {
        struct lane *lane = &pool->lanes[i];
        for (struct task *task = lane->head; task != lane->waiting; task = task->next) {
            task->has_token = false;
            pool->surplus++;
        }
        lane->waiting = lane->head;
        pool->granted -= lane->granted;
        lane->granted = 0;
    }
}

/* --- Slots --- */

bool lanes_have_free_slot(const struct pool *pool, enum pool_lane lane)
{
    if (pool->running + pool->granted >= pool->max_threads)
        return false;
    if (lane == POOL_FAST)
        return true;
    unsigned share = pool->max_threads / 2 > 1 ? pool->max_threads / 2 : 1;
    return pool->lanes[lane].running + pool->lanes[lane].granted < share;
}

void lanes_occupy_slot(struct pool *pool, enum pool_lane lane)
{
    pool->running++;
    pool->lanes[lane].running++;
}

void lanes_start_on_caller(struct pool *pool, struct task *task)
{
    lanes_occupy_slot(pool, task->lane);
    pool->helpers++;
    atomic_store_explicit(&task->state, TASK_ACTIVE, memory_order_relaxed);
}

void lanes_count_start(struct pool *pool, const struct task *task, enum pool_path path, bool queued)
{
    uint64_t *totals[POOL_PATHS] = {
        [POOL_HELPED] = &pool->totals.helped,
        [POOL_WORKER] = &pool->totals.worker_runs,
        [POOL_TAKEN_BACK] = &pool->totals.taken_back,
        [POOL_STRANDED] = &pool->totals.stranded_runs,
    };
    ++*totals[path];
    PROBE(task_start, task, task->lane, path);
    if (!pool->tally)
        return;
    tally_add(pool->tally, POOL_TALLY_TASKS + task->lane * POOL_PATHS + path, 1);
    tally_record(pool->tally, POOL_TALLY_WAIT + task->lane * TALLY_HISTOGRAM,
                 queued ? tally_now() - task->enqueued_ns : 0);
}

void lanes_release_slot(struct pool *pool, enum pool_lane lane)
{
    pool->running--;
    pool->lanes[lane].running--;
}

bool lanes_are_stranded(const struct pool *pool)
{
    return pool->spawn_blocked && pool->threads == 0;
}

/* Whether one more token would wait for a worker that is busy, perhaps for ever: no worker can be
 * created, and each idle or starting worker has a task with a token to come for.
 */
static bool no_worker_comes(const struct pool *pool)
{
    return pool->spawn_blocked && pool->granted >= pool->idle + pool->starting;
}

bool lanes_waiter_runs(const struct pool *pool, const struct task *task)
{
    return task->waiter && (pool->helping || no_worker_comes(pool));
}

static struct task *older(struct task *a, struct task *b)
{
    return !a || (b && b->sequence < a->sequence) ? b : a;
}

/* The oldest task without a token that a pool_run caller waits for, or NULL.  The search passes the
 * tasks of pool_submit that wait for a worker.  `callers` saves it when there is nothing to find.
 */
static struct task *oldest_of_callers(const struct lane *lane)
{
    struct task *task = lane->callers ? lane->waiting : NULL;
    while (task && !task->waiter)
        task = task->next;
    return task;
}

/* The task of this lane that gets the next slot, or NULL.
 *
 * While a worker can come, the oldest task without a token is next.  A caller that runs its own
 * task starts at once, so its task must be at the head of the lane: the tasks before it that only
 * have a token are not running yet, and it would overtake them.
 *
 * While no worker can come, the tasks of pool_submit stay where they are until a busy worker takes
 * them.  The callers do not wait for that worker: their tasks overtake those of pool_submit, in
 * order among themselves.  Without any worker the tasks of pool_submit do not stay: they fail.
 */
static struct task *next_of_lane(const struct pool *pool, enum pool_lane i)
{
    const struct lane *lane = &pool->lanes[i];
    struct task *task = lane->waiting;
    if (!task || !lanes_have_free_slot(pool, i))
        return NULL;
    if (no_worker_comes(pool))
        return lanes_are_stranded(pool) ? task : oldest_of_callers(lane);
    return lanes_waiter_runs(pool, task) && task != lane->head ? NULL : task;
}

/* The older one of the two tasks that the lanes would serve next, or NULL. */
static struct task *next_to_grant(const struct pool *pool)
{
    return older(next_of_lane(pool, POOL_FAST), next_of_lane(pool, POOL_SLOW));
}

bool lanes_are_granted(const struct pool *pool)
{
    return !next_to_grant(pool);
}

/* Gives the task back to the caller that waits for it, with a slot.  The caller needs the lock
 * before it can return, so the task's memory stays valid until the lock is released.
 */
static void give_to_waiter(struct pool *pool, struct task *task)
{
    bool is_next = pool->helping && task == pool->lanes[task->lane].head;
    lanes_count_start(pool, task, is_next ? POOL_TAKEN_BACK : POOL_STRANDED, true);
    lanes_dequeue(pool, task);
    lanes_start_on_caller(pool, task);
    pool->undelivered--;
    task->waiter->runs_itself = true;
    SCHEDULE_POINT();
    waiter_wake(&task->waiter->waiter);
}

void lanes_grant(struct pool *pool)
{
    struct task *task;
    if (pool->spawn_blocked && pool->granted > pool->idle + pool->starting)
        lanes_withdraw_tokens(pool);
    while ((task = next_to_grant(pool))) {
        if (lanes_waiter_runs(pool, task)) {
            give_to_waiter(pool, task);
        } else if (lanes_are_stranded(pool)) {
            lanes_dequeue(pool, task);
            pool->totals.stranded_errors++;
            pool_complete(pool, task, -EAGAIN);
        } else {
            grant_token(pool, task);
        }
    }
    SCHEDULE_POINT();
    reclaim_surplus(pool);
}

/* A worker that holds no token has just released a slot or has just started, and may take a task
 * that has no token yet, unless the task's caller is to run it (helping).  A worker that holds a
 * token may not: its token stands for a task that has one.
 */
struct task *lanes_take(struct pool *pool, bool holds_token)
{
    struct task *task = NULL;
    for (unsigned i = 0; i < POOL_LANES; i++) {
        struct task *head = pool->lanes[i].head;
        if (head && (head->has_token || (!holds_token && lanes_have_free_slot(pool, i) &&
                                         !(pool->helping && head->waiter))))
            task = older(task, head);
    }
    if (task) {
        lanes_dequeue(pool, task);
        if (task->has_token && !holds_token)
            pool->surplus++;
        lanes_occupy_slot(pool, task->lane);
        lanes_count_start(pool, task, POOL_WORKER, true);
        atomic_store(&task->state, TASK_ACTIVE);
    } else if (holds_token) {
        assert(pool->surplus > 0);
        pool->surplus--;
    }
    lanes_grant(pool);
    return task;
}
