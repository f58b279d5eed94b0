/* SPDX-License-Identifier: BSD-3-Clause */
/* The part of pool.pml that is under the pool's lock: the state, all of pool/lanes.c, and
 * pool_unlock with what must hold whenever the lock is released (pool/pool.c).
 *
 * Everything here is an inline of one step of some process of pool.pml, which includes this file.
 * The two lanes share the array `queue`, in order of submission.  So `sequence` is the index, the
 * head of a lane is its first task in the array, and lane->waiting is its first task without a
 * token.
 */
#define NONE 255
#define BIT(i) (1 << (i))
#define IS_CALLER(t) ((CALLERS >> (t)) & 1)
#define LANE(t) ((SLOW >> (t)) & 1)

mtype = { IDLE, QUEUED, ACTIVE, DONE }; /* enum task_state */

/* struct task. */
mtype state[TASKS] = IDLE;
bool has_token[TASKS];
bool runs_itself[TASKS]; /* struct task_waiter */
bool wake[TASKS];        /* the semaphore of struct waiter */
byte result[TASKS];      /* 0: none yet */
#define RAN 1
#define ECANCELED 2
#define EAGAIN 3
#define ESHUTDOWN 4

/* struct pool.  `queue` has the tasks of both lanes in order of submission. */
byte queue[TASKS];
byte queued;
byte lane_granted[2], lane_running[2];
byte helpers, surplus, undelivered, threads, starting, idle;
byte max_threads = MAX, min_threads = MIN;
bool manage_asked, spawn_blocked, retry_armed, closing, stopping, exited;
byte tokens; /* the semaphore */
byte completed, delivering;
bool completion_bh, manage_bh, retry_timer; /* scheduled, scheduled, armed in the loop */
#define granted (lane_granted[0] + lane_granted[1])
#define running (lane_running[0] + lane_running[1])

/* The world. */
byte hands;          /* workers that carry a token: back from sem_clockwait, not yet at the lock */
bool start[WORKERS]; /* pthread_create(3) has created the thread */
bool alive[WORKERS];
byte expiries = EXPIRIES, failures = FAILURES, retries = RETRIES;
byte calls;          /* pool_submit and pool_run called so far */
byte ended;          /* tasks whose call has ended: bit mask */
byte has_run;        /* bit mask */
bool delete_asked, callbacks_deleted, freed;
bool joins_next; /* workers_manage will join before it returns */

hidden byte i, j, l, w, found, head0, head1; /* of the inlines; dead between steps */

/* --- lanes.c --- */

inline lanes_enqueue(t)
{
    assert(state[t] == IDLE);
    has_token[t] = false;
    queue[queued] = t;
    queued++;
    undelivered++;
    state[t] = QUEUED
}

inline lanes_dequeue(t)
{
    i = 0;
    do
    :: queue[i] != t -> i++
    :: else -> break
    od;
    queued--;
    do
    :: i < queued -> queue[i] = queue[i + 1]; i++
    :: else -> break
    od;
    queue[queued] = 0;
    if
    :: has_token[t] -> lane_granted[LANE(t)]--
    :: else
    fi
}

inline reclaim_surplus()
{
    do
#ifdef RECLAIM_WHILE_STOPPING
    :: surplus > 0 && tokens > 0 -> surplus--; tokens--
#else
    :: !stopping && surplus > 0 && tokens > 0 -> surplus--; tokens--
#endif
    :: else -> break
    od
}

#define SHARE (max_threads / 2 > 1 -> max_threads / 2 : 1)
#define lanes_have_free_slot(l) \
    (running + granted < max_threads && ((l) == 0 || lane_running[1] + lane_granted[1] < SHARE))
#define lanes_are_stranded (spawn_blocked && threads == 0)
#define no_worker_comes (spawn_blocked && granted >= idle + starting)
#define lanes_waiter_runs(t) (IS_CALLER(t) && (HELPING || no_worker_comes))

inline lanes_withdraw_tokens()
{
    i = 0;
    do
    :: i < queued ->
        if
        :: has_token[queue[i]] -> has_token[queue[i]] = false; surplus++
        :: else
        fi;
        i++
    :: else -> break
    od;
    lane_granted[0] = 0;
    lane_granted[1] = 0
}

