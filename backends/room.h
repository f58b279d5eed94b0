/* SPDX-License-Identifier: BSD-3-Clause */
/* A machine room: an event loop, a worker pool and a backend, assembled.
 *
 * Each open image has a room of its own, so storage that hangs, crawls or fails holds up no request
 * of another image: not on a thread, not in a queue, not in a ring, not on the loop.  README.md
 * says what a room costs and what the other choice was.
 */
#ifndef AIODISK_ROOM_H
#define AIODISK_ROOM_H

#include "backends/backend.h"

/* Room for one line that says which backend was chosen, or what stopped it, in bytes. */
#define ROOM_WHY_SIZE 256

struct room_config {
    const char *backend;               /* a name that backend_name() gives */
    unsigned max_threads, min_threads; /* see struct pool_config */
    unsigned queue_depth;              /* see struct backend_config */
    bool helping;                      /* see struct pool_config */
};

struct room {
    /* Set by room_open before any request, read by any thread until room_close. */
    struct loop *loop;
    struct pool *pool;
    struct backend *backend;
};

/* Starts the three.  direct: the descriptors will be O_DIRECT.  tally: see struct pool_config and
 * struct backend_config; or NULL.  Returns 0; or -errno with nothing
 * left running and the reason in `why`: -EINVAL (unknown backend, bounds out of range), or what
 * loop_new, pool_new or the backend's open returned.  Blocks.  Any thread that is no loop's and no
 * worker.
 */
int room_open(struct room *room, const struct room_config *config, bool direct, struct tally *tally,
              char why[ROOM_WHY_SIZE]);

/* Waits for the requests in flight, joins every thread and frees all.  Does nothing to a room that
 * is all zeros.  Blocks.  As room_open.
 */
void room_close(struct room *room);

/* Adds up the counters of all rooms that were closed so far: the first group of struct
 * pool_counters.  Any thread.
 */
void room_read_totals(struct pool_counters *totals);

#endif
