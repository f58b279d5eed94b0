/* SPDX-License-Identifier: BSD-3-Clause */
/* The threads backend: blocking calls on the worker pool.  It works on every machine.
 *
 * threads_run runs on the submitter's thread.  pool_run may let that thread run its own request; if
 * it does not, a worker runs the request.  request_perform (request.c) makes the calls.
 * threads_submit runs on any thread and only queues.  Nothing here runs on the loop thread, apart
 * from threads_submit called inside a `done`, and nothing here waits for another request.
 */
#include <errno.h>
#include <stdlib.h>

#include "backends/backend.h"
#include "pool/schedule-point.h"

static int threads_open(const struct backend_config *config, struct backend **backend)
{
    struct backend *b = calloc(1, sizeof *b);

    if (!b)
        return -ENOMEM;
    backend_init(b, &threads_ops, config);
    *backend = b;
    return 0;
}

static void threads_close(struct backend *backend)
{
    free(backend);
}

static int threads_submit(struct backend *backend, struct request *request)
{
    return request_submit_to_pool(request);
}

/* Reads what the page cache holds, without entering the pool: the attempt costs 0.25 us, and such a
 * read delays no other request.  Returns true when the whole request is done.  The pool reads the
 * rest when the data are not in the cache (EAGAIN), or only in part, and when RWF_NOWAIT is not
 * supported (EOPNOTSUPP) or the read fails.
 */
static bool read_cached(struct request *request)
{
    struct tally *tally = request->backend->config.tally;
    uint64_t start = request_clock(request);

    progress_set(request->progress, PLACE_STORAGE);
    SCHEDULE_POINT();
    ssize_t n = preadv2(request->fd, request->iov, request->iovcnt, request->offset, RWF_NOWAIT);
    SCHEDULE_POINT();
    bool is_done = n > 0 && request_advance(request, n);
    tally_add(tally, is_done ? BACKEND_TALLY_HITS : BACKEND_TALLY_MISSES, 1);
    if (is_done)
        request_count_time(request, start);
    return is_done;
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
