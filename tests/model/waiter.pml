/* SPDX-License-Identifier: BSD-3-Clause */
/* Waiters on the stack: nobody touches a waiter, or the task beside it, after its thread may have
 * returned; and the thread that wakes up sees the result.
 *
 * Modelled: waiter_init, waiter_wake, waiter_wait (pool/waiter.h), with sem_post(3) and sem_wait(3)
 * down to the futex.  By default: pool_run, wait_for_task, run_in_own_slot, pool_cancel,
 * pool_complete, deliver (pool/pool.c), give_to_waiter (pool/lanes.c).  With LOOP_CALL: loop_call,
 * call_run, and what run_bottom_halves touches (pool/loop.c).  With FLUSH: wait_for_slot,
 * answer_joined and pass_on (plugin/disk/flush.c), which wake by a condition variable.
 *
 * A thread waits ROUNDS times.  `frame` is the number of the round whose stack frame exists, or 0.
 * Whoever uses a pointer into the frame of round r says touch(r).  The memory of a frame that is
 * gone belongs to the next frame, so a late write would hit that one.
 */
#ifndef ROUNDS
#define ROUNDS 3
#endif

byte frame;
#define touch(r) assert(frame == (r))

/* In the frame: struct waiter, struct task, struct task_waiter. */
byte semaphore;
byte result; /* 0: none yet */
bool runs_itself;
mtype = { IDLE, QUEUED, ACTIVE, DONE };
mtype state = IDLE;

bool futex_sleeps; /* the kernel's: the thread sleeps on the futex of the semaphore */
bool locked;       /* the pool's lock, or the flush lock */
byte queue;        /* the round whose task is queued, or 0 */
byte completed;    /* the round whose task is in the list of completed tasks, or 0 */
bool over;         /* the thread waits no more */

byte expected; /* of the round: what its result must be; 0 until that is decided */
#define RAN 1
#define CANCELLED 2

inline lock()
{
    atomic { !locked -> locked = true }
}

inline unlock()
{
    locked = false
}

/* waiter_wait: sem_wait(3).  futex_wait checks the value and sleeps in one step. */
inline waiter_wait()
{
    do
    :: d_step { semaphore > 0 -> semaphore-- }; break
    :: atomic { semaphore == 0 -> futex_sleeps = true };
        !futex_sleeps
    od
}

/* waiter_wake: sem_post(3).  FUTEX_WAKE takes the address only, so it may come when the frame is
 * gone: then it is a spurious wake-up of whatever waits at this address.
 */
inline waiter_wake(r)
{
#ifdef FLAG_AND_SIGNAL
    /* What a flag with a signal of its own, outside a lock, would do. */
    d_step { touch(r); semaphore++ };
    d_step { touch(r); futex_sleeps = false }
#else
    d_step { touch(r); semaphore++ };
    futex_sleeps = false
#endif
}

inline new_frame(r)
{
    d_step {
        r++;
        frame = r;
        semaphore = 0;
        result = 0;
        runs_itself = false;
        state = IDLE;
        expected = 0
    }
}

#if !defined(LOOP_CALL) && !defined(FLUSH)

active proctype pool_run()
{
    byte r;
    do
    :: r < ROUNDS ->
        new_frame(r);
        lock();
        d_step { state = QUEUED; queue = r };
        unlock();
        waiter_wait();
        if
        :: runs_itself ->
            d_step { expected = RAN; result = RAN };
            lock(); /* run_in_own_slot: releases the slot */
            state = IDLE;
            unlock()
        :: else
        fi;
        assert(result && result == expected);
        frame = 0
    :: else -> break
    od;
    over = true
}

/* pool_complete: result, state, push, bottom half. */
inline pool_complete(r, value)
{
#ifdef PUSH_BEFORE_RESULT
    completed = r;
    d_step { touch(r); result = value };
    d_step { touch(r); state = DONE }
#else
    d_step { touch(r); result = value };
    d_step { touch(r); state = DONE };
    completed = r
#endif
}

