/* SPDX-License-Identifier: BSD-3-Clause */
/* Prefetch by posix_fadvise(2), in the background.  See prefetch.h.
 *
 * image_prefetch runs on the thread of the request and returns at once; prefetch_run runs on a
 * worker, and prefetch_finished on the image's loop thread.  Nothing here changes a byte of the
 * disk.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "plugin/disk/image.h"

/* All prefetches of an image together may use 1/SLOTS_PER_PREFETCH of its slots; further hints are
 * dropped.  So prefetches never keep a flush waiting.
 */
#define SLOTS_PER_PREFETCH 8

/* Bytes of one hint that are read; the rest is dropped. */
#define PREFETCH_MAX ((uint64_t)64 << 20)

/* Bytes of one call of posix_fadvise.  The kernel does not read much more ahead in one call. */
#define PREFETCH_STEP ((uint64_t)2 << 20)

/* Outlives the request, so it is allocated.  image_close waits for it. */
struct prefetch {
    struct request request;
    struct image *image;
    uint64_t offset, length; /* bytes */
};

void prefetch_init(struct prefetch_state *state)
{
    *state = (struct prefetch_state){.in_flight = 0};
    pthread_mutex_init(&state->lock, NULL);
    pthread_cond_init(&state->done, NULL);
}

void prefetch_destroy(struct prefetch_state *state)
{
    pthread_mutex_destroy(&state->lock);
    pthread_cond_destroy(&state->done);
}

static bool is_closing(struct prefetch_state *state)
{
    pthread_mutex_lock(&state->lock);
    bool closing = state->closing;
    pthread_mutex_unlock(&state->lock);
    return closing;
}

static int prefetch_run(struct request *request)
{
    struct prefetch *prefetch = request->opaque;
    struct image *image = prefetch->image;
    uint64_t end = prefetch->offset + prefetch->length;

    for (uint64_t at = prefetch->offset; at < end && !is_closing(&image->prefetch);
         at += PREFETCH_STEP) {
        uint64_t step = end - at < PREFETCH_STEP ? end - at : PREFETCH_STEP;
        if (posix_fadvise(image->buffered_fd, at, step, POSIX_FADV_WILLNEED) != 0)
            break;
    }
    return 0;
}

static bool enter(struct image *image)
{
    struct prefetch_state *state = &image->prefetch;
    unsigned slots = backend_max_blocking_calls(image->room.backend);
    unsigned room = slots > SLOTS_PER_PREFETCH ? slots / SLOTS_PER_PREFETCH : 1;

    pthread_mutex_lock(&state->lock);
    bool entered = state->in_flight < room && !state->closing;
    if (entered)
        state->in_flight++;
    pthread_mutex_unlock(&state->lock);
    return entered;
}

/* The image may be freed as soon as the lock is released. */
static void leave(struct prefetch_state *state)
{
    pthread_mutex_lock(&state->lock);
    state->in_flight--;
    pthread_cond_signal(&state->done);
    pthread_mutex_unlock(&state->lock);
}

static void prefetch_finished(struct request *request)
{
    struct prefetch *prefetch = request->opaque;
    struct image *image = prefetch->image;

    free(prefetch);
    leave(&image->prefetch);
}

void image_prefetch(struct image *image, uint64_t length, uint64_t offset)
{
    /* O_DIRECT reads do not look at the page cache. */
    if (image->direct || !enter(image))
        return;
    struct prefetch *prefetch = calloc(1, sizeof *prefetch);
    if (!prefetch) {
        leave(&image->prefetch);
        return;
    }
    prefetch->image = image;
    prefetch->offset = offset;
    prefetch->length = length < PREFETCH_MAX ? length : PREFETCH_MAX;
    prefetch->request.op = REQUEST_CALL;
    prefetch->request.flags = REQUEST_SLOW;
    prefetch->request.call = prefetch_run;
    prefetch->request.opaque = prefetch;
    prefetch->request.done = prefetch_finished;
    if (backend_submit(image->room.backend, &prefetch->request) < 0) {
        free(prefetch);
        leave(&image->prefetch);
    }
}

void prefetch_stop(struct image *image)
{
    struct prefetch_state *state = &image->prefetch;

    pthread_mutex_lock(&state->lock);
    state->closing = true;
    while (state->in_flight > 0)
        pthread_cond_wait(&state->done, &state->lock);
    pthread_mutex_unlock(&state->lock);
}
