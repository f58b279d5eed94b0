/* SPDX-License-Identifier: BSD-3-Clause */
/* The backends: the contract of one, and the two ways in for the layers above.
 *
 * A backend knows how a request reaches the kernel: by a blocking call of a worker (or of its own
 * caller), through io_uring, or through libaio.  A backend never knows what a disk means:
 * alignment, failed flushes and holes belong to the layer above.
 *
 * The layers above call backend_open, backend_submit, backend_run and backend_close.  backend.c
 * calls the functions of struct backend_ops.  README.md in this folder tells how to add a backend.
 */
#ifndef AIODISK_BACKEND_H
#define AIODISK_BACKEND_H

#include <stdatomic.h>

#include "backends/request.h"
#include "pool/waiter.h"

struct backend_config {
    struct loop *loop;    /* runs from before backend_open until after backend_close */
    struct pool *pool;    /* carries what the backend cannot; freed after backend_close */
    unsigned queue_depth; /* most requests that a ring holds at once, 1-4096 */
    bool try_cached;      /* backend_run may read with RWF_NOWAIT before it enters the pool */
    struct tally *tally; /* counts what enum backend_counter lists; outlives the backend; or NULL */
};

/* The counters of a backend in a tally. */
enum backend_counter {
    /* A histogram for each client_op, + op * TALLY_HISTOGRAM: how long the kernel took for one
     * request that serves such a client's request.
     */
    BACKEND_TALLY_TIME = POOL_TALLY_END,
    BACKEND_TALLY_HITS = BACKEND_TALLY_TIME + CLIENT_OPS * TALLY_HISTOGRAM, /* RWF_NOWAIT read it */
    BACKEND_TALLY_MISSES,     /* RWF_NOWAIT did not, or not all of it */
    BACKEND_TALLY_GIVEN_BACK, /* requests that a ring could not carry */
    BACKEND_TALLY_END,
};

struct backend {
    /* Set once by backend_ops.open, read by any thread. */
    const struct backend_ops *ops;
    struct backend_config config;

    /* Any thread: one for the backend until backend_close, one for each call of backend_run and
     * backend_submit until the call returns, one for each request of backend_submit until its
     * `done` has returned, and those that a backend adds for its own threads.  The thread that
     * takes the last one away wakes backend_close.
     */
    atomic_uint users;
    struct waiter unused; /* any thread; backend_close waits for it */
};

/* One backend.  Its file defines one of these, and the table in backend.c lists it. */
struct backend_ops {
    /* The value of the parameter backend=. */
    const char *name;

    /* Called by backend_open, not on the loop thread; may block.  Makes the backend ready and
     * proves it with one real read through the kernel's interface, because a ring that was made may
     * still not work (a seccomp filter that forbids io_uring_enter(2)).  Sets ops and config of
     * *backend and returns 0.  Or returns -errno and leaves nothing behind: no memory, descriptor,
     * watch or ring.
     */
    int (*open)(const struct backend_config *config, struct backend **backend);

    /* Called by backend_close, once, not on the loop thread; may block.  Every request has ended,
     * also those that the pool carried, and none will come.  Frees everything.
     */
    void (*close)(struct backend *backend);

    /* Called by backend_submit and backend_run, on any thread; must not block.  Returns whether the
     * backend itself can carry the request.  If it cannot, the pool does.  NULL: the backend can
     * carry every request.
     */
    bool (*takes)(const struct backend *backend, const struct request *request);

    /* Called by backend_submit, and by backend_run when `run` is NULL, on any thread, for a request
     * that the backend takes.  Returns 0, and the backend will end the request once, by
     * request_finish or request_give_back: on the loop thread, or on any thread if the request has
     * a waiter.  Or returns -errno, and the backend will not touch the request again.  Must not
     * wait for the request; a full ring is no error.
     */
    int (*submit)(struct backend *backend, struct request *request);

    /* Called by backend_run for a request that the backend takes, on any thread but the loop's and
     * the workers'; may block.  Carries out the request on this thread, or waits for a worker that
     * does, and returns the result.  NULL: backend_run calls `submit` and sleeps until the end of
     * the request wakes it.
     */
    int (*run)(struct backend *backend, struct request *request);
};

/* The name of the i-th backend that was compiled in, or NULL when there are not so many.  Backend 0
 * is the default: it measured fastest and works everywhere.  This is the only list of backend
 * names.  Any thread.
 */
const char *backend_name(size_t i);

/* Opens the backend called `name`.  Returns 0 and *backend, which backend_close frees; -EINVAL for
 * a name that backend_name does not return (unknown, or not compiled in); or what backend_ops.open
 * returned: -ENOMEM, and for a ring also -EPERM, -ENOSYS, -EMFILE, -ENFILE, -EAGAIN, -EINVAL or
 * -EIO.  After an error `why` has one line of at most why_size bytes.
 * Blocks.  Any thread but the loop's.
 */
int backend_open(const char *name, const struct backend_config *config, struct backend **backend,
                 char *why, size_t why_size);

/* Waits until every request has ended, in the backend or in the pool, and until every call of
 * backend_submit and backend_run has returned; then frees the backend.  No thread may submit any
 * more, except from inside the `done` of a request in flight.  Blocks.  Any thread but the loop's.
 */
void backend_close(struct backend *backend);

/* The number of blocking calls that the backend may make at once: max_threads of its pool.  Any
 * thread; takes the pool's lock.
 */
unsigned backend_max_blocking_calls(const struct backend *backend);

/* Returns whether a caller of backend_run may make the blocking call on its own thread.  The pool's
 * `helping` must allow it too.  Any thread.
 */
bool backend_callers_perform(const struct backend *backend);

/* The asynchronous way in.  Returns 0, and `done` will be called once, on the loop thread.  Or
 * returns -errno, and `done` will not be called: -ESHUTDOWN when the pool is being freed, -EAGAIN
 * when the pool has no worker and can create none.  Does not wait for the request.  Any thread,
 * also from inside `done`.
 */
int backend_submit(struct backend *backend, struct request *request);

/* The synchronous way in, for the same requests: carries out the request and returns its result.
 * This function decides between backend and pool (backend_ops.takes), and pool_run decides between
 * caller and worker.  Does not fail for lack of threads.  Blocks.  Any thread but the loop's and
 * the workers'.
 */
int backend_run(struct backend *backend, struct request *request);

/* Makes `backend` ready for backend_submit and backend_run.  Called by backend_ops.open.  Does not
 * block.  Any thread.
 */
void backend_init(struct backend *backend, const struct backend_ops *ops,
                  const struct backend_config *config);

/* Takes one user away.  request_finish calls this after the `done` of a request of backend_submit.
 * The caller touches nothing of the backend afterwards.  Does not block.  Any thread.
 */
void backend_leave(struct backend *backend);

/* The backends, each defined in its own file.  A new one needs a declaration here and a line in the
 * table of backend.c; README.md lists the other files.
 */
extern const struct backend_ops threads_ops;
extern const struct backend_ops uring_ops;
extern const struct backend_ops laio_ops;

#endif