active proctype worker()
{
    byte r;
    do
    :: queue ->
        lock();
        if
        :: queue -> d_step { r = queue; queue = 0; touch(r); state = ACTIVE; expected = RAN }
        :: else
        fi;
        unlock();
        if
        :: r -> pool_complete(r, RAN); r = 0
        :: else
        fi
    :: over -> break
    od
}

active proctype canceller()
{
    byte r;
    do
    :: queue ->
        lock();
        if
        :: queue ->
            d_step { r = queue; queue = 0; touch(r); expected = CANCELLED };
            pool_complete(r, CANCELLED);
            r = 0
        :: else
        fi;
        unlock()
    :: over -> break
    od
}

/* A thread that has freed a slot: give_to_waiter, called by lanes_grant under the lock. */
active proctype granter()
{
    byte r;
    do
    :: queue ->
        lock();
        if
        :: queue ->
            d_step { r = queue; queue = 0; touch(r); state = ACTIVE };
#ifdef WAKE_BEFORE_STATE
            waiter_wake(r);
            d_step { touch(r); runs_itself = true };
#else
            d_step { touch(r); runs_itself = true };
            waiter_wake(r);
#endif
            touch(r) /* the thread cannot return before it gets the lock */
        :: else
        fi;
        unlock();
#ifdef TOUCH_AFTER_UNLOCK
        if
        :: r -> touch(r)
        :: else
        fi;
#endif
        r = 0
    :: over -> break
    od
}

/* deliver, on the loop thread. */
active proctype loop()
{
    byte r;
    do
    :: completed ->
        d_step { r = completed; completed = 0 };
        touch(r); /* reads task->waiter */
#ifdef STATE_AFTER_WAKE
        waiter_wake(r);
        d_step { touch(r); state = IDLE };
#else
        d_step { touch(r); state = IDLE };
        waiter_wake(r);
#endif
        r = 0
    :: over -> break
    od
}

#endif
#ifdef LOOP_CALL

byte scheduled; /* the round whose bottom half is in loop->scheduled, or 0 */

active proctype loop_call()
{
    byte r;
    do
    :: r < ROUNDS ->
        new_frame(r);
        touch(r);      /* bh_enqueue: the flags */
        scheduled = r; /* and the push; then loop_notify, which does not use the bottom half */
        waiter_wait();
        assert(result == RAN);
        frame = 0
    :: else -> break
    od;
    over = true
}

active proctype loop()
{
    byte r;
    do
    :: scheduled ->
        d_step { r = scheduled; scheduled = 0 };
        touch(r); /* run_bottom_halves: unlinks it, clears the flags, reads fn and opaque */
        d_step { touch(r); result = RAN }; /* call_run: fn returns */
        waiter_wake(r);
#ifdef FLAGS_AFTER_CALLBACK
        touch(r);
#endif
        r = 0
    :: over -> break
    od
}

#endif
#ifdef FLUSH

bool done;   /* in the frame: struct flush_waiter */
bool sleeps; /* on the condition variable, which is in the frame too */

/* Spurious wake-ups to come.  A bound, because they would hide a signal that is lost. */
byte spurious = 1;

active proctype wait_for_slot()
{
    byte r;
    do
    :: r < ROUNDS ->
        new_frame(r);
        lock();
        d_step { done = false; queue = r };
        do
        :: !done ->
            d_step { sleeps = true; locked = false };
            if
            :: !sleeps
            :: atomic { spurious -> spurious-- };
                sleeps = false
            fi;
            lock()
        :: else -> break
        od;
        assert(result == RAN);
        unlock();
        frame = 0
    :: else -> break
    od;
    over = true
}

/* answer_joined and pass_on: both set the state, then signal, under the lock. */
active proctype leader()
{
    byte r;
    do
    :: queue ->
        lock();
        if
        :: queue ->
            d_step { r = queue; queue = 0; touch(r); result = RAN };
            d_step { touch(r); done = true };
#if !defined(SIGNAL_AFTER_UNLOCK) && !defined(NO_SIGNAL)
            d_step { touch(r); sleeps = false }
#endif
        :: else
        fi;
        unlock();
#ifdef SIGNAL_AFTER_UNLOCK
        if
        :: r -> d_step { touch(r); sleeps = false }
        :: else
        fi;
#endif
        r = 0
    :: over -> break
    od
}

#endif
