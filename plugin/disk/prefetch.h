/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading into the page cache before a client asks for the data. */
#ifndef AIODISK_PREFETCH_H
#define AIODISK_PREFETCH_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct image;

struct prefetch_state {
    pthread_mutex_t lock;
    pthread_cond_t done; /* signalled when a prefetch has ended */

    /* Under lock. */
    unsigned in_flight;
    bool closing; /* no prefetch may start, and those in flight must end soon */
};

void prefetch_init(struct prefetch_state *state);
void prefetch_destroy(struct prefetch_state *state);

/* Starts to read the range into the page cache, and does not wait.  Best effort: drops the hint
 * when too many prefetches are in flight, when there is no memory, and with O_DIRECT.  nbdkit's
 * threads; does not block.
 */
void image_prefetch(struct image *image, uint64_t length, uint64_t offset);

/* Ends the prefetches in flight and waits for them.  Called by image_close; blocks. */
void prefetch_stop(struct image *image);

#endif
