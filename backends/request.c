/* SPDX-License-Identifier: BSD-3-Clause */
/* One request: carried out by blocking calls, continued after EINTR and short transfers, finished,
 * and handed to the pool.
 *
 * request_perform runs on the pool's workers, or on a caller of pool_run that runs its own task.
 * request_finish and request_give_back run on the loop thread and never block there.  The other
 * functions run on the thread that their declaration names.
 *
 * This file never decides which backend carries a request (backend.c), and never retries an error:
 * only EINTR and a short transfer are continued.
 */
#include "backends/request.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "backends/backend.h"
#include "pool/probe.h"
#include "pool/schedule-point.h"

/* Offsets of any file fit; meson.build asks for it on 32-bit machines. */
static_assert(sizeof(off_t) == 8, "off_t has 64 bits");

/* --- Progress --- */

static void consume_bytes(struct request *request, uint64_t n)
{
    request->offset += n;
    request->length -= n;
    request->transferred += n;
    while (n > 0) {
        size_t part = request->iov->iov_len < n ? request->iov->iov_len : n;

        request->iov->iov_base = (char *)request->iov->iov_base + part;
        request->iov->iov_len -= part;
        n -= part;
        if (request->iov->iov_len == 0) {
            request->iov++;
            request->iovcnt--;
        }
    }
}

bool request_advance(struct request *request, ssize_t ret)
{
    if (ret == -EINTR)
        return false;
    if (ret < 0) {
        request->result = ret;
        return true;
    }
    request->result = 0;
    if (request->op != REQUEST_READ && request->op != REQUEST_WRITE)
        return true;
    assert((uint64_t)ret <= request->length);
    if (ret == 0 && request->length > 0) {
        request->result = request->op == REQUEST_READ ? -EIO : -ENOSPC;
        return true;
    }
    consume_bytes(request, ret);
    return request->length == 0;
}

/* --- Blocking calls --- */

static ssize_t ioctl_on_range(const struct request *request, unsigned long command)
{
    uint64_t range[2] = {request->offset, request->length};

    return ioctl(request->fd, command, range);
}

/* Makes one blocking call.  Returns a byte count or -errno. */
static ssize_t perform_once(struct request *r)
{
    ssize_t n = -1;

    switch (r->op) {
    case REQUEST_READ:
        n = preadv(r->fd, r->iov, r->iovcnt, r->offset);
        break;
    case REQUEST_WRITE:
        if (r->flags & REQUEST_FUA)
            n = pwritev2(r->fd, r->iov, r->iovcnt, r->offset, RWF_DSYNC);
        else
            n = pwritev(r->fd, r->iov, r->iovcnt, r->offset);
        /* A kernel or a seccomp filter without pwritev2(2) says ENOSYS or EPERM: there is no
         * RWF_DSYNC, so the layer above is told what it is told for a file without RWF_DSYNC.  If
         * the EPERM is the file's own, the write without RWF_DSYNC gets it too.
         */
        if (n < 0 && r->flags & REQUEST_FUA && (errno == ENOSYS || errno == EPERM))
            errno = EOPNOTSUPP;
        break;
    case REQUEST_FDATASYNC:
        n = fdatasync(r->fd);
        break;
    case REQUEST_FALLOCATE:
        n = fallocate(r->fd, r->mode, r->offset, r->length);
        break;
    case REQUEST_DISCARD:
        n = ioctl_on_range(r, BLKDISCARD);
        break;
    case REQUEST_ZEROOUT:
        n = ioctl_on_range(r, BLKZEROOUT);
        break;
    case REQUEST_CALL:
        return r->call(r);
    }
    return n < 0 ? -errno : n;
}

int request_perform(struct request *request)
{
    uint64_t start = request_clock(request);

    progress_set(request->progress, PLACE_STORAGE);
    PROBE(io_submit, request, request->op, request->fd, request->offset, request->length);
    SCHEDULE_POINT();
    while (!request_advance(request, perform_once(request)))
        ;
    SCHEDULE_POINT();
    PROBE(io_complete, request, request->result);
    request_count_time(request, start);
    return request->result;
}

/* --- The way through the pool --- */

static struct request *request_of(struct task *task)
{
    return container_of(task, struct request, task);
}

static int perform_task(struct task *task)
{
    return request_perform(request_of(task));
}

static void finish_task(struct task *task)
{
    request_finish(request_of(task), task->result);
}

static enum pool_lane lane_of(const struct request *request)
{
    switch (request->op) {
    case REQUEST_READ:
        return POOL_FAST;
    case REQUEST_WRITE:
        return request->flags & REQUEST_FUA ? POOL_SLOW : POOL_FAST;
    case REQUEST_CALL:
        return request->flags & REQUEST_SLOW ? POOL_SLOW : POOL_FAST;
    default:
        return POOL_SLOW;
    }
}

static void prepare_task(struct request *request)
{
    request->task =
        (struct task){.run = perform_task, .done = finish_task, .lane = lane_of(request)};
}

int request_submit_to_pool(struct request *request)
{
    prepare_task(request);
    return pool_submit(request->backend->config.pool, &request->task);
}

int request_run_on_pool(struct request *request)
{
    prepare_task(request);
    progress_set(request->progress, PLACE_QUEUE);
    return request->result = pool_run(request->backend->config.pool, &request->task);
}

/* --- Figures --- */

static bool is_timed(const struct request *request)
{
    return request->backend->config.tally && request->client_op < CLIENT_OPS;
}

uint64_t request_clock(const struct request *request)
{
    return is_timed(request) ? tally_now() : 0;
}

void request_count_time(const struct request *request, uint64_t start_ns)
{
    if (is_timed(request))
        tally_record(request->backend->config.tally,
                     BACKEND_TALLY_TIME + request->client_op * TALLY_HISTOGRAM,
                     tally_now() - start_ns);
}

/* --- The end --- */

void request_finish(struct request *request, int result)
{
    struct backend *backend = request->backend;

    request->result = result;
    SCHEDULE_POINT();
    if (request->waiter) {
        waiter_wake(request->waiter);
        return;
    }
    request->done(request);
    SCHEDULE_POINT();
    backend_leave(backend);
}

void request_give_back(struct request *request)
{
    request->given_back = true;
    SCHEDULE_POINT();
    tally_add(request->backend->config.tally, BACKEND_TALLY_GIVEN_BACK, 1);
    if (request->waiter) {
        /* The caller of backend_run waits, so it may block in pool_run.  pool_run does not fail
         * when no thread can be created; pool_submit does.
         */
        waiter_wake(request->waiter);
        return;
    }
    int r = request_submit_to_pool(request);
    if (r < 0)
        request_finish(request, r);
}
