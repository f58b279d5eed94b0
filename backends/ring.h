/* SPDX-License-Identifier: BSD-3-Clause */
/* What io_uring and libaio have in common: requests come from any thread, and one thread, the loop's, hands
 * them to the kernel in batches and reaps them in batches when the kernel's eventfd fires.
 *
 * A full ring makes requests wait here, in order; what the kernel refuses goes to the pool.  So no request fails because of
 * the ring.
 */
#ifndef AIODISK_BACKENDS_RING_H
#define AIODISK_BACKENDS_RING_H

#include "backends/backend.h"

struct ring;

/* Requests handed over in one call.  The kernel lets the device begin only when the call has all of them ready, so larger batches
 * save calls and waste the device's time: 64 reached 0.8 of fio with 16 in flight, 4 reaches 0.95 (bench-backend).
 */
#define RING_BATCH 4u

struct ring_ops {
    /* Offers the kernel the `count` requests in `batch`, 1-RING_BATCH of them.  Returns how many of them, from the first
     * on, the kernel has now, or -errno when it refused even the first.  Of the others the kernel knows nothing.
     * Loop thread; must not block.
     */
    int (*push)(struct ring *ring, struct request *const *batch, unsigned count);

    /* Calls ring_completed for each request that the kernel has finished.  Loop thread; must not block. */
    void (*reap)(struct ring *ring);
};

struct ring {
    struct backend backend;

    /* Set once by ring_start. */
    const struct ring_ops *ops;
    int event_fd; /* the kernel writes it when there is something to reap */
    struct bh *bh;
    struct loop_watch *watch;

    /* Any thread. */
    struct stack inbox; /* submitted, and not seen by the loop thread yet */

    /* Loop thread only. */
    struct queue waiting; /* oldest first */
    unsigned in_flight;   /* the kernel has them; at most config.queue_depth */
    int start_result; /* how starting on the loop thread went; the opening thread reads it after loop_call */
    int refusal; /* -errno with which the kernel refused the last request given back */
};

/* Before the kernel's side is set up: makes the eventfd.  Returns 0 or -errno.  Any thread. */
int ring_init(struct ring *ring, const struct backend_ops *backend_ops, const struct ring_ops *ops,
              const struct backend_config *config);

/* Begins to watch the eventfd; from here on requests are carried.  Returns 0 or -errno.  Loop thread. */
int ring_start(struct ring *ring);

/* Waits until nothing waits and nothing is in flight, and stops watching.  Loop thread: polls the loop. */
void ring_stop(struct ring *ring);

/* Undoes ring_init.  Any thread. */
void ring_destroy(struct ring *ring);

/* Reads a few bytes from a file of its own through the ring.  Returns 0, or -errno, also when the pool had to carry the
 * read.  Before any other request; not on the loop thread.
 */
int ring_prove(struct ring *ring);

/* backend_ops.submit for both. */
int ring_submit(struct backend *backend, struct request *request);

/* `result`: a byte count or -errno, as the kernel gave it.  Loop thread, from ring_ops.reap. */
void ring_completed(struct ring *ring, struct request *request, int64_t result);

#endif
