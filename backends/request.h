/* SPDX-License-Identifier: BSD-3-Clause */
/* One request: what the kernel is asked to do, how far it has come, and how it ends.
 *
 * A submitter fills in a struct request and passes it to backend_submit or backend_run (backend.h).
 * Backends use the functions of this file to continue a request, to finish it, and to hand it to
 * the pool.  Short transfers and EINTR are continued here, once for all backends (request_advance),
 * so a submitter sees a request that was carried out whole, or that failed.
 *
 * The functions run on the submitter's thread, on the loop thread and on the pool's workers; each
 * declaration names the thread.  This file never chooses between backends and knows no ring.
 */
#ifndef AIODISK_REQUEST_H
#define AIODISK_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "backends/progress.h"
#include "pool/pool.h"
#include "pool/stack.h"

struct backend;
struct waiter;

enum request_op {
    REQUEST_READ,      /* preadv(2); a read past the end of the file fails with -EIO */
    REQUEST_WRITE,     /* pwritev(2); with REQUEST_FUA: pwritev2(2) with RWF_DSYNC */
    REQUEST_FDATASYNC, /* fdatasync(2) */
    REQUEST_FALLOCATE, /* fallocate(2) with `mode` on [offset, offset + length) */
    REQUEST_DISCARD,   /* ioctl(2) BLKDISCARD on [offset, offset + length) */
    REQUEST_ZEROOUT,   /* ioctl(2) BLKZEROOUT on [offset, offset + length) */
    REQUEST_CALL,      /* call(request): any other blocking call (lseek(2), readahead(2)) */
};

enum request_flags {
    /* WRITE: the data are durable when the request ends.  -EOPNOTSUPP where the file, the kernel or
     * a seccomp filter does not allow RWF_DSYNC.
     */
    REQUEST_FUA = 1 << 0,
    /* READ, WRITE: fd is not O_DIRECT.  RWF_NOWAIT may then find the data of a read in the page
     * cache.
     */
    REQUEST_PAGE_CACHE = 1 << 1,
    /* CALL: the call belongs in the pool's slow lane. */
    REQUEST_SLOW = 1 << 2,
    /* ZEROOUT of an RBD image: no hole is left. */
    REQUEST_THICK = 1 << 3,
};

/* Lives in its submitter's memory (usually on the stack) from submission until `done` is called or
 * backend_run returns.  The submitter zeroes the struct and sets the fields that its op needs.
 */
struct request {
    /* Set by the submitter.  From submission until the end the backend owns these fields: it
     * advances offset, length, iov and the entries of iov as bytes are transferred.
     */
    enum request_op op;
    unsigned flags;  /* enum request_flags */
    int fd;          /* stays open until the request ends */
    int mode;        /* FALLOCATE */
    uint64_t offset; /* bytes */
    uint64_t length; /* bytes; READ, WRITE: the sum of iov, at most 4 GiB - 1 */
    struct iovec *iov;
    int iovcnt;                           /* 1-IOV_MAX */
    int (*call)(struct request *request); /* CALL: 0 or -errno; may block; repeated after -EINTR */

    /* Set by the submitter, used by `call` and `done`.  No backend reads or writes this field. */
    void *opaque;

    /* Set by a submitter that calls backend_submit: runs once, on the loop thread; must not block.
     * May free the request, submit another one, or poll the loop.  backend_run does not call
     * `done`.
     */
    void (*done)(struct request *request);

    /* Written by the thread that carries out the request, before the request ends: 0, or -errno
     * after `transferred` bytes were transferred.
     */
    int result;
    uint64_t transferred; /* bytes; READ, WRITE */

    /* Set by backend_submit and backend_run before submission, then read by any thread that carries
     * the request.
     */
    struct backend *backend;   /* not freed before the request has ended */
    struct waiter *waiter;     /* the sleeping caller of backend_run; NULL: `done` is called */
    struct progress *progress; /* of the caller of backend_run, or NULL */
    enum client_op client_op;  /* the client's request that this one serves, or CLIENT_OPS */

    /* Loop thread. */
    uint64_t submitted_ns; /* when a ring's kernel first accepted the request; 0: not yet */

    /* Loop thread, then the caller of backend_run after it has woken. */
    bool given_back; /* the ring could not carry the request, so the pool does */

    /* In a ring's inbox or queues: the submitter until stack_push, then the loop thread. */
    struct link link;

    /* The pool's, once the request was handed to the pool. */
    struct task task;
};

/* Judges what the kernel returned for one try: `ret` is a byte count or -errno.  Returns true when
 * the request is finished; `result` is then set.  Returns false when the rest must be tried again:
 * after -EINTR, or after a short transfer, for which offset, length and iov were advanced.  A
 * transfer of 0 bytes fails with -EIO (READ: the offset is past the end of the file) or -ENOSPC
 * (WRITE).  Does not block.  Called on the thread that made the try or reaped its completion.
 */
bool request_advance(struct request *request, ssize_t ret);

/* Carries out the request by blocking calls on this thread and returns its result.  Worker thread,
 * or a caller of pool_run that runs its own task.
 */
int request_perform(struct request *request);

/* Ends a request that a backend accepted: wakes the caller of backend_run, or calls `done`.  The
 * caller of request_finish touches nothing of the request afterwards.  Does not block.  Loop
 * thread.
 */
void request_finish(struct request *request, int result);

/* Passes a request on to the pool when the backend accepted the request and cannot carry it out:
 * the kernel refused the submission, or completed it with -EAGAIN or -ECANCELED.  Bytes that were
 * transferred stay transferred.  A caller of backend_run wakes and enters pool_run.  A request of
 * backend_submit goes to pool_submit; when pool_submit fails, the request ends with that error.
 * The caller of request_give_back touches nothing of the request afterwards.  Does not block.  Loop
 * thread.
 */
void request_give_back(struct request *request);

/* Adds the time since start_ns to the backend's tally, if there is one and if a client's request is
 * served.  Does not block.  The thread that carries the request.
 */
void request_count_time(const struct request *request, uint64_t start_ns);

/* The time now if request_count_time would count it, else 0. */
uint64_t request_clock(const struct request *request);

/* Hands the request to the pool, in the lane for its op.  Returns 0, and the pool's completion
 * bottom half will call `done` once, on the loop thread; or an error of pool_submit (-ESHUTDOWN,
 * -EAGAIN), and `done` will not be called.  Does not block.  Any thread.
 */
int request_submit_to_pool(struct request *request);

/* Carries out the request by pool_run: this thread runs it or waits for a worker that does.
 * Returns the result, or -ESHUTDOWN (see pool_run).  Blocks.  Any thread but the loop's and the
 * workers'.
 */
int request_run_on_pool(struct request *request);

#endif
