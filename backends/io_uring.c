/* SPDX-License-Identifier: BSD-3-Clause */
/* The io_uring backend: translates requests into submission entries and completion entries into
 * results.  ring.c holds the queue, the batches and what becomes of a completion.
 *
 * The loop thread makes the ring, and only the loop thread touches the ring, because the kernel's
 * cheapest modes demand that (io_uring_setup(2), IORING_SETUP_SINGLE_ISSUER and
 * IORING_SETUP_DEFER_TASKRUN).  uring_takes runs on any thread.  uring_open and uring_close run on
 * the thread that opens and closes.  io_uring_enter(2) is called to submit and to run deferred
 * work, and never to wait.
 *
 * Files and buffers are not registered, for two reasons.  Registration brings nothing: with 4 KiB
 * random requests the ratio to the unregistered rate was 1.03 / 1.00 / 1.00 for reads with
 * registered files at depth 1 / 16 / 64, 1.03 / 0.99 / 1.01 for reads with registered files and
 * buffers, and 1.02 / 1.03 / 1.00 for writes (tests/bench/backend.c, medians of 5 runs).  And the
 * ring would keep a file open, with its locks, after the last client has left: Linux 6.1 releases a
 * file up to a second after its withdrawal.
 */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "backends/ring.h"
#include "pool/schedule-point.h"

#define REAP_BATCH 64u /* completion entries looked at at once */

struct uring {
    struct ring ring;

    /* Set once on the loop thread by uring_open, read by any thread. */
    bool has_fsync, has_fallocate;

    /* Loop thread only. */
    struct io_uring uring;
    bool deferred;  /* DEFER_TASKRUN: completions appear only after io_uring_get_events */
    unsigned stale; /* entries in the submission queue that withdraw turned into no-ops */
};

/* The flags of io_uring_queue_init_params, best first.  A kernel that does not know a flag returns
 * -EINVAL, and the next step is tried.
 */
static const unsigned setup_ladder[] = {
    /* Linux 6.1: the kernel does its completion work only in io_uring_get_events, in batches, and
     * tells in a flag of the ring whether work is left.
     */
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    /* Linux 6.0. */
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN,
    /* Linux 5.19: the kernel does not interrupt the loop thread for completion work. */
    IORING_SETUP_COOP_TASKRUN,
    0,
};

#define SETUP_STEPS (sizeof setup_ladder / sizeof setup_ladder[0])

static void prepare(struct io_uring_sqe *sqe, struct request *r)
{
    switch (r->op) {
    case REQUEST_READ:
        if (r->iovcnt == 1)
            io_uring_prep_read(sqe, r->fd, r->iov->iov_base, r->iov->iov_len, r->offset);
        else
            io_uring_prep_readv(sqe, r->fd, r->iov, r->iovcnt, r->offset);
        break;
    case REQUEST_WRITE:
        if (r->iovcnt == 1)
            io_uring_prep_write(sqe, r->fd, r->iov->iov_base, r->iov->iov_len, r->offset);
        else
            io_uring_prep_writev(sqe, r->fd, r->iov, r->iovcnt, r->offset);
        sqe->rw_flags = r->flags & REQUEST_FUA ? RWF_DSYNC : 0;
        break;
    case REQUEST_FDATASYNC:
        io_uring_prep_fsync(sqe, r->fd, IORING_FSYNC_DATASYNC);
        break;
    default: /* REQUEST_FALLOCATE: uring_takes accepts no other op */
        io_uring_prep_fallocate(sqe, r->fd, r->mode, r->offset, r->length);
        break;
    }
    io_uring_sqe_set_data(sqe, r);
}

/* Turns entries that the kernel did not accept into no-ops.  They stay in the submission queue, and
 * the next io_uring_submit offers them again.  By then their requests may have ended on the pool,
 * or have been prepared a second time in other entries.
 */
static void withdraw(struct uring *u, struct io_uring_sqe *const *sqes, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        io_uring_prep_nop(sqes[i]);
        io_uring_sqe_set_data(sqes[i], NULL);
    }
    u->stale += count;
}

static int uring_push(struct ring *ring, struct request *const *batch, unsigned count)
{
    struct uring *u = container_of(ring, struct uring, ring);
    struct io_uring_sqe *sqes[RING_BATCH];
    unsigned prepared = 0, stale = u->stale;

    for (; prepared < count; prepared++) {
        sqes[prepared] = io_uring_get_sqe(&u->uring);
        if (!sqes[prepared])
            break;
        prepare(sqes[prepared], batch[prepared]);
    }
    SCHEDULE_POINT();
    int n = io_uring_submit(&u->uring);
    SCHEDULE_POINT();
    unsigned consumed = n > 0 ? n : 0;
    unsigned taken = consumed > stale ? consumed - stale : 0;

    u->stale -= consumed - taken;
    withdraw(u, sqes + taken, prepared - taken);
    /* No request was accepted and there was no error: no-ops filled the submission queue. */
    return taken > 0 ? (int)taken : n < 0 ? n : -EAGAIN;
}

/* Returns whether there was a completion. */
static bool take_completed(struct uring *u)
{
    struct io_uring_cqe *cqes[REAP_BATCH];
    bool any = false;
    unsigned n;

    while ((n = io_uring_peek_batch_cqe(&u->uring, cqes, REAP_BATCH)) > 0) {
        for (unsigned i = 0; i < n; i++) {
            if (cqes[i]->user_data)
                ring_completed(&u->ring, io_uring_cqe_get_data(cqes[i]), cqes[i]->res);
        }
        io_uring_cq_advance(&u->uring, n);
        any = true;
    }
    return any;
}

