/* SPDX-License-Identifier: BSD-3-Clause */
/* One request to the kernel, and the contract of those that carry it there.
 *
 * A backend knows how a request reaches the kernel: by a worker (or its own caller) in a blocking
 * call, through an io_uring, through libaio.  It knows nothing of disks: what to do about
 * alignment, failed flushes or holes is the business of the layer above.
 *
 * Short transfers and EINTR are continued here, once for all backends (request_advance), so whoever submits
 * sees a request that was carried out whole, or failed.
 */
#ifndef AIODISK_BACKEND_H
#define AIODISK_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "pool/pool.h"

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
    struct backend *backend;
    struct task task;     /* when it goes through the pool */
    struct request *next; /* a ring's list of requests that the kernel does not have yet */
};

/* READ and WRITE are split above this by the submitter (the kernel stops at 2 GiB - 4 KiB). */
#define REQUEST_MAX_TRANSFER (64u << 20)

struct backend_config {
    struct loop *loop;
    struct pool *pool;    /* for what the backend cannot do natively */
    unsigned queue_depth; /* ring entries, 1-4096 */
    bool direct;          /* the descriptors will be O_DIRECT */
    bool try_cached;      /* try RWF_NOWAIT on the caller's thread of a REQUEST_PAGE_CACHE read */
};

struct backend {
    const struct backend_ops *ops;
    struct backend_config config; /* set once by open */
};

/* A backend is one file that fills in one of these; the table in backend.c lists them.
 * Each callback says who calls it and what holds when it returns.
 */
struct backend_ops {
    const char *name;

    /* Makes the backend ready and proves it with one real read through it: what open returned
     * works.  Returns 0 and *backend, or -errno with nothing left behind: -EPERM, -ENOSYS, -ENOMEM, -EMFILE,
     * -EINVAL and -EAGAIN mean "not here", and the next backend is tried.  config->loop runs.
     * Not on the loop thread.
     */
    int (*open)(const struct backend_config *config, struct backend **backend);

    /* Waits for requests in flight, then frees everything.  Nobody submits any more.  Not on the loop
     * thread.
     */
    void (*close)(struct backend *backend);

    /* Can this backend carry the request natively?  What it cannot goes to the pool instead.  NULL: all of them.
     * Any thread.
     */
    bool (*takes)(const struct backend *backend, const struct request *request);

    /* Starts a request that it takes.  Returns 0, and `done` will be called exactly once, on the loop thread; or
     * -errno, and it will not be called.  Does not wait for the request; a full ring is no error.
     * Any thread.
     */
    int (*submit)(struct backend *backend, struct request *request);

    /* Carries such a request out and returns its result, without the loop thread where the backend can.
     * NULL: backend_run submits and waits.  Any thread but the loop's and the pool's workers'.
     */
    int (*run)(struct backend *backend, struct request *request);
};

/* Opens the backend called `name` ("threads", "io_uring", "libaio"), or with "auto" the first that works, in the order that
 * measured fastest for config->direct.  `why` gets one line for the log: what was chosen, and why
 * not the others, or what stopped the one that was named.  Returns 0; -EINVAL for an unknown name,
 * -ENOTSUP for one that was not compiled in, else what open returned.  Not on the loop thread.
 */
int backend_open(const char *name, const struct backend_config *config, struct backend **backend,
                 char *why, size_t why_size);

void backend_close(struct backend *backend);

/* The i-th backend compiled in, or NULL: for tests and for --dump-plugin. */
const char *backend_name(size_t i);

/* The asynchronous way in: see backend_ops.submit. */
int backend_submit(struct backend *backend, struct request *request);

/* The synchronous way in, the same request: carries it out and returns its result.
 * Which way it goes is chosen here and in the pool.  Blocks.  Any thread but the loop's and the workers'.
 */
int backend_run(struct backend *backend, struct request *request);

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
