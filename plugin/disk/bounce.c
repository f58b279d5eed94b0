/* SPDX-License-Identifier: BSD-3-Clause */
/* Bounce buffers in a few sizes; what they promise is in bounce.h.
 *
 * Runs on the threads of requests.  A request may wait here, before it takes a slot of the pool.
 * A request that holds a buffer waits for no other buffer, so each buffer comes back as soon as its
 * own storage answers.  The lock is never held during I/O or allocation, so a stuck image holds
 * nobody up with it.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "plugin/disk/bounce.h"
#include "plugin/disk/disk-tally.h"
#include "pool/schedule-point.h"
#include "pool/waiter.h"

/* 4 KiB, 16 KiB, 64 KiB, 256 KiB, 1 MiB */
#define BUCKETS 5
#define SMALLEST_SHIFT 12
#define BUCKET_SHIFT 2

/* A buffer at rest keeps the link in its first bytes. */
struct resting {
    struct resting *next;
};

/* A request that waits for its share to have room.  On its thread's stack. */
struct bounce_waiter {
    /* Set before the waiter is listed. */
    size_t bytes;

    struct waiter waiter; /* woken under lock, once `bytes` are counted as held */

    /* Under lock. */
    struct bounce_waiter *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Under lock. */
static struct resting *resting[BUCKETS];
static size_t at_rest;                /* bytes of the buffers at rest */
static size_t in_use;                 /* bytes of the buffers in use: the sum of `held` */
static struct bounce_share *starving; /* the shares that have a waiter, in no order */

static size_t bucket_size(unsigned bucket)
{
    return (size_t)1 << (SMALLEST_SHIFT + bucket * BUCKET_SHIFT);
}

/* Under lock. */
static struct resting *pop(unsigned bucket)
{
    struct resting *buffer = resting[bucket];

    if (buffer) {
        resting[bucket] = buffer->next;
        at_rest -= bucket_size(bucket);
    }
    return buffer;
}

/* Under lock: frees the largest buffers at rest until all buffers fit into the shared maximum. */
static void shed(void)
{
    for (unsigned i = BUCKETS; i-- > 0;) {
        while (at_rest > 0 && in_use + at_rest > BOUNCE_SHARED_MAX && resting[i])
            free(pop(i));
    }
}

/* Under lock: see bounce.h for the rule. */
static bool may_take(const struct bounce_share *share, size_t bytes)
{
    size_t after = share->held + bytes;

    return after <= BOUNCE_OWN || in_use + bytes + after <= BOUNCE_SHARED_MAX;
}

/* Under lock. */
static void take(struct bounce_share *share, size_t bytes)
{
    share->held += bytes;
    in_use += bytes;
}

/* Under lock: the request at the head of the share's queue may be served now. */
static void serve_first(struct bounce_share *share)
{
    struct bounce_waiter *first = share->first;

    share->first = first->next;
    if (!share->first)
        share->last = NULL;
    take(share, first->bytes);
    SCHEDULE_POINT();
    waiter_wake(&first->waiter);
}

/* Under lock, after bytes came back: serves every request that they suffice for, those of one share
 * in order of arrival.
 */
static void serve_waiters(void)
{
    struct bounce_share **link = &starving;

    while (*link) {
        struct bounce_share *share = *link;

        while (share->first && may_take(share, share->first->bytes))
            serve_first(share);
        if (share->first)
            link = &share->next;
        else
            *link = share->next;
    }
}

/* Under lock, which is released while the request waits. */
static void wait_for_room(struct bounce_share *share, size_t bytes)
{
    struct bounce_waiter self = {.bytes = bytes};

    waiter_init(&self.waiter);
    if (share->last) {
        share->last->next = &self;
    } else {
        share->first = &self;
        share->next = starving;
        starving = share;
    }
    share->last = &self;
    pthread_mutex_unlock(&lock);
    tally_add(share->tally, DISK_TALLY_BOUNCE_WAITS, 1);
    progress_at(PLACE_BOUNCE);
    waiter_wait(&self.waiter);
    progress_at(PLACE_PLUGIN);
    waiter_destroy(&self.waiter);
    pthread_mutex_lock(&lock);
}

/* Under lock. */
static void give_back(struct bounce_share *share, size_t bytes)
{
    share->held -= bytes;
    in_use -= bytes;
    serve_waiters();
}

void bounce_share_init(struct bounce_share *share, struct tally *tally)
{
    *share = (struct bounce_share){.tally = tally};
}

int bounce_get(struct bounce_share *share, struct bounce *bounce, size_t size)
{
    unsigned i = 0;

    assert(size <= BOUNCE_MAX);
    while (bucket_size(i) < size)
        i++;
    size_t bytes = bucket_size(i);
    bounce->bucket = i;
    bounce->share = share;

    pthread_mutex_lock(&lock);
    if (share->first || !may_take(share, bytes))
        wait_for_room(share, bytes);
    else
        take(share, bytes);
    bounce->memory = (char *)pop(i);
    if (!bounce->memory)
        shed();
    pthread_mutex_unlock(&lock);
    if (bounce->memory)
        return 0;

    bounce->memory = aligned_alloc(bytes < BOUNCE_ALIGNMENT ? bytes : BOUNCE_ALIGNMENT, bytes);
    if (bounce->memory)
        return 0;
    pthread_mutex_lock(&lock);
    give_back(share, bytes);
    pthread_mutex_unlock(&lock);
    return -ENOMEM;
}

void bounce_put(struct bounce *bounce)
{
    struct resting *buffer = (struct resting *)bounce->memory;
    size_t bytes = bucket_size(bounce->bucket);

    bounce->memory = NULL;
    pthread_mutex_lock(&lock);
    buffer->next = resting[bounce->bucket];
    resting[bounce->bucket] = buffer;
    at_rest += bytes;
    give_back(bounce->share, bytes);
    shed();
    pthread_mutex_unlock(&lock);
}

size_t bounce_allocated(void)
{
    pthread_mutex_lock(&lock);
    size_t bytes = in_use + at_rest;
    pthread_mutex_unlock(&lock);
    return bytes;
}

void bounce_free_all(void)
{
    pthread_mutex_lock(&lock);
    assert(in_use == 0 && !starving);
    for (unsigned i = 0; i < BUCKETS; i++) {
        while (resting[i])
            free(pop(i));
    }
    pthread_mutex_unlock(&lock);
}
