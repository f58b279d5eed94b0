/* SPDX-License-Identifier: BSD-3-Clause */
/* What pool.c (the way of a task), lanes.c (which task gets the next slot) and workers.c (the life
 * of the threads) share.  No other file includes this one.
 *
 * Tokens.  Each token in the semaphore stands for one queued task that may run (`granted` counts
 * these tasks), with two corrections.  First, a worker that has returned from sem_clockwait(3) and
 * does not have the lock yet carries a token.  Second, some tokens are surplus: they stand for no
 * task.  A token becomes surplus when its task is cancelled, when a worker that has not waited for
 * a token takes the task, or when the token is withdrawn from the task; and workers_stop posts a
 * surplus token to wake a worker.  The next grant uses a surplus token instead of sem_post(3).
 * When nothing is left to grant, lanes_grant takes the surplus tokens out of the semaphore, unless
 * pool_free is waking the workers with them.  A surplus token that a worker carries stays surplus
 * until that worker has the lock and finds no task.  Hence, under the lock:
 *
 *     semaphore + tokens carried by workers == granted + surplus
 *
 * Slots.  A task has a slot from the moment it gets its token, or is taken without a token, until
 * it has run.  No slot is given away unless running + granted < max_threads; the slow lane has the
 * same rule for its share.  A smaller max_threads withdraws tokens, but does not stop running
 * tasks.
 *
 * Usually a task may get a token before there is a worker for it, because the missing worker is
 * then owed (workers_owed) and is created.  While threads cannot be created (spawn_blocked), no
 * more tasks have a token than workers are idle or starting:
 *
 *     granted <= idle + starting
 *
 * So a token never reserves a slot for a worker that does not come.
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

/* A queue in order of submission.  The tasks with a token are its first `granted` tasks. */
struct lane {
    /* Under the pool's lock. */
    struct task *head, *tail;
    struct task *waiting; /* the first task without a token */
    unsigned queued;      /* tasks in the queue */
    unsigned callers;     /* of these, those that a pool_run caller waits for */
    unsigned granted;     /* of these, with a token */
    unsigned running;     /* tasks that left the queue, or never were in it, and occupy a slot */
};

/* A pool_run caller that waits, on that caller's stack. */
struct task_waiter {
    struct waiter waiter;
    bool runs_itself; /* the caller got a slot for its own task; under lock until waiter_wake */
};

struct worker {
    struct pool *pool;   /* set once by create_worker */
    pthread_t thread;    /* under lock; set by the worker itself */
    struct worker *next; /* under lock; in pool->exited */
};

struct pool {
    /* Set once by pool_new, read by anyone. */
    struct loop *loop;
    uint64_t idle_timeout_ns;
    bool helping;
    struct tally *tally;
    struct bh *completion_bh;
    struct bh *manage_bh;
    struct loop_timer *retry_timer;

    /* Any thread. */
    sem_t tokens;
    struct stack completed; /* tasks that have their result */

    /* Loop thread only. */
    struct queue delivering; /* drained from `completed` */

    /* Under lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* broadcast at each unlock once `closing` is set */
    struct lane lanes[POOL_LANES];
    uint64_t next_sequence;
    unsigned max_threads;
    unsigned min_threads;
    unsigned queued;      /* the sum over the lanes, as are granted and running */
    unsigned granted;     /* queued tasks with a token */
    unsigned running;     /* tasks in a slot that left the queue or never were in it */
    unsigned helpers;     /* of `running`: on the thread of a pool_run caller */
    unsigned surplus;     /* tokens that stand for no task */
    unsigned undelivered; /* enqueued tasks without their `done`; not those taken back */
    unsigned threads;     /* workers, from before pthread_create until leave() */
    unsigned starting;    /* of these, not yet at their first look for a task */
    unsigned idle;        /* of these, in sem_clockwait, or back from it and not yet at the lock */
    unsigned least_idle;  /* the smallest `idle` since the window began (count_unneeded) */
    unsigned unneeded;    /* how many workers may leave in this window without a time-out */
    bool manage_asked;    /* manage_bh was scheduled, and has not yet looked at the pool */
    bool spawn_blocked; /* the last creation failed; a retry or a worker that starts clears this */
    bool retry_armed;   /* the retry timer is armed, or workers_manage is about to arm it */
    bool closing;       /* pool_free began: no task is accepted */
    bool stopping;      /* pool_free found the pool empty: workers leave */
    uint64_t window_end_ns;      /* when least_idle starts anew, in CLOCK_MONOTONIC */
    uint64_t retry_ns;           /* the back-off for which the retry timer is armed next */
    struct worker *exited;       /* have left and are to be joined */
    struct pool_counters totals; /* only its first group is used */
};

