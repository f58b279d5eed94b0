/* SPDX-License-Identifier: BSD-3-Clause */
/* What pool.c (the way of a task), lanes.c (whose turn it is) and workers.c (the life of the threads) share, and nobody else.
 *
 * Tokens.  The semaphore's value is the number of queued tasks that have a token (`granted`), but for two
 * corrections.  A worker that has returned from the semaphore and is not yet at the lock carries a
 * token in its hand.  And when a task goes to someone who has not waited for its token, that token is surplus: the next
 * grant uses it instead of a post, or, when nothing is left to grant, it is taken out of the semaphore again; one that a worker
 * carries already stays surplus until that worker finds nothing to do.  Hence, under the lock:
 *
 *     semaphore + tokens in workers' hands == granted + surplus
 *
 * Slots.  A task has a slot from the moment it gets its token (or is taken without one) until it has
 * run: running + granted <= max_threads, and the same for the slow lane and its share.  Shrinking max_threads
 * withdraws tokens, not running tasks.
 */
#ifndef AIODISK_POOL_INTERNAL_H
#define AIODISK_POOL_INTERNAL_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "pool/pool.h"
#include "pool/stack.h"
#include "pool/waiter.h"

/* Back-off after a failed thread creation: 10 ms, doubled up to 1 s (workers.c). */
#define POOL_RETRY_FIRST_NS 10000000u

/* A queue in order of submission.  The tasks with a token are its first `granted` ones. */
struct lane {
    struct task *head, *tail;
    struct task *waiting; /* the first one without a token */
    unsigned queued;
    unsigned granted;
    unsigned running;
};

/* A pool_run caller that waits, on that caller's stack. */
struct task_waiter {
    struct waiter waiter;
    bool runs_itself; /* under lock until waiter_wake: the slot and the work are the caller's */
};

struct worker {
    struct pool *pool;
    pthread_t thread;    /* under lock, set by the worker itself */
    struct worker *next; /* under lock: in pool->exited */
};

struct pool {
    /* Set once by pool_new, read by anyone. */
    struct loop *loop;
    uint64_t idle_timeout_ns;
    bool helping;
    struct bh *completion_bh;
    struct bh *manage_bh;
    struct loop_timer *retry_timer;

    /* Any thread. */
    sem_t tokens;
    struct stack completed; /* tasks with a result */

    /* Loop thread only. */
    struct queue delivering; /* drained from `completed` */

    /* Under lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* broadcast at each unlock once `closing` */
    struct lane lanes[POOL_LANES];
    uint64_t next_sequence;
    unsigned max_threads;
    unsigned min_threads;
    unsigned queued; /* sum over the lanes, as granted and running */
    unsigned granted;
    unsigned running;
    unsigned helpers; /* of running: on a pool_run caller's thread */
    unsigned surplus; /* tokens that stand for no task */
    unsigned
        undelivered; /* enqueued, and `done` has not returned; not those taken back by their waiter */
    unsigned threads;   /* from before pthread_create until the worker's last lock */
    unsigned starting;  /* of these, not yet at their first look */
    unsigned idle;      /* of these, in the semaphore, or awake from it and not yet at the lock */
    bool manage_asked;  /* manage_bh is scheduled */
    bool spawn_blocked; /* the last creation failed; the retry timer will try again */
    bool retry_armed;
    bool closing;                /* pool_free began: nothing is accepted */
    bool stopping;               /* and nothing is left: workers leave */
    uint64_t retry_ns;           /* back-off of the retry timer */
    struct worker *exited;       /* have left the lock for the last time, to be joined */
    struct pool_counters totals; /* only its first group is used */
};

/* --- pool.c --- */

void pool_lock(struct pool *pool);

/* Checks the identities above, and asks for a worker when one is owed: nothing that changes the state can
 * forget to.
 */
void pool_unlock(struct pool *pool);

/* The task has its result: hands it to the completion bottom half.  With or without the lock, any thread. */
void pool_complete(struct pool *pool, struct task *task, int result);

/* Worker, without the lock: runs the task and hands it to the completion bottom half. */
void pool_run_and_complete(struct pool *pool, struct task *task);

/* --- lanes.c: all under lock --- */

void lanes_enqueue(struct pool *pool, struct task *task);

/* The task leaves the queue.  Its token, if it has one, is still in the semaphore or in a worker's hand: unless the caller
 * holds it, it becomes a surplus one, for the next grant to use without a system call.
 */
void lanes_dequeue(struct pool *pool, struct task *task);

bool lanes_have_free_slot(const struct pool *pool, enum pool_lane lane);
void lanes_occupy_slot(struct pool *pool, enum pool_lane lane);
void lanes_release_slot(struct pool *pool, enum pool_lane lane);

/* Will the pool_run caller that waits for this task run it, rather than a worker? */
bool lanes_waiter_runs(const struct pool *pool, const struct task *task);

/* Gives slots to those whose turn it is: a token for a worker, or, to a waiting
 * pool_run caller that is to run its own task, the slot itself.
 */
void lanes_grant(struct pool *pool);

/* Takes all tokens back, so that lanes_grant decides anew. */
void lanes_withdraw_tokens(struct pool *pool);

/* The next task that a worker may run, now running, or NULL.  holds_token: the caller has
 * waited for a token, and gives it up.
 */
struct task *lanes_take(struct pool *pool, bool holds_token);

/* No worker exists and none can be created. */
bool lanes_are_stranded(const struct pool *pool);

/* --- workers.c --- */

/* Under lock.  More tasks have a token than there are workers to take it, and another may be created.
 * Derived from the counters at every unlock, so that no failed creation can strand it.
 */
bool workers_owed(const struct pool *pool);

/* Loop thread: the bottom half and timer that create and join workers. */
void workers_manage(void *opaque);
void workers_retry(void *opaque);

/* Under lock, the lock is released meanwhile.  Returns when every worker has left. */
void workers_stop(struct pool *pool);

/* Joins those that have left. */
void workers_join_exited(struct pool *pool);

#endif
