/* SPDX-License-Identifier: BSD-3-Clause */
/* The way of a task: submitted, queued, given a slot, run, completed.  See pool.h for what it promises,
 * and pool-internal.h for what tokens and slots are.
 *
 * Submitters call in from any thread, workers (workers.c) take tasks out and complete them, the loop thread
 * delivers completions.  Nothing here creates a thread, and nothing here runs a task on the loop thread.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "pool/pool-internal.h"

#define IDLE_TIMEOUT_DEFAULT_NS 10000000000u

/* A pool_run caller that waits.  On its stack: whoever posts `wake` touches nothing of it afterwards. */
struct task_waiter {
    sem_t wake;
    bool runs_itself; /* under lock until `wake` is posted: the slot is the caller's, and so is the work */
};

/* --- The lock, and what must hold whenever it is released --- */

void pool_lock(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
}

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
}

void pool_unlock(struct pool *pool)
{
    check_identities(pool);
    /* A starting worker continues the chain itself. */
    bool owed = workers_owed(pool) && pool->starting == 0;
    bool retry = pool->spawn_blocked && !pool->retry_armed && !pool->stopping;
    bool ask = (owed || retry) && !pool->manage_asked;
    if (ask)
        pool->manage_asked = true;
    if (pool->closing)
        pthread_cond_broadcast(&pool->changed);
    /* Before the unlock: manage_asked promises pool_free that the bottom half still exists. */
    if (ask)
        bh_schedule(pool->manage_bh);
    pthread_mutex_unlock(&pool->lock);
}

/* --- Lanes: all under lock --- */

static void enqueue(struct pool *pool, struct task *task)
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

/* The task leaves the queue.  Its token, if it has one, is still in the semaphore or in a worker's hand: unless the caller
 * holds it, it becomes a surplus one, for the next grant to use without a system call.
 */
static void dequeue(struct pool *pool, struct task *task)
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

void pool_withdraw_tokens(struct pool *pool)
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

/* --- Slots: all under lock --- */

static bool has_free_slot(const struct pool *pool, enum pool_lane lane)
{
    if (pool->running + pool->granted >= pool->max_threads)
        return false;
    if (lane == POOL_FAST)
        return true;
    unsigned share = pool->max_threads / 2 > 1 ? pool->max_threads / 2 : 1;
    return pool->lanes[lane].running + pool->lanes[lane].granted < share;
}

static void occupy_slot(struct pool *pool, enum pool_lane lane)
{
    pool->running++;
    pool->lanes[lane].running++;
}

void pool_release_slot(struct pool *pool, enum pool_lane lane)
{
    pool->running--;
    pool->lanes[lane].running--;
}

bool pool_is_stranded(const struct pool *pool)
{
    return pool->spawn_blocked && pool->threads == 0;
}

/* Will the pool_run caller that waits for this task run it, rather than a worker? */
static bool waiter_runs_it(const struct pool *pool, const struct task *task)
{
    return task->waiter && (pool->helping || pool_is_stranded(pool));
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
        if (task && has_free_slot(pool, i) && !(waiter_runs_it(pool, task) && task != pool->lanes[i].head))
            next = older(next, task);
    }
    return next;
}

/* Any thread.  The result, then the state, then the bottom half: whoever sees the state sees the result.
 * After the push the loop thread may deliver the task and its memory may be gone.
 */
static void complete(struct pool *pool, struct task *task, int result)
{
    task->result = result;
    atomic_store(&task->state, TASK_DONE);
    task->next = atomic_load(&pool->completed);
    while (!atomic_compare_exchange_weak(&pool->completed, &task->next, task))
        ;
    bh_schedule(pool->completion_bh);
}

