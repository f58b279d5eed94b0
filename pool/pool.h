/* SPDX-License-Identifier: BSD-3-Clause */
/* The worker pool: runs blocking calls on threads that the pool creates on demand.
 *
 * A task waits in the FIFO queue of its lane.  A semaphore carries one token for each queued task
 * that may run now, and idle workers sleep on the semaphore.  A worker runs the task, stores the
 * result, pushes the task to the list of completed tasks and schedules the completion bottom half.
 * That bottom half calls `done` on the loop thread; no other thread calls `done`.  README.md draws
 * this.
 *
 * There are two ways in.  pool_submit returns at once.  pool_run waits for the result; its caller
 * can do nothing else meanwhile, so the pool may let the caller run its own task ("helping").
 *
 * The pool knows no disks: a task is a function.
 */
#ifndef AIODISK_POOL_H
#define AIODISK_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "pool/loop.h"
#include "pool/stack.h"
#include "pool/tally.h"

struct pool;
struct task;

/* The slow lane is for calls known to be slow (fsync, discard).  It holds at most max(1,
 * max_threads / 2) of the slots, so with two slots or more a flood of slow calls leaves slots for
 * the fast lane.
 */
enum pool_lane { POOL_FAST, POOL_SLOW, POOL_LANES };

enum task_state {
    TASK_IDLE,   /* never submitted; or pool_run's caller has run it; or `done` was or is called */
    TASK_QUEUED, /* in its lane's queue */
    TASK_ACTIVE, /* being run, by a worker or by pool_run's caller */
    TASK_DONE,   /* has its result; the loop thread is about to call `done` */
};

/* One blocking call.  The submitter owns the memory (often its stack) and keeps it valid until
 * `done` is called or pool_run returns.  The pool allocates nothing for a task, and touches nothing
 * of the task afterwards.  The submitter zeroes the task and sets run, lane and, for pool_submit,
 * done.
 */
struct task {
    /* Set by the submitter, read by the pool. */

    /* The call, which may block.  Called once, on a worker or on pool_run's caller. */
    int (*run)(struct task *task);
    /* Called once, on the loop thread; must not block; may free the task.  pool_run does not use
     * it.
     */
    void (*done)(struct task *task);
    enum pool_lane lane;

    /* What `run` returned, or -ECANCELED (cancelled), or -EAGAIN (no worker could be created).
     * Written by the thread that runs or removes the task; valid when `done` is called or pool_run
     * returns.
     */
    int result;

    /* The pool's, under its lock. */
    _Atomic int state;          /* enum task_state; deliver() writes it without the lock */
    struct task *prev, *next;   /* in the lane's queue */
    uint64_t sequence;          /* order of submission, over both lanes */
    uint64_t enqueued_ns;       /* when the task was queued, if the pool has a tally */
    bool has_token;             /* one token of the semaphore stands for this task */
    struct task_waiter *waiter; /* pool_run's caller, or NULL */

    /* The thread that completes the task, until the push; then the loop thread. */
    struct link completed;
};

struct pool_config {
    unsigned max_threads; /* 1-POOL_MAX_THREADS: how many tasks may run at once */
    unsigned min_threads; /* 0-max_threads: how many workers stay when they are idle */
    /* How long an idle worker waits before it exits, and a worker that the pool can do without
     * stays (workers.c).  0 means 10 s; more than 31 years means 31 years.
     */
    uint64_t idle_timeout_ns;
    bool helping;        /* whether pool_run's caller may run its own task */
    struct tally *tally; /* counts what enum pool_counter lists; outlives the pool; or NULL */
};

/* Who ran a task; see struct pool_counters. */
enum pool_path { POOL_HELPED, POOL_WORKER, POOL_TAKEN_BACK, POOL_STRANDED, POOL_PATHS };

/* The counters of the pool in a tally. */
enum pool_counter {
    POOL_TALLY_TASKS, /* tasks that started to run: + lane * POOL_PATHS + path */
    /* A histogram for each lane, + lane * TALLY_HISTOGRAM: how long these tasks were queued; 0 for
     * a task that was not.
     */
    POOL_TALLY_WAIT = POOL_TALLY_TASKS + POOL_LANES * POOL_PATHS,
    POOL_TALLY_SPAWN_FAILURES = POOL_TALLY_WAIT + POOL_LANES * TALLY_HISTOGRAM,
    POOL_TALLY_END,
};

