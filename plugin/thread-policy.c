/* SPDX-License-Identifier: BSD-3-Clause */
/* Chooses between SCHED_BATCH and SCHED_OTHER for the threads of nbdkit, by what is seen.  See thread-policy.h.
 *
 * Runs on the requests' threads; each sets only its own policy.  Never blocks.
 */
#include "plugin/thread-policy.h"

#include <sched.h>
#include <stdatomic.h>

/* How many requests in a row have to meet no other before requests count as single. */
#define ALONE 8192u

/* How many writes through the page cache a thread has to carry in a row before it is scheduled as a writer. */
#define WRITES 64u

/* One cache line for both.  Any thread. */
static struct {
    _Alignas(64) _Atomic unsigned inside; /* requests between enter and leave */
    _Atomic unsigned
        alone; /* requests in a row that met none inside; ALONE at most, or a few more */
} seen = {.alone = ALONE};

static void count_in(void)
{
    if (atomic_fetch_add_explicit(&seen.inside, 1, memory_order_relaxed) > 0)
        atomic_store_explicit(&seen.alone, 0, memory_order_relaxed);
    else if (atomic_load_explicit(&seen.alone, memory_order_relaxed) < ALONE)
        atomic_fetch_add_explicit(&seen.alone, 1, memory_order_relaxed);
}

/* SCHED_BATCH wherever it wins, which is nearly everywhere: on O_DIRECT, where a request sleeps for longer than a switch takes,
 * and when several requests are in flight.  Through the page cache a single request is faster when its thread preempts the
 * client, which has nothing to do but wait.  A client with one request in flight never makes two meet here; with four, cached,
 * two of a thousand do, hence the long memory.  And many writes wait for one lock, the inode's, whose holder should not wait for
 * a processor.
 *
 * Measured over NBD with fio, thousands of requests a second, SCHED_BATCH / SCHED_OTHER, medians of 3 rounds: page cache, reads:
 * depth 1 18.7/23.3, 4 132/101, 16 174/166, 16 on 4 connections 195/177; writes: depth 1 14.6/18.2, 16 39/41, 16 on 4
 * connections 29/35; write and flush, 4 on 4 connections 16.8/15.3. O_DIRECT, reads: depth 1 16.0/13.9, 16 61.5/58.2,
 * 64 83.3/78.8; writes: depth 1 16.7/11.9, 16 51.8/46.8.
 */
static int choose(enum thread_load load, int policy)
{
    static __thread unsigned writes;

    if (load == LOAD_DIRECT)
        return SCHED_BATCH;
    if (load == LOAD_CACHED_WRITE) {
        if (writes == WRITES)
            return SCHED_OTHER;
        writes++;
        return policy;
    }
    writes = 0;
    return atomic_load_explicit(&seen.alone, memory_order_relaxed) < ALONE ? SCHED_BATCH
                                                                           : SCHED_OTHER;
}

void thread_policy_enter(enum thread_load load)
{
    static __thread int policy = SCHED_OTHER;

    count_in();
    int wanted = choose(load, policy);
    if (policy == wanted)
        return;
    if (sched_getscheduler(0) == policy)
        sched_setscheduler(0, wanted, &(struct sched_param){0});
    policy = wanted;
}

void thread_policy_leave(void)
{
    atomic_fetch_sub_explicit(&seen.inside, 1, memory_order_relaxed);
}
