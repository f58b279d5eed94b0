/* SPDX-License-Identifier: BSD-3-Clause */
/* The worker pool: tokens, slots, lanes, workers, helping callers, failed creations, cancellation,
 * changing bounds and pool_free.  This file has the scenarios, the loop thread and the callers;
 * pool-lanes.pml has what happens under the lock, pool-workers.pml the workers.
 *
 * Modelled, with the same names: pool_unlock with check_identities, pool_complete,
 * deliver_completed, pool_submit, pool_run, run_in_own_slot, pool_cancel, pool_set_bounds,
 * pool_free (pool/pool.c); all of pool/lanes.c; all of pool/workers.c.  A critical section of the
 * pool's lock is one step (d_step), because everything in it is under the lock or commutes with
 * what other threads do.  Steps of their own: taking a token, running a task, the push to
 * `completed`, bh_schedule, each pthread_create, each `done`.
 *
 * README.md in this folder lists the scenarios and the macros.  A scenario bounds how often
 * something happens that other threads cannot rely on (time-outs, failures, attempts of the retry
 * timer), so whoever waits for it in vain is found as blocked for ever.
 */
#ifndef TASKS
#define TASKS 3
#endif
#ifndef CALLERS /* bit mask: the tasks of pool_run; the others are of pool_submit */
#define CALLERS 0
#endif
#ifndef SLOW /* bit mask: the tasks of the slow lane */
#define SLOW 0
#endif
#ifndef HELPING
#define HELPING 0
#endif
#ifndef MAX /* max_threads at first */
#define MAX 2
#endif
#ifndef WORKERS /* the largest max_threads */
#define WORKERS MAX
#endif
#ifndef MIN /* min_threads at first */
#define MIN 0
#endif
#ifndef EXPIRIES /* idle time-outs, and exits of workers that are not needed */
#define EXPIRIES 0
#endif
#ifndef FAILURES /* how many thread creations fail; 255: all */
#define FAILURES 0
#endif
#ifndef RETRIES /* attempts of the retry timer */
#define RETRIES 0
#endif
#ifndef CANCELS /* calls of pool_cancel, for any task at any time */
#define CANCELS 0
#endif
/* FREE_EARLY: pool_free begins at any time; otherwise when every task is delivered.
 * FREE_CANCELS: its policy is POOL_CANCEL.
 * NEEDS_FIRST, NEEDS_SECOND: the first task runs until the second one has been run.
 * BOUNDS_1, BOUNDS_2: min_threads and max_threads of two calls of pool_set_bounds, at any time.
 */
#ifndef NEEDS_FIRST
#define NEEDS_FIRST NONE
#define NEEDS_SECOND NONE
#endif

#include "pool-lanes.pml"
#include "pool-workers.pml"

/* After a call has ended. */
inline end_call(t)
{
    assert(!(ended & BIT(t)) && result[t]);
    assert(result[t] != RAN || (has_run & BIT(t)));
    assert(result[t] == RAN || !(has_run & BIT(t)));
    ended = ended | BIT(t)
}

/* --- The loop thread --- */

inline deliver(t)
{
    assert(state[t] == DONE && result[t]);
    state[t] = IDLE;
    delivering = delivering & ~BIT(t);
    if
    :: IS_CALLER(t) -> assert(!wake[t]); wake[t] = true
    :: else -> end_call(t)
    fi
}

active proctype loop_main()
{
    byte t, delivered, who;
    bool arm, create;

end:
    do
    :: completion_bh && !callbacks_deleted ->
        completion_bh = false;
        d_step { delivering = completed; completed = 0 };
        do
        :: delivering ->
            d_step {
                t = 0;
                do
                :: delivering & BIT(t) -> break
                :: else -> t++
                od;
                deliver(t);
                delivered++;
                t = 0
            }
        :: else -> break
        od;
        if
        :: delivered ->
            d_step { undelivered = undelivered - delivered; delivered = 0; pool_unlock() }
        :: else
        fi
    :: manage_bh && !callbacks_deleted -> /* workers_manage */
        manage_bh = false;
#ifdef JOIN_FIRST
        d_step { exited = false; pool_unlock() };
#endif
        d_step {
            manage_asked = false;
            joins_next = true;
            arm = spawn_blocked && !retry_armed;
            if
            :: arm -> retry_armed = true
            :: else
            fi;
            create = workers_owed && starting == 0;
            if
            :: create -> reserve_worker()
            :: else
            fi;
#ifdef JOIN_FIRST
            joins_next = false;
#endif
            pool_unlock()
        };
        if
        :: arm -> retry_timer = true
        :: else
        fi;
        if
        :: create -> create_worker(who)
        :: else
        fi;
        d_step {
            arm = false;
            create = false;
#ifndef JOIN_FIRST
            exited = false; /* workers_join_exited */
            joins_next = false;
#endif
            pool_unlock()
        }
    :: retry_timer && retries > 0 && !callbacks_deleted -> /* workers_retry */
        retry_timer = false;
        retries--;
        d_step {
            retry_armed = false;
            create = spawn_blocked;
            spawn_blocked = false;
            lanes_grant();
            create = create && starting == 0 && !stopping && (threads == 0 || workers_owed);
            if
            :: create -> reserve_worker()
            :: else
            fi;
            pool_unlock()
        };
        if
        :: create -> create = false; create_worker(who)
        :: else
        fi
    :: delete_asked && !callbacks_deleted -> callbacks_deleted = true
    od
}

