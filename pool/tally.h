/* SPDX-License-Identifier: BSD-3-Clause */
/* A tally: an array of counters that many threads add to at once and one thread reads now and then.
 *
 * Each counter exists once per shard, and a thread adds to the shard of the processor that it runs
 * on.  So threads on different processors do not pass a cache line back and forth.  Adding takes no
 * lock, allocates nothing and never blocks; tally_read adds the shards up.  A counter never becomes
 * smaller.  Two counters that are read one after the other belong to slightly different moments.
 *
 * Each layer numbers its own counters, starting where the layer below ends.  This file knows the
 * meaning of none.  A NULL tally counts nothing.
 */
#ifndef AIODISK_TALLY_H
#define AIODISK_TALLY_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

/* A histogram of durations is TALLY_HISTOGRAM counters in a row: one for each bucket, which are not
 * cumulative, then the sum of the durations in ns.  Bucket i holds what took longer than bucket i-1
 * and at most 10 us * 2^i; the last bucket holds everything longer than 10.48576 s.
 */
#define TALLY_BUCKETS 22u
#define TALLY_HISTOGRAM (TALLY_BUCKETS + 1)
#define TALLY_FIRST_BOUND_NS 10000u

struct tally {
    /* Set once by tally_new, read by any thread. */
    unsigned shard_mask; /* the number of shards - 1; they are a power of two */
    unsigned stride;     /* counters from one shard to the next, a multiple of a cache line */
    _Atomic uint64_t *counters;
};

/* Returns a tally with `count` counters, all 0; or NULL when there is no memory.  Any thread. */
struct tally *tally_new(unsigned count);

/* No thread uses the tally any more.  NULL is allowed. */
void tally_free(struct tally *tally);

/* The value of one counter.  Any thread. */
uint64_t tally_read(const struct tally *tally, unsigned counter);

/* Any thread. */
static inline void tally_add(struct tally *tally, unsigned counter, uint64_t n)
{
    if (!tally)
        return;
    unsigned shard = (unsigned)sched_getcpu() & tally->shard_mask;
    atomic_fetch_add_explicit(&tally->counters[shard * tally->stride + counter], n,
                              memory_order_relaxed);
}

/* The bucket of a duration. */
static inline unsigned tally_bucket(uint64_t ns)
{
    uint64_t bounds = (ns + TALLY_FIRST_BOUND_NS - 1) / TALLY_FIRST_BOUND_NS;
    unsigned bucket = bounds <= 1 ? 0 : 64 - (unsigned)__builtin_clzll(bounds - 1);

    return bucket < TALLY_BUCKETS ? bucket : TALLY_BUCKETS - 1;
}

/* Adds one duration to the histogram whose first counter is `histogram`.  Any thread. */
static inline void tally_record(struct tally *tally, unsigned histogram, uint64_t ns)
{
    tally_add(tally, histogram + tally_bucket(ns), 1);
    tally_add(tally, histogram + TALLY_BUCKETS, ns);
}

/* Nanoseconds of CLOCK_MONOTONIC.  Any thread. */
static inline uint64_t tally_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
