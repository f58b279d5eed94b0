/* SPDX-License-Identifier: BSD-3-Clause */
/* The part of pool.pml that models the workers: pool/workers.c without the callbacks of the loop.
 *
 * A worker is one of WORKERS processes, which live for ever: the process waits until `start` says
 * that pthread_create has made its thread, and waits again when the worker has left.
 */
#define CHAIN_WIDTH 2

inline reserve_worker()
{
    threads++;
    starting++
}

/* Fails at will, as often as the scenario says. */
inline create_worker(who)
{
    if
    :: failures != 255 ->
        d_step {
            who = 0;
            do
            :: alive[who] -> who++
            :: else -> break
            od;
            assert(who < WORKERS);
            alive[who] = true;
            start[who] = true;
            who = 0
        }
    :: failures > 0 ->
        d_step { /* creation_failed */
            if
            :: failures != 255 -> failures--
            :: else
            fi;
#ifndef SEED_FAILURE
            threads--;
            starting--;
            spawn_blocked = true;
            lanes_grant();
#endif
            pool_unlock()
        }
    fi
}

inline leave()
{
    threads--;
    exited = true;
    alive[_pid] = false;
    if
#ifndef NO_WAKE_OF_NEXT
    :: stopping && idle > 0 -> surplus++; tokens++
#endif
    :: !stopping && !manage_asked -> manage_asked = true; manage_bh = true
    :: else
    fi
}

#define MUST_STAY (granted > 0 || threads <= min_threads || (spawn_blocked && threads == 1))

/* What a worker does next. */
mtype = { RUN, WAIT, CREATE, LEAVE };

/* next_task, from its call of lanes_take on, up to the unlock. */
inline next_task()
{
    lanes_take(task, holds_token);
    holds_token = false;
    if
    :: task != NONE -> next = RUN
    :: task == NONE && (stopping || (may_leave && !MUST_STAY)) ->
        next = LEAVE;
        leave()
    :: else ->
        next = WAIT;
        idle++;
        if
        :: spawn_blocked -> lanes_grant()
        :: else
        fi
    fi;
    may_leave = false
}

/* The loop of worker_main that creates the workers that are owed, up to the unlock. */
inline chain_or_next_task()
{
    if
    :: workers_owed && starting < CHAIN_WIDTH -> reserve_worker(); next = CREATE
    :: else ->
        if
        :: task != NONE -> next = RUN
        :: else -> next_task()
        fi
    fi;
    pool_unlock()
}

/* is_to_leave: the pool can do without this worker (count_unneeded).  Any time will do. */
inline may_be_unneeded()
{
    if
    :: expiries > 0 -> expiries--; may_leave = true
    :: true
    fi
}

active [WORKERS] proctype worker_main()
{
    byte task = NONE, who;
    bool holds_token, may_leave;
    mtype next;

end:
    do
    :: d_step {
        start[_pid] ->
        start[_pid] = false;
        starting--;
        spawn_blocked = false;
        lanes_take(task, false);
        chain_or_next_task()
    };
        do
        :: next == CREATE ->
            create_worker(who);
            d_step { chain_or_next_task() }
        :: next == RUN ->
            /* pool_run_and_complete */
            atomic {
                task != NEEDS_FIRST || (has_run & BIT(NEEDS_SECOND));
                d_step {
                    assert(!result[task] && !(has_run & BIT(task)));
                    has_run = has_run | BIT(task)
                }
            };
#ifdef SIGNAL_BEFORE_STATE
            completion_bh = true;
            d_step {
                result[task] = RAN;
                state[task] = DONE;
                completed = completed | BIT(task)
            };
#else
            d_step {
                result[task] = RAN;
                state[task] = DONE;
                completed = completed | BIT(task)
            };
            d_step { assert(!callbacks_deleted); completion_bh = true };
#endif
            atomic {
                may_be_unneeded();
                d_step { lane_running[LANE(task)]--; next_task(); pool_unlock() }
            }
        :: next == WAIT ->
            /* wait_for_token */
            if
            :: d_step { tokens > 0 -> tokens--; hands++; holds_token = true };
                atomic {
                    may_be_unneeded();
                    d_step { hands--; idle--; next_task(); pool_unlock() }
                }
            :: d_step { expiries > 0 -> expiries--; may_leave = true };
#ifdef LEAVE_WITHOUT_LOOK
                d_step { idle--; may_leave = false; next = LEAVE; leave(); pool_unlock() }
#else
                d_step { idle--; next_task(); pool_unlock() }
#endif
            fi
        :: next == LEAVE -> next = 0; break
        od
    od
}
