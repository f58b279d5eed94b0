/* SPDX-License-Identifier: BSD-3-Clause */
/* The handshake between bh_schedule and the loop that goes to sleep, and completions under a
 * nested poll.
 *
 * Modelled, step by step: bh_schedule, bh_cancel, loop_notify, run_bottom_halves, poll_descriptors,
 * loop_poll, loop_call (pool/loop.c); stack_push, stack_drain (pool/stack.h); pool_complete without
 * the lock, deliver_completed (pool/pool.c).  Each access to an atomic variable is a step of its
 * own.
 *
 * TASKS workers complete a task each.  The callback of task 0 polls until task 1 is delivered.
 * Another thread uses loop_call meanwhile.  At the end the main thread stops the loop as loop_free
 * does.  No process may block for ever, so a lost wake-up is an invalid end state.
 */
#ifndef TASKS
#define TASKS 3
#endif
#define COMPLETION 0 /* the pool's completion_bh */
#define CALL 1       /* the bottom half of a loop_call */
#define BIT(i) (1 << (i))

/* struct bh: flags. */
bool pending[2];   /* BH_PENDING */
bool scheduled[2]; /* BH_SCHEDULED */

/* struct loop.  Sets of bottom halves and tasks are bit masks: their order matters to no check. */
byte stack; /* loop->scheduled */
byte ready; /* loop->ready */
bool asleep;
bool stopping;
bool event; /* the eventfd is readable */

/* struct pool. */
byte completed;
byte delivering;

byte delivered; /* tasks whose callback has returned */
byte started;   /* tasks whose callback has started */
bool called;    /* what waiter_wake of the loop_call posts */
bool ending;    /* the loop_call in progress is the one of loop_free */

chan returned = [0] of { byte }; /* a nested loop_poll returns to its caller */

inline push(b, was)
{
    if
    :: !was -> stack = stack | BIT(b)
    :: else
    fi
}

/* loop_notify: a load, an exchange, a write. */
inline loop_notify(was)
{
    if
    :: !asleep
    :: else ->
        d_step { was = asleep; asleep = false };
        if
        :: was -> event = true /* also at its maximum the eventfd is readable */
        :: else
        fi
    fi
}

inline bh_schedule(b, was)
{
    d_step { was = pending[b]; pending[b] = true; scheduled[b] = true };
#ifdef NOTIFY_BEFORE_PUSH
    bit early = was;
    loop_notify(was);
    push(b, early)
#else
    push(b, was);
    loop_notify(was)
#endif
}

/* On the loop thread, which does not sleep meanwhile, loop_notify does nothing. */
inline bh_schedule_on_loop(b)
{
    d_step { was = pending[b]; pending[b] = true; scheduled[b] = true };
    d_step { push(b, was); assert(!asleep) }
}

proctype worker(byte t)
{
    bit was;
    /* pool_complete */
#ifdef SIGNAL_BEFORE_STATE
    bh_schedule(COMPLETION, was);
    completed = completed | BIT(t)
#else
    completed = completed | BIT(t);
    bh_schedule(COMPLETION, was)
#endif
}

/* loop_call: the callback posts the waiter. */
inline loop_call(was)
{
    bh_schedule(CALL, was);
    atomic { called -> called = false }
}

/* done(task): task 0 polls the loop with `wait` until task 1 is delivered. */
inline done(t)
{
    assert(!(started & BIT(t)));
    started = started | BIT(t);
    if
    :: t == 0 ->
        do
        :: !(delivered & BIT(1)) ->
            run loop_poll(level + 1);
            returned ? eval(level + 1)
        :: else -> break
        od
    :: else
    fi;
    delivered = delivered | BIT(t)
}

inline deliver_completed()
{
    d_step { delivering = delivering | completed; completed = 0 };
#ifndef NO_SCHEDULE_BEFORE_CALLBACKS
    bh_schedule_on_loop(COMPLETION);
#endif
    do
    :: delivering ->
        d_step {
            t = 0;
            do
            :: delivering & BIT(t) -> break
            :: else -> t++
            od;
            delivering = delivering & ~BIT(t)
        };
        done(t)
    :: else -> break
    od;
    t = 0;
    scheduled[COMPLETION] = false; /* bh_cancel */
#ifndef NO_LOOK_AFTER_CANCEL
    if
    :: completed -> bh_schedule_on_loop(COMPLETION)
    :: else
    fi
#endif
}

inline run_bottom_halves()
{
    d_step { ready = ready | stack; stack = 0 };
    do
    :: ready ->
        d_step {
            b = (ready & BIT(CALL) -> CALL : COMPLETION);
            ready = ready & ~BIT(b)
        };
#ifdef CLEAR_AFTER_CALLBACK
        run_it = scheduled[b];
#else
        d_step { run_it = scheduled[b]; pending[b] = false; scheduled[b] = false };
#endif
        if
        :: !run_it
        :: run_it && b == COMPLETION -> deliver_completed(); ran = true
        :: run_it && b == CALL ->
            if
            :: ending -> stopping = true
            :: else
            fi;
            called = true;
            ran = true
        fi;
#ifdef CLEAR_AFTER_CALLBACK
        d_step { pending[b] = false; scheduled[b] = false };
#endif
        b = 0;
        run_it = false
    :: else -> break
    od
}

/* With `wait`, as loop_main and the callback of task 0 call it.  No timer and no watch exists, so
 * epoll_wait(2) sleeps until the eventfd is readable.
 */
inline poll_descriptors()
{
    if
    :: ran -> event = false /* without `wait`: a look at the eventfd that does not sleep */
    :: else ->
        asleep = true;
#ifdef NO_SECOND_LOOK
        event;
#else
        if
        :: !stack -> event
        :: else
        fi;
#endif
        event = false
    fi;
    asleep = false
}

/* A process only because inlines do not recurse: its caller waits until it returns. */
proctype loop_poll(byte level)
{
    bit ran, run_it, was;
    byte b, t;

    run_bottom_halves();
    do
    :: true ->
        poll_descriptors();
        run_bottom_halves();
        if
        :: ran || stopping -> break
        :: else
        fi
    od;
    returned ! level
}

proctype loop_main()
{
    do
    :: !stopping ->
        run loop_poll(0);
        returned ? 0
    :: else -> break
    od
}

/* A thread that uses loop_call while completions come; then, as loop_free: stop and join. */
proctype caller()
{
    bit was;
#ifndef ONE_CALL
    loop_call(was);
#endif
    delivered == BIT(TASKS) - 1;
    ending = true;
    loop_call(was)
}

init
{
    byte t;
    atomic {
        run caller();
        for (t : 0 .. TASKS - 1) {
            run worker(t)
        };
        run loop_main()
    }
}
