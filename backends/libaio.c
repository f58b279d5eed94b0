/* SPDX-License-Identifier: BSD-3-Clause */
/* The libaio backend: the kernel's older asynchronous interface, io_submit(2).
 *
 * It is asynchronous only with O_DIRECT, and blocks otherwise; so what goes through the page cache is left
 * to the pool.  How requests come here, wait for room and are continued is ring.c's business; this file
 * translates.  Runs on the loop thread but for opening and closing.
 */
#include <errno.h>
#include <libaio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/ring.h"

#define REAP_BATCH 64u

struct laio {
    struct ring ring;

    /* Set once by laio_open. */
    io_context_t context;
    bool has_fdatasync;
};

static void prepare(struct iocb *iocb, struct request *r, int event_fd)
{
    switch (r->op) {
    case REQUEST_READ:
        io_prep_preadv(iocb, r->fd, r->iov, r->iovcnt, r->offset);
        break;
    case REQUEST_WRITE:
        io_prep_pwritev(iocb, r->fd, r->iov, r->iovcnt, r->offset);
        iocb->aio_rw_flags = r->flags & REQUEST_FUA ? RWF_DSYNC : 0;
        break;
    default: /* laio_takes lets through nothing else */
        io_prep_fdsync(iocb, r->fd);
        break;
    }
    io_set_eventfd(iocb, event_fd);
    iocb->data = r;
}

/* The kernel copies an iocb when it takes it, so they need not outlive the call. */
static int laio_push(struct ring *ring, struct request *const *batch, unsigned count)
{
    struct laio *l = container_of(ring, struct laio, ring);
    struct iocb iocbs[RING_BATCH], *pointers[RING_BATCH];

    for (unsigned i = 0; i < count; i++) {
        prepare(&iocbs[i], batch[i], ring->event_fd);
        pointers[i] = &iocbs[i];
    }
    return io_submit(l->context, count, pointers);
}

static void laio_reap(struct ring *ring)
{
    struct laio *l = container_of(ring, struct laio, ring);
    struct timespec at_once = {0, 0};
    struct io_event events[REAP_BATCH];
    int n;

    do {
        n = io_getevents(l->context, 0, REAP_BATCH, events, &at_once);
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
    case REQUEST_WRITE:
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

/* IOCB_CMD_FDSYNC came with Linux 4.18.  Asked with nothing else in flight, so the answer is ours.  Returns 0 either way; -errno
 * when answers cannot be fetched at all, for then ring_prove would wait for ever.
 */
static int probe_fdatasync(struct laio *l)
{
    struct iocb iocb, *pointer = &iocb;
    struct io_event event;
    int fd = memfd_create("aiodisk-probe", MFD_CLOEXEC);
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
