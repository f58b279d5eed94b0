/* SPDX-License-Identifier: BSD-3-Clause */
/* The worker pool: runs blocking calls on threads it creates on demand.
 *
 * A task waits in the FIFO queue of its lane.  A semaphore carries one token for each queued task that
 * may run now; an idle worker sleeps on it.  A worker stores the result, pushes the task to the
 * completion list and schedules the completion bottom half; `done` is called on the loop thread and
 * nowhere else.  README.md, "The pool", draws it.
 *
 * Two ways in.  pool_submit returns at once.  pool_run waits, and since its caller can do
 * nothing else meanwhile, the pool may let the caller be the worker for its own task ("helping").
 *
 * The pool knows no disks: a task is a function.
 */
#ifndef AIODISK_POOL_H
#define AIODISK_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "pool/loop.h"
#include "pool/stack.h"

struct pool;
struct task;

/* The slow lane holds at most max(1, max_threads / 2) of the slots, so that a flood of calls known
 * to be slow (fsync, discard) leaves slots for the others as soon as there are two.
 */
enum pool_lane { POOL_FAST, POOL_SLOW, POOL_LANES };

enum task_state {
    TASK_IDLE,   /* not in the pool: never submitted, or done was called */
    TASK_QUEUED, /* in its lane's queue */
    TASK_ACTIVE, /* taken from the queue: being run */
    TASK_DONE,   /* has its result; done is about to be called */
};

/* One blocking call.  Lives in its submitter's memory (often its stack) from submission until `done`
 * is called or pool_run returns; the pool allocates nothing and touches nothing of it after that.
 * Zero it, then set the first four fields.
 */
struct task {
    /* Set by the submitter, read by the pool. */
    int (*run)(struct task *task); /* worker thread, or pool_run's caller; may block */
    void (*done)(
        struct task
            *task); /* loop thread; must not block; may free the task.  Unused by pool_run */
    enum pool_lane lane;

    /* What run returned, or -ECANCELED (cancelled) or -EAGAIN (no worker could be created).
     * Written before done is called, by whoever ran or removed the task.
     */
    int result;

    /* The pool's, under its lock. */
    _Atomic int state;          /* enum task_state; read without the lock by tests */
    struct task *prev, *next;   /* in the lane's queue */
    uint64_t sequence;          /* order of submission, over both lanes */
    bool has_token;             /* counted in the semaphore: it may run now */
    struct task_waiter *waiter; /* pool_run's caller, or NULL */

    struct link completed; /* the completing thread; once pushed, the loop thread */
};

struct pool_config {
    unsigned max_threads;     /* 1-POOL_MAX_THREADS: how many tasks may run at once */
    unsigned min_threads;     /* 0-max_threads: how many idle workers expiry keeps */
    uint64_t idle_timeout_ns; /* how long a worker waits for work before it leaves; 0 means 10 s */
    bool helping;             /* may pool_run's caller run its own task? */
};

#define POOL_MAX_THREADS 4096u

/* A consistent snapshot.  The first group are totals since pool_new, the second what is now. */
struct pool_counters {
    uint64_t submitted;   /* tasks accepted, by either way */
    uint64_t enqueued;    /* of these, put into a queue */
    uint64_t worker_runs; /* run by a worker */
    uint64_t helped;      /* run at once by pool_run's caller */
    uint64_t taken_back;  /* queued, then run by pool_run's waiting caller when a slot came free */
    uint64_t stranded_runs;   /* run by pool_run's caller because no worker could be created */
    uint64_t stranded_errors; /* failed with -EAGAIN because no worker could be created */
    uint64_t cancelled;       /* failed with -ECANCELED */
    uint64_t completions;     /* delivered by the completion bottom half */
    uint64_t threads_created;
    uint64_t spawn_failures;

    unsigned max_threads, min_threads;
    unsigned threads;      /* workers that exist: starting, idle or busy */
    unsigned starting;     /* created, and not yet at its first look for work */
    unsigned idle;         /* asleep on the semaphore, or awake and not yet at the lock */
    unsigned queued;       /* in a queue */
    unsigned running;      /* taken and not finished, by worker or caller; <= max_threads */
    unsigned running_slow; /* of these, in the slow lane */
};

/* Creates a pool without any worker.  The loop must outlive it.  Returns 0, -EINVAL (a bound out of
 * range) or -ENOMEM.  Any thread.
 */
int pool_new(struct loop *loop, const struct pool_config *config, struct pool **pool);

enum pool_free_policy {
    POOL_DRAIN,  /* run what is queued */
    POOL_CANCEL, /* complete what is queued with -ECANCELED */
};

/* Refuses new tasks, finishes or cancels the queued ones, waits for the running ones and for every
 * `done`, joins every worker and frees the pool.  When it returns no thread of the pool exists: the
 * code can be unmapped.  Any thread but the loop's and the workers'.  Callers still in pool_run
 * return first; a caller about to enter it must be kept away, as with any free.
 */
void pool_free(struct pool *pool, enum pool_free_policy policy);

/* Queues the task and returns 0; `done` will be called exactly once, on the loop thread.  An error
 * means that it will not be called: -ESHUTDOWN after pool_free began, -EAGAIN when there is no worker
 * and none can be created.  When that is found out only after the task was queued, `done`
 * gets -EAGAIN.  Any thread, also from inside `done`; does not block.
 */
int pool_submit(struct pool *pool, struct task *task);

/* Runs the task and returns its result; -ESHUTDOWN as above.  Blocks.  Never fails for lack of
 * threads: then the caller runs the task itself.  Any thread but the loop's and the workers'.
 * Whether caller or worker runs the task is decided here and in the place that hands out slots.
 */
int pool_run(struct pool *pool, struct task *task);

/* Cancels a task that is still queued: it completes once, with -ECANCELED.  Returns 0, or -EBUSY if it
 * runs, -EALREADY if it is done or cancelled already (or was never submitted).  The task's memory must
 * be valid: the caller knows that `done` has not returned, or is inside it.  Any thread; does not block.
 */
int pool_cancel(struct pool *pool, struct task *task);

/* Changes the bounds while tasks run.  A smaller max takes effect as running tasks finish.
 * Returns 0 or -EINVAL.  Any thread.
 */
int pool_set_bounds(struct pool *pool, unsigned min_threads, unsigned max_threads);

/* Any thread, at any time between pool_new and pool_free. */
void pool_read_counters(struct pool *pool, struct pool_counters *counters);

#endif