/* --- The callers --- */

proctype pool_submit(byte t)
{
    d_step {
        calls++;
        if
        :: closing -> result[t] = ESHUTDOWN; end_call(t)
        :: else ->
            if
            :: lanes_are_stranded -> result[t] = EAGAIN; end_call(t)
            :: else -> lanes_enqueue(t); lanes_grant()
            fi
        fi;
        pool_unlock()
    }
}

proctype pool_run(byte t)
{
    d_step {
        calls++;
        if
        :: closing -> result[t] = ESHUTDOWN
        :: else ->
            next_to_grant(); /* the heads of the lanes */
            if
            :: lanes_waiter_runs(t) && lanes_have_free_slot(LANE(t)) &&
                (LANE(t) == 0 -> head0 : head1) == NONE -> /* may_run_at_once */
                runs_itself[t] = true;
                lane_running[LANE(t)]++;
                helpers++;
                state[t] = ACTIVE;
                wake[t] = true /* does not wait */
            :: else -> lanes_enqueue(t); lanes_grant()
            fi
        fi;
        pool_unlock()
    };
    if
    :: result[t] == ESHUTDOWN
    :: d_step { wake[t] -> wake[t] = false };
        if
        :: runs_itself[t] -> /* run_in_own_slot */
            atomic {
                t != NEEDS_FIRST || (has_run & BIT(NEEDS_SECOND));
                d_step {
                    assert(!result[t] && !(has_run & BIT(t)));
                    has_run = has_run | BIT(t)
                }
            };
            d_step {
                result[t] = RAN;
                state[t] = IDLE;
                helpers--;
                lane_running[LANE(t)]--;
                lanes_grant();
                pool_unlock()
            }
        :: else
        fi
    fi;
    d_step { end_call(t) }
}

#if CANCELS > 0
byte cancels; /* calls of pool_cancel that have ended */

proctype pool_cancel()
{
    byte t;
    do
    :: t < TASKS - 1 -> t++
    :: break
    od;
    atomic {
        if
        :: state[t] == QUEUED ->
            d_step { /* cancel_queued */
                lanes_dequeue(t);
                if
#ifndef CANCEL_LOSES_TOKEN
                :: has_token[t] -> surplus++
#endif
                :: else
                fi;
                has_token[t] = false;
                complete_locked(t, ECANCELED);
                lanes_grant();
                pool_unlock()
            }
        :: else /* -EBUSY, -EALREADY */
        fi;
        cancels++
    }
}
#endif

#ifdef BOUNDS_1
bool bounds_set;

inline set_bounds(min, max)
{
    d_step {
        min_threads = min;
        max_threads = max;
#ifndef BOUNDS_WITHOUT_GRANT
        lanes_withdraw_tokens();
        lanes_grant();
#endif
        pool_unlock()
    }
}

proctype pool_set_bounds()
{
    set_bounds(BOUNDS_1);
    set_bounds(BOUNDS_2);
    bounds_set = true
}
#endif

/* The thread that frees the pool.  By the contract of pool.h every call but an accepted pool_run
 * has returned before pool_free can return.
 */
proctype pool_free()
{
#ifndef FREE_EARLY
    ended == BIT(TASKS) - 1;
#endif
    d_step {
        closing = true;
#ifdef FREE_CANCELS
        do
        :: queued > 0 ->
            j = queue[0];
            lanes_dequeue(j);
            if
            :: has_token[j] -> surplus++
            :: else
            fi;
            has_token[j] = false;
            complete_locked(j, ECANCELED)
        :: else -> break
        od;
#endif
    };
    atomic {
        !(queued || running || undelivered || starting);
        d_step { /* workers_stop */
            stopping = true;
            if
            :: idle > 0 -> surplus++; tokens++
            :: else
            fi
        }
    };
    threads == 0;
    delete_asked = true; /* loop_call(delete_callbacks) */
    callbacks_deleted;
    d_step { exited = false; pool_unlock() };
    calls == TASKS;
#if CANCELS > 0
    cancels == CANCELS;
#endif
#ifdef BOUNDS_1
    bounds_set;
#endif
    d_step {
        freed = true;
        assert(!queued && !running && !granted && !starting && !idle && !undelivered);
        assert(!exited && tokens + hands == surplus)
    };
    ended == BIT(TASKS) - 1
}

init
{
    byte t;
    atomic {
        for (t : 0 .. TASKS - 1) {
            if
            :: IS_CALLER(t) -> run pool_run(t)
            :: else -> run pool_submit(t)
            fi
        };
#if CANCELS > 0
        for (t : 1 .. CANCELS) {
            run pool_cancel()
        };
#endif
#ifdef BOUNDS_1
        run pool_set_bounds();
#endif
        run pool_free()
    }
}