/* The waiting caller takes its task back, with the slot. */
static void give_to_waiter(struct pool *pool, struct task *task)
{
    dequeue(pool, task);
    occupy_slot(pool, task->lane);
    pool->helpers++;
    pool->undelivered--;
    if (pool_is_stranded(pool))
        pool->totals.stranded_runs++;
    else
        pool->totals.taken_back++;
    atomic_store(&task->state, TASK_ACTIVE);
    task->waiter->runs_itself = true;
    sem_post(&task->waiter->wake);
}

void pool_grant(struct pool *pool)
{
    struct task *task;
    while ((task = next_to_grant(pool))) {
        if (waiter_runs_it(pool, task)) {
            give_to_waiter(pool, task);
        } else if (pool_is_stranded(pool)) {
            dequeue(pool, task);
            pool->totals.stranded_errors++;
            complete(pool, task, -EAGAIN);
        } else {
            grant_token(pool, task);
        }
    }
    reclaim_surplus(pool);
}

/* A worker that has just given a slot back may take a task that has no token yet; one that holds a
 * token must not: its token stands for a task that has one.
 */
struct task *pool_take(struct pool *pool, bool holds_token)
{
    struct task *task = NULL;
    for (unsigned i = 0; i < POOL_LANES; i++) {
        struct task *head = pool->lanes[i].head;
        if (head && (head->has_token ||
                     (!holds_token && has_free_slot(pool, i) && !waiter_runs_it(pool, head))))
            task = older(task, head);
    }
    if (task) {
        dequeue(pool, task);
        if (task->has_token && !holds_token)
            pool->surplus++;
        occupy_slot(pool, task->lane);
        pool->totals.worker_runs++;
        atomic_store(&task->state, TASK_ACTIVE);
    } else if (holds_token) {
        assert(pool->surplus > 0);
        pool->surplus--;
    }
    pool_grant(pool);
    return task;
}

/* --- Completion --- */

void pool_run_and_complete(struct pool *pool, struct task *task)
{
    complete(pool, task, task->run(task));
}

/* Loop thread: moves the stack to the end of the list to deliver, oldest first. */
static void collect_completed(struct pool *pool)
{
    struct task *task = atomic_exchange(&pool->completed, NULL);
    struct task *last = task, *oldest_first = NULL;
    unsigned count = 0;
    while (task) {
        struct task *next = task->next;
        task->next = oldest_first;
        oldest_first = task;
        task = next;
        count++;
    }
    if (!count)
        return;
    *pool->delivering_tail = oldest_first;
    pool->delivering_tail = &last->next;
    pool_lock(pool);
    pool->totals.completions += count;
    pool_unlock(pool);
}

static struct task *pop_delivering(struct pool *pool)
{
    struct task *task = pool->delivering;
    if (task) {
        pool->delivering = task->next;
        if (!pool->delivering)
            pool->delivering_tail = &pool->delivering;
    }
    return task;
}

static void deliver(struct task *task)
{
    struct task_waiter *waiter = task->waiter;
    atomic_store(&task->state, TASK_IDLE);
    if (waiter)
        sem_post(&waiter->wake);
    else
        task->done(task);
}

/* The completion bottom half, on the loop thread.  A callback may poll the loop and wait there for
 * a task that stands behind it in this batch: so the bottom half is scheduled again before the callbacks.
 * Undoing that afterwards may undo a worker's scheduling as well; but the worker pushed its task before, so
 * the look after the cancel finds it.
 */
static void deliver_completed(void *opaque)
{
    struct pool *pool = opaque;
    struct task *task;
    unsigned delivered = 0;
    collect_completed(pool);
    bh_schedule(pool->completion_bh);
    while ((task = pop_delivering(pool))) {
        deliver(task);
        delivered++;
    }
    bh_cancel(pool->completion_bh);
    if (atomic_load(&pool->completed))
        bh_schedule(pool->completion_bh); /* not a loop here: timers and watches get their turn */
    if (!delivered)
        return;
    pool_lock(pool);
    pool->undelivered -= delivered;
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
    } else if (pool_is_stranded(pool)) {
        error = -EAGAIN;
    } else {
        pool->totals.submitted++;
        enqueue(pool, task);
        pool_grant(pool);
    }
    pool_unlock(pool);
    return error;
}

