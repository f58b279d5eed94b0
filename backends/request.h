/* SPDX-License-Identifier: BSD-3-Clause */
/* One request to the kernel, and what becomes of it.
 *
 * Short transfers and EINTR are continued here, once for all backends (request_advance), so whoever submits
 * sees a request that was carried out whole, or failed.
 */
#ifndef AIODISK_REQUEST_H
#define AIODISK_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "pool/pool.h"
#include "pool/stack.h"

struct waiter;

enum request_op {
    REQUEST_READ,      /* preadv2(2); past the end of the file: -EIO, never invented zeros */
    REQUEST_WRITE,     /* pwritev2(2); with REQUEST_FUA: RWF_DSYNC */
    REQUEST_FDATASYNC, /* fdatasync(2) */
    REQUEST_FALLOCATE, /* fallocate(2) with `mode` on [offset, offset + length) */
    REQUEST_DISCARD,   /* ioctl BLKDISCARD on [offset, offset + length) */
    REQUEST_ZEROOUT,   /* ioctl BLKZEROOUT on [offset, offset + length) */
    REQUEST_CALL, /* call(request): any other blocking call (lseek, readahead), always on the pool */
};

enum request_flags {
    REQUEST_FUA = 1 << 0, /* WRITE: durable when it returns; -EOPNOTSUPP where the file cannot */
    REQUEST_PAGE_CACHE =
        1
        << 1, /* READ, WRITE: fd is not O_DIRECT (a read may be had without waiting: RWF_NOWAIT) */
    REQUEST_SLOW = 1 << 2, /* CALL: belongs in the slow lane */
};

/* Lives in its submitter's memory (usually its stack) until `done` is called or backend_run returns.
 * Zero it, then set what its op needs.
 */
struct request {
    /* Set by the submitter; iov is consumed: a backend advances its entries as bytes are transferred. */
    enum request_op op;
    unsigned flags;
    int fd;
    int mode;
    uint64_t offset; /* bytes */
    uint64_t length; /* bytes; READ, WRITE: the sum of iov, at most REQUEST_MAX_TRANSFER */
    struct iovec *iov;
    int iovcnt;
    int (*call)(struct request *request);
    void *opaque; /* for call and done; not the backend's */

    void (*done)(struct request *request); /* loop thread; must not block.  Unused by backend_run */

    /* 0, or -errno with `transferred` bytes moved before the error.  Set before done is called. */
    int result;
    uint64_t transferred;

    /* The backend's, from submission until done. */
    struct pool *pool;     /* for what the backend cannot do natively */
    struct waiter *waiter; /* wakes backend_run, or NULL: done is called */
    bool given_back;       /* the pool carries what the backend could not */
    struct task task;      /* when it goes through the pool */
    struct link link;      /* a ring's list of requests that the kernel does not have yet */
};

/* READ and WRITE are split above this by the submitter (the kernel stops at 2 GiB - 4 KiB). */
#define REQUEST_MAX_TRANSFER (64u << 20)

/* --- For backends --- */

/* Judges one try of the kernel's: `ret` is a byte count or -errno.  Returns true when the request is
 * finished (result is set), false when the rest is to be tried again: EINTR, or a short transfer, for which
 * offset, length and iov have been moved on.  A transfer of 0 bytes is -EIO (read: past the end) or
 * -ENOSPC (write).  Called by whoever made the try.
 */
bool request_advance(struct request *request, ssize_t ret);

/* Carries the request out by blocking calls on this thread until it is finished, and returns its result. */
int request_perform(struct request *request);

/* Finishes a request that was submitted: its `done` is called, the caller's last touch.  Loop thread. */
void request_finish(struct request *request, int result);

/* A backend has accepted the request and finds that it cannot carry it out (the kernel says -EAGAIN
 * or -ECANCELED): the pool does.  What was transferred already stays transferred.  Loop thread.
 */
void request_give_back(struct request *request);

/* Hands the request to the pool, in the lane that its op belongs in; `done` follows from the pool's
 * completion bottom half.  As backend_ops.submit.
 */
int request_submit_to_pool(struct request *request);

/* The same, waiting, by pool_run. */
int request_run_on_pool(struct request *request);

#endif