#define POOL_MAX_THREADS 4096u

/* A consistent snapshot.  The first group are totals since pool_new, the second group is the
 * present state.
 */
struct pool_counters {
    uint64_t submitted;     /* tasks accepted by pool_submit or pool_run */
    uint64_t enqueued;      /* of these, put into a queue */
    uint64_t worker_runs;   /* taken by a worker */
    uint64_t helped;        /* run by pool_run's caller without being queued */
    uint64_t taken_back;    /* queued, then run by pool_run's caller when a slot came free */
    uint64_t stranded_runs; /* run by pool_run's caller for one reason only: no worker could come */
    uint64_t stranded_errors; /* failed with -EAGAIN because no worker could be created */
    uint64_t cancelled;       /* failed with -ECANCELED */
    uint64_t completions;     /* delivered by the completion bottom half */
    uint64_t threads_created;
    uint64_t spawn_failures; /* failed thread creations */

    unsigned max_threads, min_threads;
    unsigned threads;     /* workers: starting, idle or running a task */
    unsigned starting;    /* workers being created, and those that have not looked for a task yet */
    unsigned idle;        /* workers asleep on the semaphore, or awake and not yet at the lock */
    unsigned queued;      /* tasks in a queue */
    unsigned queued_slow; /* of these, in the slow lane */
    unsigned running;     /* tasks being run, by worker or caller; above max only after a shrink */
    unsigned running_slow; /* of these, in the slow lane */
};

/* Creates a pool without any worker.  The loop must outlive the pool.  Returns 0, -EINVAL (a bound
 * out of range) or -ENOMEM.  Any thread; without memory, it waits for the loop thread (loop_call).
 */
int pool_new(struct loop *loop, const struct pool_config *config, struct pool **pool);

enum pool_free_policy {
    POOL_DRAIN,  /* run what is queued */
    POOL_CANCEL, /* complete what is queued with -ECANCELED */
};

/* Refuses new tasks, runs or cancels the queued tasks, waits for the running tasks and for every
 * `done`, joins every worker and frees the pool.  When pool_free returns, no worker exists, so the
 * code can be unmapped.  Blocks.  Any thread but the loop's and the workers'.  Threads whose task
 * was accepted by pool_run finish.  Of every other call, also of one that is refused, the caller of
 * pool_free makes sure that it has returned before pool_free can return.
 */
void pool_free(struct pool *pool, enum pool_free_policy policy);

/* Queues the task and returns 0: `done` will be called exactly once, on the loop thread.  On an
 * error `done` is not called: -ESHUTDOWN after pool_free began; -EAGAIN when there is no worker and
 * the last attempt to create one failed.  When the creation fails after the task was queued, `done`
 * gets -EAGAIN if there is no worker; if there are workers, the task waits for one of them.  Any
 * thread, also from inside `done`; does not block.
 */
int pool_submit(struct pool *pool, struct task *task);

/* Runs the task and returns its result, -ECANCELED after pool_cancel, or -ESHUTDOWN after pool_free
 * began.  Blocks.  Never fails or waits for lack of threads: while no worker can be created and all
 * workers are busy, the caller runs the task as soon as a slot is free, with helping on or off.
 * The task then overtakes tasks of pool_submit, but no task of another pool_run caller that has no
 * slot yet.  Any thread but the loop's and the workers'.  pool_run (pool.c) and lanes_grant
 * (lanes.c) decide whether caller or worker runs the task.
 */
int pool_run(struct pool *pool, struct task *task);

/* Cancels a task that is queued: the task completes once, with -ECANCELED.  Returns 0; -EBUSY if
 * the task is running, on a worker or on pool_run's caller; or -EALREADY if the task is completed,
 * cancelled or was never submitted.  The task's memory must be valid: the caller knows that `done`
 * or pool_run has not returned yet, or is inside `done`, or owns the memory.  Any thread; does not
 * block.
 */
int pool_cancel(struct pool *pool, struct task *task);

/* Changes the bounds while tasks run.  A smaller max_threads takes effect as running tasks finish.
 * Returns 0 or -EINVAL.  Any thread; does not block.
 */
int pool_set_bounds(struct pool *pool, unsigned min_threads, unsigned max_threads);

/* Any thread, at any time between pool_new and pool_free. */
void pool_read_counters(struct pool *pool, struct pool_counters *counters);

#endif
