/* SPDX-License-Identifier: BSD-3-Clause */
/* The range lock: a list of all ranges, oldest first.  See range-lock.h.
 *
 * Runs on the threads of requests.  While no exclusive range is in the list, acquiring a range is
 * one insertion into the list and looks at no other range.  Never touches a disk.
 */
#include <assert.h>
#include <stddef.h>

#include "plugin/disk/disk-tally.h"
#include "plugin/disk/range-lock.h"
#include "pool/schedule-point.h"

void range_lock_init(struct range_lock *ranges, struct tally *tally)
{
    ranges->tally = tally;
    pthread_mutex_init(&ranges->lock, NULL);
    ranges->first = ranges->last = NULL;
    ranges->exclusive = 0;
}

void range_lock_destroy(struct range_lock *ranges)
{
    assert(!ranges->first && ranges->exclusive == 0);
    pthread_mutex_destroy(&ranges->lock);
}

/* Under lock: does the range conflict with an older range? */
static bool is_blocked(const struct range *range)
{
    for (const struct range *other = range->prev; other; other = other->prev) {
        if ((range->exclusive || other->exclusive) && range->start < other->end &&
            other->start < range->end)
            return true;
    }
    return false;
}

void range_acquire(struct range_lock *ranges, struct range *range)
{
    assert(range->start < range->end);
    pthread_mutex_lock(&ranges->lock);
    range->next = NULL;
    range->prev = ranges->last;
    if (ranges->last)
        ranges->last->next = range;
    else
        ranges->first = range;
    ranges->last = range;
    ranges->exclusive += range->exclusive;

    range->waiting = ranges->exclusive > 0 && is_blocked(range);
    if (range->waiting) {
        tally_add(ranges->tally, DISK_TALLY_RANGE_WAITS, 1);
        progress_at(PLACE_RANGE_LOCK);
        pthread_cond_init(&range->cond, NULL);
        while (range->waiting)
            pthread_cond_wait(&range->cond, &ranges->lock);
        pthread_cond_destroy(&range->cond);
        progress_at(PLACE_PLUGIN);
    }
    pthread_mutex_unlock(&ranges->lock);
}

void range_release(struct range_lock *ranges, struct range *range)
{
    pthread_mutex_lock(&ranges->lock);
    /* Read before this range is taken off the count: shared ranges may wait for the only exclusive
     * one.
     */
    bool somebody_may_wait = ranges->exclusive > 0;
    struct range *younger = range->next;

    if (range->prev)
        range->prev->next = range->next;
    else
        ranges->first = range->next;
    if (range->next)
        range->next->prev = range->prev;
    else
        ranges->last = range->prev;
    ranges->exclusive -= range->exclusive;

    /* Only younger ranges can have waited for this range. */
    for (; somebody_may_wait && younger; younger = younger->next) {
        if (younger->waiting && !is_blocked(younger)) {
            younger->waiting = false;
            SCHEDULE_POINT();
            pthread_cond_signal(&younger->cond);
        }
    }
    pthread_mutex_unlock(&ranges->lock);
}