/* --- pool.c --- */

void pool_lock(struct pool *pool);

/* Checks the identities between the counters, and schedules manage_bh when a worker is owed or a
 * retry is to be armed.  Every change of the pool ends here, so no change can forget to ask for a
 * worker.
 */
void pool_unlock(struct pool *pool);

/* Stores the result and hands the task to the completion bottom half.  Any thread, with or without
 * the lock.
 */
void pool_complete(struct pool *pool, struct task *task, int result);

/* Runs the task and hands it to the completion bottom half.  Worker, without the lock. */
void pool_run_and_complete(struct pool *pool, struct task *task);

/* --- lanes.c: all under lock --- */

/* Appends the task to the queue of its lane, without a token. */
void lanes_enqueue(struct pool *pool, struct task *task);

/* Removes the task from the queue of its lane.  The token of a task that has one is not moved: it
 * is in the semaphore or carried by a worker.  Unless the caller is that worker, it counts the
 * token as surplus.
 */
void lanes_dequeue(struct pool *pool, struct task *task);

/* Whether one more task of the lane may occupy a slot. */
bool lanes_have_free_slot(const struct pool *pool, enum pool_lane lane);
void lanes_occupy_slot(struct pool *pool, enum pool_lane lane);
void lanes_release_slot(struct pool *pool, enum pool_lane lane);

/* Occupies a slot for a task that is in no queue and that its pool_run caller runs. */
void lanes_start_on_caller(struct pool *pool, struct task *task);

/* Counts a task that starts to run, in the totals and in the tally.  queued: it was in a queue. */
void lanes_count_start(struct pool *pool, const struct task *task, enum pool_path path,
                       bool queued);

/* Whether the pool_run caller that waits for this task is to run the task, rather than a worker. */
bool lanes_waiter_runs(const struct pool *pool, const struct task *task);

/* Gives the free slots to the oldest tasks that may have them.  A task for a worker gets a token.
 * A task whose pool_run caller is to run it is given back to that caller with the slot.
 *
 * While threads cannot be created, no more tasks keep a token than workers are idle or starting.
 * When no worker can come for the head of a lane, the callers of that lane get the slots, and the
 * tasks without a caller wait for a busy worker; when no worker exists, these complete with
 * -EAGAIN.  So this is called after each change of a queue, a slot, `idle` or spawn_blocked.
 */
void lanes_grant(struct pool *pool);

/* Whether lanes_grant would have nothing to do. */
bool lanes_are_granted(const struct pool *pool);

/* Takes the tokens of all queued tasks back, so that lanes_grant decides anew. */
void lanes_withdraw_tokens(struct pool *pool);

/* Takes the next task that a worker may run out of its queue, into a slot.  Returns NULL when there
 * is none.  holds_token: the calling worker has waited for a token, and gives the token up.
 */
struct task *lanes_take(struct pool *pool, bool holds_token);

/* Whether no worker exists and the last creation failed. */
bool lanes_are_stranded(const struct pool *pool);

/* --- workers.c --- */

/* Whether another worker is to be created: more tasks have a token than workers are idle or
 * starting, and a worker may be created.  pool_unlock derives this from the counters each time and
 * nothing remembers it, so a failed creation cannot strand it.  Under lock.
 */
bool workers_owed(const struct pool *pool);

/* The callbacks of manage_bh and retry_timer: create and join workers.  Loop thread, without the
 * lock.
 */
void workers_manage(void *opaque);
void workers_retry(void *opaque);

/* Makes every worker leave, and returns when all have left.  Under lock; the wait releases the
 * lock.
 */
void workers_stop(struct pool *pool);

/* Joins the workers that have left.  Without the lock; the loop thread, or pool_free at its end. */
void workers_join_exited(struct pool *pool);

#endif
