/* SPDX-License-Identifier: BSD-3-Clause */
/* The range lock of an image: keeps a read-modify-write from undoing what another request writes next
 * door, in the same block.
 *
 * Two requests conflict when their ranges overlap and one of them is exclusive (a read-modify-write).
 * Whole-block writes, zeros and trims take it shared: among themselves they need no order.  Reads
 * do not take it.
 *
 * Lock order: this comes before everything else.  It is waited for on the request's own thread, before that
 * takes a slot of the pool, so that no worker ever waits for another request.
 */
#ifndef AIODISK_RANGE_H
#define AIODISK_RANGE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct range_lock {
    pthread_mutex_t lock;

    /* Under lock. */
    struct range *first, *last; /* held or waited for, oldest first */
    unsigned exclusive;         /* how many of them are exclusive */
};

/* One request's hold, on its stack. */
struct range {
    /* Set before range_acquire. */
    uint64_t start, end; /* bytes; end is not included */
    bool exclusive;

    /* Under the lock. */
    bool waiting;
    pthread_cond_t cond; /* initialised only while waiting */
    struct range *prev, *next;
};

void range_lock_init(struct range_lock *ranges);
void range_lock_destroy(struct range_lock *ranges);

/* Waits until no older conflicting request holds or awaits its range: first come, first served, so
 * neither kind can starve the other.
 */
void range_acquire(struct range_lock *ranges, struct range *range);
void range_release(struct range_lock *ranges, struct range *range);

#endif
