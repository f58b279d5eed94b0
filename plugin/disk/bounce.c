/* SPDX-License-Identifier: BSD-3-Clause */
/* Bounce buffers in a few sizes, each with a stack of buffers at rest.  See bounce.h.
 *
 * Runs on the requests' threads, which may wait here, before they take a slot of the pool: whoever holds a buffer
 * waits for no other, so one always comes back.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "plugin/disk/bounce.h"

/* 4 KiB, 16 KiB, 64 KiB, 256 KiB, 1 MiB */
#define BUCKETS 5
#define SMALLEST_SHIFT 12
#define BUCKET_SHIFT 2

/* A buffer at rest keeps the link in its first bytes. */
struct resting {
    struct resting *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t returned =
    PTHREAD_COND_INITIALIZER; /* broadcast when there is more room, or a buffer */

/* Under lock. */
static struct resting *resting[BUCKETS];
static size_t allocated; /* bytes: of all buffers, in use and at rest */
static unsigned waiting;

static size_t bucket_size(unsigned bucket)
{
    return (size_t)1 << (SMALLEST_SHIFT + bucket * BUCKET_SHIFT);
}

static struct resting *pop(unsigned bucket)
{
    struct resting *buffer = resting[bucket];

    if (buffer)
        resting[bucket] = buffer->next;
    return buffer;
}

/* Under lock: frees one buffer at rest, the largest, to make room.  False: there is none. */
static bool shed(void)
{
    for (unsigned i = BUCKETS; i-- > 0;) {
        struct resting *buffer = pop(i);
        if (buffer) {
            allocated -= bucket_size(i);
            free(buffer);
            return true;
        }
    }
    return false;
}

static void wait_for_return(void)
{
    waiting++;
    pthread_cond_wait(&returned, &lock);
    waiting--;
}

int bounce_get(struct bounce *bounce, size_t size)
{
    unsigned i = 0;

    assert(size <= BOUNCE_MAX);
    while (bucket_size(i) < size)
        i++;
    bounce->bucket = i;
    size_t bytes = bucket_size(i);

    pthread_mutex_lock(&lock);
    bounce->memory = (char *)pop(i);
    while (!bounce->memory && allocated + bytes > BOUNCE_TOTAL_MAX) {
        if (!shed())
            wait_for_return();
        bounce->memory = (char *)pop(i);
    }
    if (!bounce->memory)
        allocated += bytes;
    pthread_mutex_unlock(&lock);
    if (bounce->memory)
        return 0;

    bounce->memory = aligned_alloc(bytes < BOUNCE_ALIGNMENT ? bytes : BOUNCE_ALIGNMENT, bytes);
    if (bounce->memory)
        return 0;
    pthread_mutex_lock(&lock);
    allocated -= bytes;
    if (waiting)
        pthread_cond_broadcast(&returned);
    pthread_mutex_unlock(&lock);
    return -ENOMEM;
}

void bounce_put(struct bounce *bounce)
{
    struct resting *buffer = (struct resting *)bounce->memory;

    bounce->memory = NULL;
    pthread_mutex_lock(&lock);
    buffer->next = resting[bounce->bucket];
    resting[bounce->bucket] = buffer;
    if (waiting)
        pthread_cond_broadcast(&returned);
    pthread_mutex_unlock(&lock);
}

void bounce_free_all(void)
{
    pthread_mutex_lock(&lock);
    while (shed())
        ;
    assert(allocated == 0);
    pthread_mutex_unlock(&lock);
}