/* The oldest task that either lane would serve next, or NONE: `found`. */
inline next_to_grant()
{
    found = NONE;
    i = 0;
    head0 = NONE; /* of each lane: the head */
    head1 = NONE;
    j = 0; /* bit mask: the lanes whose first task without a token was seen */
    do
    :: i < queued && found == NONE ->
        w = queue[i];
        l = LANE(w);
        if
        :: l == 0 && head0 == NONE -> head0 = w
        :: l == 1 && head1 == NONE -> head1 = w
        :: else
        fi;
        if
        :: has_token[w] || !lanes_have_free_slot(l)
        :: else ->
            if
            :: no_worker_comes ->
                if
                :: lanes_are_stranded -> found = w
#ifndef CALLERS_WAIT_FOR_WORKERS
                :: !lanes_are_stranded && IS_CALLER(w) -> found = w
#endif
                :: else /* waits for a busy worker; a caller behind it may be next */
                fi
            :: else ->
                if
                :: !(j & BIT(l)) &&
                    !(lanes_waiter_runs(w) && w != (l == 0 -> head0 : head1)) -> found = w
                :: else
                fi
            fi;
            j = j | BIT(l)
        fi;
        i++
    :: else -> break
    od
}

inline give_to_waiter(t)
{
    lanes_dequeue(t);
    has_token[t] = false;
    lane_running[LANE(t)]++;
    helpers++;
    state[t] = ACTIVE;
    undelivered--;
    runs_itself[t] = true;
    wake[t] = true
}

/* pool_complete, under the lock. */
inline complete_locked(t, r)
{
    assert(!result[t]);
    result[t] = r;
    state[t] = DONE;
    completed = completed | BIT(t);
    completion_bh = true
}

inline grant_token(t)
{
    has_token[t] = true;
    lane_granted[LANE(t)]++;
    if
    :: surplus > 0 -> surplus--
    :: else -> tokens++
    fi
}

inline lanes_grant()
{
    if
    :: spawn_blocked && granted > idle + starting -> lanes_withdraw_tokens()
    :: else
    fi;
    next_to_grant();
    do
    :: found != NONE ->
        if
        :: lanes_waiter_runs(found) -> give_to_waiter(found)
        :: else ->
            if
            :: lanes_are_stranded -> lanes_dequeue(found); complete_locked(found, EAGAIN)
            :: else -> grant_token(found)
            fi
        fi;
        next_to_grant()
    :: else -> break
    od;
    reclaim_surplus()
}

inline lanes_take(task, holds_token)
{
    task = NONE;
    i = 0;
    j = 0; /* bit mask: the lanes whose head was seen */
    do
    :: i < queued && task == NONE ->
        w = queue[i];
        l = LANE(w);
        if
        :: !(j & BIT(l)) &&
            (has_token[w] || (!holds_token && lanes_have_free_slot(l) &&
                              !(HELPING && IS_CALLER(w)))) -> task = w
        :: else
        fi;
        j = j | BIT(l);
        i++
    :: else -> break
    od;
    if
    :: task != NONE ->
        lanes_dequeue(task);
        if
#ifndef TAKE_FORGETS_TOKEN
        :: has_token[task] && !holds_token -> surplus++
#endif
        :: else
        fi;
        has_token[task] = false;
        lane_running[LANE(task)]++;
        state[task] = ACTIVE
    :: task == NONE && holds_token -> assert(surplus > 0); surplus--
    :: else
    fi;
    lanes_grant()
}

/* --- pool.c: the lock --- */

#define workers_owed \
    (granted > idle + starting && threads < max_threads && !spawn_blocked && !stopping)

/* A worker that is starting creates the next one, or else the manage bottom half does. */
#define SOMEBODY_COMES (starting > 0 || manage_asked)

inline check_identities()
{
    assert(!freed);
    assert(threads == starting + idle + running - helpers);
    assert(tokens + hands == granted + surplus);
    assert(!spawn_blocked || granted <= idle + starting);
    next_to_grant();
    assert(found == NONE); /* no task waits for a slot that it may have */
    /* The same said without lanes_grant: while a slot is free, no queued task is without a token
     * that its own caller could run, or for which a worker is there or can be created.
     */
    assert(queued == 0 || has_token[queue[0]] || !lanes_have_free_slot(LANE(queue[0])) ||
        (!(IS_CALLER(queue[0]) && (HELPING || spawn_blocked)) && idle + starting <= granted &&
            (threads >= max_threads || spawn_blocked)))
}

#ifdef NO_RETRY
#define RETRY_IS_TO_BE_ARMED false
#else
#define RETRY_IS_TO_BE_ARMED (spawn_blocked && !retry_armed && !stopping)
#endif

inline pool_unlock()
{
    if
    :: ((workers_owed && starting == 0) || RETRY_IS_TO_BE_ARMED) && !manage_asked ->
        assert(!callbacks_deleted);
        manage_asked = true;
        manage_bh = true
    :: else
    fi;
    check_identities();
    assert(!workers_owed || SOMEBODY_COMES);
    assert(!spawn_blocked || stopping || retry_armed || manage_asked); /* growth resumes */
    assert(!exited || manage_asked || joins_next || stopping) /* whoever has left is joined */
}
