/* SPDX-License-Identifier: BSD-3-Clause */
/* The lanes: who is queued, who has a token, and who gets the next slot.  pool-internal.h tells what tokens and slots are.
 *
 * Everything here runs under the pool's lock, on whichever thread holds it: submitters, workers, cancellers.
 * Nothing here blocks, creates a thread, or runs a task.
 */
#include <assert.h>
#include <errno.h>

#include "pool/pool-internal.h"

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
    pool->queued++;
    pool->undelivered++;
    pool->totals.enqueued++;
    atomic_store(&task->state, TASK_QUEUED);
}

void lanes_dequeue(struct pool *pool, struct task *task)
{
    struct lane *lane = &pool->lanes[task->lane];
    *(task->prev ? &task->prev->next : &lane->head) = task->next;
    *(task->next ? &task->next->prev : &lane->tail) = task->prev;
    lane->queued--;
    pool->queued--;
    if (task->has_token) {
        lane->granted--;
        pool->granted--;
    } else if (lane->waiting == task) {
        lane->waiting = task->next;
    }
}

/* Takes the tokens that stand for no task any more, and that no grant could use, out of the semaphore.  Those not there:
 * workers have returned from it with them and are about to find nothing; the next grants count on these workers.
 */
static void reclaim_surplus(struct pool *pool)
{
    while (pool->surplus > 0 && sem_trywait(&pool->tokens) == 0)
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

void lanes_release_slot(struct pool *pool, enum pool_lane lane)
{
    pool->running--;
    pool->lanes[lane].running--;
}

bool lanes_are_stranded(const struct pool *pool)
{
    return pool->spawn_blocked && pool->threads == 0;
}

bool lanes_waiter_runs(const struct pool *pool, const struct task *task)
{
    return task->waiter && (pool->helping || lanes_are_stranded(pool));
}

static struct task *older(struct task *a, struct task *b)
{
    return !a || (b && b->sequence < a->sequence) ? b : a;
}

/* The task that gets the next free slot.  A waiter that runs its own task does so at once, so it has
 * to be at the head: those before it that only have a token are not running yet.
 */
static struct task *next_to_grant(const struct pool *pool)
{
    struct task *next = NULL;
    for (unsigned i = 0; i < POOL_LANES; i++) {
        struct task *task = pool->lanes[i].waiting;
        if (task && lanes_have_free_slot(pool, i) &&
            !(lanes_waiter_runs(pool, task) && task != pool->lanes[i].head))
            next = older(next, task);
    }
    return next;
}

/* The waiting caller takes its task back, with the slot. */
static void give_to_waiter(struct pool *pool, struct task *task)
{
    lanes_dequeue(pool, task);
    lanes_occupy_slot(pool, task->lane);
    pool->helpers++;
    pool->undelivered--;
    if (lanes_are_stranded(pool))
        pool->totals.stranded_runs++;
    else
        pool->totals.taken_back++;
    atomic_store(&task->state, TASK_ACTIVE);
    task->waiter->runs_itself = true;
    waiter_wake(&task->waiter->waiter);
}

void lanes_grant(struct pool *pool)
{
    struct task *task;
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
    reclaim_surplus(pool);
}

/* A worker that has just given a slot back may take a task that has no token yet; one that holds a
 * token must not: its token stands for a task that has one.
 */
struct task *lanes_take(struct pool *pool, bool holds_token)
{
    struct task *task = NULL;
    for (unsigned i = 0; i < POOL_LANES; i++) {
        struct task *head = pool->lanes[i].head;
        if (head && (head->has_token || (!holds_token && lanes_have_free_slot(pool, i) &&
                                         !lanes_waiter_runs(pool, head))))
            task = older(task, head);
    }
    if (task) {
        lanes_dequeue(pool, task);
        if (task->has_token && !holds_token)
            pool->surplus++;
        lanes_occupy_slot(pool, task->lane);
        pool->totals.worker_runs++;
        atomic_store(&task->state, TASK_ACTIVE);
    } else if (holds_token) {
        assert(pool->surplus > 0);
        pool->surplus--;
    }
    lanes_grant(pool);
    return task;
}
