/* SPDX-License-Identifier: BSD-3-Clause */
/* What io_uring.c and libaio.c share: any thread submits requests, and one thread, the loop's,
 * hands them to the kernel in batches, and reaps completions in batches when the kernel's eventfd
 * becomes readable.
 *
 * Requests that find the ring full wait in a queue, in order of submission.  A request that the
 * kernel refuses goes to the pool.  So no request fails because of the ring.
 *
 * ring_submit runs on any thread.  Every other function runs on the thread that its declaration
 * names.  ring.c never calls the kernel's ring interface; the functions of struct ring_ops do.
 */
#ifndef AIODISK_BACKENDS_RING_H
#define AIODISK_BACKENDS_RING_H

#include "backends/backend.h"

struct ring;

/* Most requests in one call of ring_ops.push.  The kernel passes the requests of a call to the
 * device only after it has prepared all of them, so a larger batch saves system calls but leaves
 * the device idle for longer: with 16 requests in flight, batches of 64 reached 0.8 of fio's rate,
 * batches of 4 reach 0.95 (tests/bench/backend.py).
 */
#define RING_BATCH 4u

/* What one kernel interface does.  Both functions run on the loop thread and must not block. */
struct ring_ops {
    /* Offers the kernel the `count` requests in `batch`, 1-RING_BATCH of them.  Returns how many
     * the kernel accepted, counted from the first one, or -errno when it refused the first one.
     * When push returns, the kernel holds nothing of the requests that it did not accept.
     */
    int (*push)(struct ring *ring, struct request *const *batch, unsigned count);

    /* Calls ring_completed once for each request that the kernel has completed.  Runs no callback
     * of a request, so it is never entered a second time from inside itself.
     */
    void (*reap)(struct ring *ring);
};

struct ring {
    /* Set once by ring_init, read by any thread. */
    struct backend backend;
    const struct ring_ops *ops;
    int event_fd;  /* the kernel writes to it when there is a completion to reap */
    struct bh *bh; /* runs `turn` after a submission */

    /* Any thread. */
    struct stack inbox; /* requests that were submitted and that the loop thread has not drained */

    /* Loop thread only. */
    struct loop_watch *watch; /* of event_fd, from ring_start until ring_stop */
    struct queue waiting;     /* requests that the kernel does not hold, oldest first */
    struct queue leaving;     /* requests that ring.c has yet to end or to give back */
    unsigned in_flight;       /* requests that the kernel holds; at most config.queue_depth */

    /* Written by the loop thread; the opening thread reads these after loop_call or after the end
     * of the only request (ring_prove).
     */
    int start_result; /* 0, or -errno of the part of `open` that runs on the loop thread */
    int refusal;      /* -errno for which the last request was given back */
};

/* Makes the eventfd and the bottom half, before the kernel's ring is made.  Returns 0; or -EMFILE,
 * -ENFILE or -ENOMEM, with nothing left behind.  Any thread; does not block.
 */
int ring_init(struct ring *ring, const struct backend_ops *backend_ops, const struct ring_ops *ops,
              const struct backend_config *config);

/* Watches the eventfd.  From here on the ring carries requests.  Returns 0, -ENOMEM or -errno of
 * epoll_ctl(2).  Loop thread.
 */
int ring_start(struct ring *ring);

/* Deletes the watch.  Every request has ended.  Loop thread. */
void ring_stop(struct ring *ring);

/* Undoes ring_init.  Any thread; the ring is not started, or stopped. */
void ring_destroy(struct ring *ring);

/* Returns the descriptor of a new file in memory, for a trial request; or -errno of
 * memfd_create(2).  Any thread; does not block.
 */
int ring_probe_file(void);

/* Reads a few bytes from a file of its own through the started ring.  Returns 0, or -errno; also
 * when the read succeeded only because the pool carried it.  Called before the first other request.
 * Blocks.  Any thread but the loop's.
 */
int ring_prove(struct ring *ring);

/* backend_ops.submit of both rings.  Returns 0. */
int ring_submit(struct backend *backend, struct request *request);

/* Takes a completion from the kernel: `result` is a byte count or -errno.  Called by ring_ops.reap.
 * Queues the request for its end, for the pool, or for another try of what is left.  Loop thread.
 */
void ring_completed(struct ring *ring, struct request *request, int64_t result);

#endif
