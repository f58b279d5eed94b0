/* SPDX-License-Identifier: BSD-3-Clause */
/* The libaio backend: translates requests into iocbs of the kernel's older asynchronous interface
 * (io_submit(2)) and events into results.  ring.c holds the queue, the batches and what becomes of
 * a completion.
 *
 * io_submit(2) is asynchronous only with O_DIRECT.  A transfer through the page cache would block
 * in io_submit, so laio_takes leaves such transfers to the pool.  Even with O_DIRECT io_submit may
 * block on the inode's lock: 860 ms were seen, during which the loop thread served nobody.
 *
 * laio_push and laio_reap run on the loop thread, laio_takes on any thread, laio_open and
 * laio_close on the thread that opens and closes.
 */
#include <errno.h>
#include <libaio.h>
#include <stdlib.h>
#include <unistd.h>

#include "backends/ring.h"
#include "pool/schedule-point.h"

#define REAP_BATCH 64u /* events fetched at once, on the stack */

struct laio {
    struct ring ring;

    /* Set once by laio_open, read by any thread. */
    io_context_t context;
    bool has_fdatasync; /* the kernel has IOCB_CMD_FDSYNC */
};

static void prepare(struct iocb *iocb, struct request *r, int event_fd)
{
    switch (r->op) {
    case REQUEST_READ:
        io_prep_preadv(iocb, r->fd, r->iov, r->iovcnt, r->offset);
        break;
    case REQUEST_WRITE:
        io_prep_pwritev(iocb, r->fd, r->iov, r->iovcnt, r->offset);
#ifdef HAVE_AIO_RW_FLAGS
        iocb->aio_rw_flags = r->flags & REQUEST_FUA ? RWF_DSYNC : 0;
#endif
        break;
    default: /* REQUEST_FDATASYNC: laio_takes accepts no other op */
        io_prep_fdsync(iocb, r->fd);
        break;
    }
    io_set_eventfd(iocb, event_fd);
    iocb->data = r;
}

/* io_submit(2) copies the iocbs that it accepts, so they may lie on the stack. */
static int laio_push(struct ring *ring, struct request *const *batch, unsigned count)
{
    struct laio *l = container_of(ring, struct laio, ring);
    struct iocb iocbs[RING_BATCH], *pointers[RING_BATCH];

    for (unsigned i = 0; i < count; i++) {
        prepare(&iocbs[i], batch[i], ring->event_fd);
        pointers[i] = &iocbs[i];
    }
    SCHEDULE_POINT();
    return io_submit(l->context, count, pointers);
}

static void laio_reap(struct ring *ring)
{
    struct laio *l = container_of(ring, struct laio, ring);
    struct timespec at_once = {0, 0};
    struct io_event events[REAP_BATCH];
    int n;

    do {
        SCHEDULE_POINT();
        n = io_getevents(l->context, 0, REAP_BATCH, events, &at_once);
        SCHEDULE_POINT();
        for (int i = 0; i < n; i++)
            ring_completed(ring, events[i].data, (long)events[i].res);
    } while (n == (int)REAP_BATCH || n == -EINTR);
}

static const struct ring_ops laio_ring_ops = {.push = laio_push, .reap = laio_reap};

static bool laio_takes(const struct backend *backend, const struct request *request)
{
    const struct laio *l = container_of(backend, const struct laio, ring.backend);

    switch (request->op) {
    case REQUEST_READ:
        return !(request->flags & REQUEST_PAGE_CACHE);
    case REQUEST_WRITE:
#ifndef HAVE_AIO_RW_FLAGS
        if (request->flags & REQUEST_FUA)
            return false; /* libaio before 0.3.111 cannot say RWF_DSYNC */
#endif
        return !(request->flags & REQUEST_PAGE_CACHE);
    case REQUEST_FDATASYNC:
        return l->has_fdatasync;
    default:
        return false;
    }
}

static void start_on_loop(void *opaque)
{
    struct laio *l = opaque;

    l->ring.start_result = ring_start(&l->ring);
}

static void stop_on_loop(void *opaque)
{
    struct laio *l = opaque;

    ring_stop(&l->ring);
}

static void laio_close(struct backend *backend)
{
    struct laio *l = container_of(backend, struct laio, ring.backend);

    loop_call(backend->config.loop, stop_on_loop, l);
    io_destroy(l->context);
    ring_destroy(&l->ring);
    free(l);
}

/* Finds out whether the kernel has IOCB_CMD_FDSYNC (since Linux 4.18).  Nothing else is in flight,
 * so the event that comes is the probe's.  Returns 0 whether or not the kernel has it.  Returns
 * -errno when events cannot be fetched at all, because ring_prove would then wait for ever.
 */
static int probe_fdatasync(struct laio *l)
{
    struct iocb iocb, *pointer = &iocb;
    struct io_event event;
    int fd = ring_probe_file();
    int r = 0;

    if (fd < 0)
        return 0;
    io_prep_fdsync(&iocb, fd);
    if (io_submit(l->context, 1, &pointer) == 1) {
        do
            r = io_getevents(l->context, 1, 1, &event, NULL);
        while (r == -EINTR);
        l->has_fdatasync = r == 1 && event.res == 0;
    }
    close(fd);
    return r < 0 ? r : 0;
}

static int laio_open(const struct backend_config *config, struct backend **backend)
{
    struct laio *l = calloc(1, sizeof *l);

    if (!l)
        return -ENOMEM;
    int r = ring_init(&l->ring, &laio_ops, &laio_ring_ops, config);
    if (r < 0) {
        free(l);
        return r;
    }
    r = io_setup(config->queue_depth, &l->context);
    if (r < 0)
        goto fail;
    r = probe_fdatasync(l);
    if (r < 0)
        goto fail;
    loop_call(config->loop, start_on_loop, l);
    r = l->ring.start_result;
    if (r < 0)
        goto fail;
    r = ring_prove(&l->ring);
    if (r < 0) {
        laio_close(&l->ring.backend);
        return r;
    }
    *backend = &l->ring.backend;
    return 0;

fail:
    if (l->context)
        io_destroy(l->context);
    ring_destroy(&l->ring);
    free(l);
    return r;
}

const struct backend_ops laio_ops = {
    .name = "libaio",
    .open = laio_open,
    .close = laio_close,
    .takes = laio_takes,
    .submit = ring_submit,
};
