/* SPDX-License-Identifier: BSD-3-Clause */
/* Bounce buffers in a few sizes, each with a stack of buffers at rest.  See bounce.h.
 *
 * Runs on the requests' threads.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "plugin/bounce.h"

/* 4 KiB, 16 KiB, 64 KiB, 256 KiB, 1 MiB */
#define BUCKETS 5
#define SMALLEST_SHIFT 12
#define BUCKET_SHIFT 2

/* At most this many bytes rest in each bucket; what comes back beyond that is freed. */
#define BUCKET_MAX_BYTES ((size_t)32 << 20)

/* A buffer at rest keeps the link in its first bytes. */
struct resting {
    struct resting *next;
};

static struct bucket {
    pthread_mutex_t lock;

    /* Under lock. */
    struct resting *first;
    size_t count;
} buckets[BUCKETS] = {
    {.lock = PTHREAD_MUTEX_INITIALIZER}, {.lock = PTHREAD_MUTEX_INITIALIZER}, {.lock = PTHREAD_MUTEX_INITIALIZER},
    {.lock = PTHREAD_MUTEX_INITIALIZER}, {.lock = PTHREAD_MUTEX_INITIALIZER},
};

static size_t bucket_size(unsigned bucket)
{
    return (size_t)1 << (SMALLEST_SHIFT + bucket * BUCKET_SHIFT);
}

int bounce_get(struct bounce *bounce, size_t size)
{
    unsigned i = 0;

    assert(size <= BOUNCE_MAX);
    while (bucket_size(i) < size)
        i++;
    bounce->bucket = i;

    pthread_mutex_lock(&buckets[i].lock);
    struct resting *resting = buckets[i].first;
    if (resting) {
        buckets[i].first = resting->next;
        buckets[i].count--;
    }
    pthread_mutex_unlock(&buckets[i].lock);
    if (resting) {
        bounce->memory = (char *)resting;
        return 0;
    }
    size_t bytes = bucket_size(i);
    bounce->memory = aligned_alloc(bytes < BOUNCE_ALIGNMENT ? bytes : BOUNCE_ALIGNMENT, bytes);
    return bounce->memory ? 0 : -ENOMEM;
}

void bounce_put(struct bounce *bounce)
{
    struct bucket *bucket = &buckets[bounce->bucket];
    struct resting *resting = (struct resting *)bounce->memory;

    bounce->memory = NULL;
    pthread_mutex_lock(&bucket->lock);
    if (bucket->count < BUCKET_MAX_BYTES / bucket_size(bucket - buckets)) {
        resting->next = bucket->first;
        bucket->first = resting;
        bucket->count++;
        resting = NULL;
    }
    pthread_mutex_unlock(&bucket->lock);
    free(resting);
}

void bounce_free_all(void)
{
    for (int i = 0; i < BUCKETS; i++) {
        while (buckets[i].first) {
            struct resting *resting = buckets[i].first;
            buckets[i].first = resting->next;
            free(resting);
        }
        buckets[i].count = 0;
    }
}
