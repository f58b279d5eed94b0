/* SPDX-License-Identifier: BSD-3-Clause */
/* The contract of those that carry a request to the kernel.
 *
 * A backend knows how a request reaches the kernel: by a worker (or its own caller) in a blocking
 * call, through an io_uring, through libaio.  It knows nothing of disks: what to do about
 * alignment, failed flushes or holes is the business of the layer above.
 */
#ifndef AIODISK_BACKEND_H
#define AIODISK_BACKEND_H

#include "backends/request.h"

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

/* The number of blocking calls that the backend may run at once: the pool's max-threads. */
unsigned backend_max_blocking_calls(const struct backend *backend);

/* Returns whether backend_run's caller may make the call on its own thread. */
bool backend_callers_perform(const struct backend *backend);

/* The i-th backend compiled in, or NULL: for tests and for --dump-plugin. */
const char *backend_name(size_t i);

/* The asynchronous way in: see backend_ops.submit. */
int backend_submit(struct backend *backend, struct request *request);

/* The synchronous way in, the same request: carries it out and returns its result.
 * Which way it goes is chosen here and in the pool.  Blocks.  Any thread but the loop's and the workers'.
 */
int backend_run(struct backend *backend, struct request *request);

/* The backends there are.  A new one is declared here and named in backend.c's table, no more. */
extern const struct backend_ops threads_ops;
extern const struct backend_ops uring_ops;
extern const struct backend_ops laio_ops;

#endif