/* Under lock.  May pool_run's caller run its task at once?  Only when nothing of its lane is queued before it, so
 * the lane stays a FIFO, and only in a free slot, so the bound holds.
 */
static bool may_run_at_once(const struct pool *pool, const struct task *task)
{
    return waiter_runs_it(pool, task) && !pool->lanes[task->lane].head && has_free_slot(pool, task->lane);
}

static int run_in_own_slot(struct pool *pool, struct task *task)
{
    int result = task->run(task);
    pool_lock(pool);
    pool->helpers--;
    pool_release_slot(pool, task->lane);
    pool_grant(pool);
    pool_unlock(pool);
    return result;
}

/* Waits for a worker's completion, or for a slot to run the task in. */
static int wait_for_task(struct pool *pool, struct task *task, struct task_waiter *waiter)
{
    while (sem_wait(&waiter->wake) < 0)
        assert(errno == EINTR);
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
        occupy_slot(pool, task->lane);
        pool->helpers++;
        if (pool_is_stranded(pool))
            pool->totals.stranded_runs++;
        else
            pool->totals.helped++;
        pool_unlock(pool);
        return task->result = run_in_own_slot(pool, task);
    }
    sem_init(&waiter.wake, 0, 0);
    enqueue(pool, task);
    pool_grant(pool);
    pool_unlock(pool);
    int result = wait_for_task(pool, task, &waiter);
    sem_destroy(&waiter.wake);
    return result;
}

/* Under lock. */
static void cancel_queued(struct pool *pool, struct task *task)
{
    dequeue(pool, task);
    if (task->has_token)
        pool->surplus++;
    pool->totals.cancelled++;
    complete(pool, task, -ECANCELED);
}

int pool_cancel(struct pool *pool, struct task *task)
{
    int error;
    pool_lock(pool);
    switch (atomic_load(&task->state)) {
    case TASK_QUEUED:
        cancel_queued(pool, task);
        pool_grant(pool);
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
    pool_withdraw_tokens(pool);
    pool_grant(pool);
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
    counters->running = pool->running;
    counters->running_slow = pool->lanes[POOL_SLOW].running;
    pool_unlock(pool);
}

/* Spins a little before it sleeps: the lock is held for less than a microsecond, a sleep costs fifty.  Measured with
 * bench-pool, empty tasks: 1.3 times the throughput with 16 in flight, 1.2 times with 64.
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

/* Loop thread: afterwards no callback of the pool's runs or will run. */
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
    pool->idle_timeout_ns = config->idle_timeout_ns ? config->idle_timeout_ns : IDLE_TIMEOUT_DEFAULT_NS;
    pool->helping = config->helping;
    pool->max_threads = config->max_threads;
    pool->min_threads = config->min_threads;
    pool->retry_ns = POOL_RETRY_FIRST_NS;
    pool->delivering_tail = &pool->delivering;
    sem_init(&pool->tokens, 0, 0);
    init_lock(&pool->lock);
    pthread_cond_init(&pool->changed, NULL);
    pool->completion_bh = bh_new(loop, deliver_completed, pool);
    pool->manage_bh = bh_new(loop, workers_manage, pool);
    pool->retry_timer = loop_timer_new(loop, workers_retry, pool);
    if (!pool->completion_bh || !pool->manage_bh || !pool->retry_timer) {
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
    /* Until then workers are still created when owed: what is queued must run. */
    while (pool->queued || pool->running || pool->undelivered || pool->starting)
        pthread_cond_wait(&pool->changed, &pool->lock);
    workers_stop(pool);
    pool_unlock(pool);
    loop_call(pool->loop, delete_callbacks, pool);
    workers_join_exited(pool);
    free_memory(pool);
}