/* Since Linux 6.13 one call does the deferred work of about 20 requests only.  The kernel does not
 * signal the eventfd for work that is left, so nobody else would come back for it: seen on 6.18
 * with 96 buffered reads that the disk answered at once.
 */
static bool deferred_work_is_left(const struct uring *u)
{
    return u->deferred && IO_URING_READ_ONCE(*u->uring.sq.kflags) & IORING_SQ_TASKRUN;
}

/* The flag that tells of work can be stale: the thread that adds the first work sets the flag after
 * that, so the loop thread may have done the work in between.  Nothing would then clear the flag
 * before the next work is added, and the loop thread, in a loop around the flag, would never submit
 * the request that adds it (seen on 6.18 within 20 s of single requests on tmpfs under load).
 * If there is any work, a call does at least one request's.  So there is none after as many calls
 * without a completion as requests are in flight.
 */
static void uring_reap(struct ring *ring)
{
    struct uring *u = container_of(ring, struct uring, ring);
    unsigned in_vain = 0; /* calls since the last completion */

    do {
        SCHEDULE_POINT();
        /* After a failure (EAGAIN, EINTR) the write makes the loop thread come back. */
        if (u->deferred && io_uring_get_events(&u->uring) < 0) {
            eventfd_write(ring->event_fd, 1);
            take_completed(u);
            return;
        }
        SCHEDULE_POINT();
        in_vain = take_completed(u) ? 0 : in_vain + 1;
    } while (deferred_work_is_left(u) && in_vain < ring->in_flight);
}

static const struct ring_ops uring_ring_ops = {.push = uring_push, .reap = uring_reap};

/* A FUA write into the page cache is left to the pool.  Where the kernel can write into the page
 * cache without waiting (xfs and btrfs), it does so in io_uring_enter(2), and then syncs there: on
 * the loop thread (xfs_file_fsync below io_submit_sqes, seen on Linux 6.18).
 */
static bool uring_takes(const struct backend *backend, const struct request *request)
{
    const struct uring *u = container_of(backend, const struct uring, ring.backend);

    switch (request->op) {
    case REQUEST_READ:
        return true;
    case REQUEST_WRITE:
        return !(request->flags & REQUEST_FUA && request->flags & REQUEST_PAGE_CACHE);
    case REQUEST_FDATASYNC:
        return u->has_fsync;
    case REQUEST_FALLOCATE:
        return u->has_fallocate;
    default:
        return false;
    }
}

/* --- Opening --- */

static int set_up_ring(struct uring *u)
{
    int r = -EINVAL;

    for (size_t i = 0; i < SETUP_STEPS && r == -EINVAL; i++) {
        struct io_uring_params params = {.flags = setup_ladder[i]};

        r = io_uring_queue_init_params(u->ring.backend.config.queue_depth, &u->uring, &params);
        u->deferred = params.flags & IORING_SETUP_DEFER_TASKRUN;
    }
    return r;
}

static int probe_operations(struct uring *u)
{
    enum { OPS = 256 };
    struct io_uring_probe *probe = calloc(1, sizeof *probe + OPS * sizeof probe->ops[0]);

    if (!probe)
        return -ENOMEM;
    int r = io_uring_register_probe(&u->uring, probe, OPS);
    if (r < 0) {
        free(probe);
        /* Before Linux 5.6, which also lacks IORING_OP_READ and IORING_OP_WRITE. */
        return r == -EINVAL ? -ENOSYS : r;
    }
    bool has_read_write = io_uring_opcode_supported(probe, IORING_OP_READ) &&
                          io_uring_opcode_supported(probe, IORING_OP_WRITE);
    u->has_fsync = io_uring_opcode_supported(probe, IORING_OP_FSYNC);
    u->has_fallocate = io_uring_opcode_supported(probe, IORING_OP_FALLOCATE);
    free(probe);
    return has_read_write ? 0 : -ENOSYS;
}

/* Loop thread, so that this thread is the ring's single issuer. */
static int open_ring(struct uring *u)
{
    int r = set_up_ring(u);

    if (r < 0)
        return r;
    r = probe_operations(u);
    if (r == 0)
        r = io_uring_register_eventfd(&u->uring, u->ring.event_fd);
    if (r == 0)
        r = ring_start(&u->ring);
    if (r < 0)
        io_uring_queue_exit(&u->uring);
    return r;
}

static void open_on_loop(void *opaque)
{
    struct uring *u = opaque;

    u->ring.start_result = open_ring(u);
}

static void close_on_loop(void *opaque)
{
    struct uring *u = opaque;

    ring_stop(&u->ring);
    io_uring_queue_exit(&u->uring);
}

static void free_uring(struct uring *u)
{
    ring_destroy(&u->ring);
    free(u);
}

static void uring_close(struct backend *backend)
{
    struct uring *u = container_of(backend, struct uring, ring.backend);

    loop_call(backend->config.loop, close_on_loop, u);
    free_uring(u);
}

static int uring_open(const struct backend_config *config, struct backend **backend)
{
    struct uring *u = calloc(1, sizeof *u);

    if (!u)
        return -ENOMEM;
    int r = ring_init(&u->ring, &uring_ops, &uring_ring_ops, config);
    if (r < 0) {
        free(u);
        return r;
    }
    loop_call(config->loop, open_on_loop, u);
    r = u->ring.start_result;
    if (r < 0) {
        free_uring(u);
        return r;
    }
    r = ring_prove(&u->ring);
    if (r < 0) {
        uring_close(&u->ring.backend);
        return r;
    }
    *backend = &u->ring.backend;
    return 0;
}

const struct backend_ops uring_ops = {
    .name = "io_uring",
    .open = uring_open,
    .close = uring_close,
    .takes = uring_takes,
    .submit = ring_submit,
};
