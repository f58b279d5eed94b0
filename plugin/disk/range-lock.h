/* SPDX-License-Identifier: BSD-3-Clause */
/* The range lock of an image.  A read-modify-write must not undo what another request writes to the
 * same block.
 *
 * Two requests conflict when their ranges overlap and at least one is exclusive (a
 * read-modify-write).  Writes of whole blocks, zeros and trims take the lock shared: they need no
 * order among themselves.  Reads do not take the lock.
 *
 * Lock order: the range lock comes before every other lock of a request.  A request waits for its
 * range on its own thread, before the request takes a slot of the pool, so no worker ever waits for
 * another request.
 */
#ifndef AIODISK_RANGE_LOCK_H
#define AIODISK_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct tally;

struct range_lock {
    struct tally *tally; /* set once; counts the ranges that wait; or NULL */

    pthread_mutex_t lock;

    /* Under lock. */
    struct range *first, *last; /* ranges held or waited for, oldest first */
    unsigned exclusive;         /* how many of these are exclusive */
};

/* The range of one request.  Lies on the stack of its thread. */
struct range {
    /* Set before range_acquire. */
    uint64_t start, end; /* bytes; end is not included */
    bool exclusive;

    /* Under the lock of the range_lock. */
    bool waiting;
    pthread_cond_t cond; /* initialised only while waiting */
    struct range *prev, *next;
};

void range_lock_init(struct range_lock *ranges, struct tally *tally);
void range_lock_destroy(struct range_lock *ranges);

/* Blocks until no older conflicting request holds or awaits its range.  First come, first served,
 * so neither shared nor exclusive requests starve.  Any thread but a loop's and the workers'.
 */
void range_acquire(struct range_lock *ranges, struct range *range);

/* Does not block.  The thread that acquired the range. */
void range_release(struct range_lock *ranges, struct range *range);

#endif
