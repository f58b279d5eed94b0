/* SPDX-License-Identifier: BSD-3-Clause */
/* The backend that is always there: blocking calls, on the worker pool.
 *
 * threads_run runs on the submitter's thread, which may become the worker for its own request (pool_run); the
 * calls themselves are in request_perform.  Never waits for another request.
 */
#include <errno.h>
#include <stdlib.h>

#include "backends/backend.h"

static int threads_open(const struct backend_config *config, struct backend **backend)
{
    struct backend *b = calloc(1, sizeof *b);

    if (!b)
        return -ENOMEM;
    b->ops = &threads_ops;
    b->config = *config;
    *backend = b;
    return 0;
}

/* What is in flight is the pool's, and pool_free waits for it. */
static void threads_close(struct backend *backend)
{
    free(backend);
}

static int threads_submit(struct backend *backend, struct request *request)
{
    return request_submit_to_pool(request);
}

/* Takes what the page cache has, without entering the pool: the look costs 0.25 us, and such a read holds nobody up.
 * What is not there (EAGAIN), or cannot be asked for (EOPNOTSUPP), or fails, is read in the pool.
 */
static bool read_cached(struct request *request)
{
    ssize_t n = preadv2(request->fd, request->iov, request->iovcnt, request->offset, RWF_NOWAIT);

    return n > 0 && request_advance(request, n);
}

static int threads_run(struct backend *backend, struct request *request)
{
    if (request->op == REQUEST_READ && (request->flags & REQUEST_PAGE_CACHE) &&
        backend->config.try_cached && read_cached(request))
        return request->result;
    return request_run_on_pool(request);
}

const struct backend_ops threads_ops = {
    .name = "threads",
    .open = threads_open,
    .close = threads_close,
    .submit = threads_submit,
    .run = threads_run,
};
