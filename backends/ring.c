/* SPDX-License-Identifier: BSD-3-Clause */
/* The way of a request through a ring, whichever kernel interface is behind it.  See ring.h.
 *
 * ring_submit runs on any thread and only pushes to a list and schedules the bottom half; everything else runs on the loop
 * thread, so that the ring itself needs no lock, and what came in meanwhile goes out as one batch.
 * Nothing here blocks; ring_stop polls the loop.
 */
#include "backends/ring.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* Fills in the oldest requests that wait, as many as there is room for in the ring and in a batch.  Returns their number. */
static unsigned next_batch(const struct ring *ring, struct request *batch[RING_BATCH])
{
    unsigned room = ring->backend.config.queue_depth - ring->in_flight;
    unsigned n = 0;

    for (struct link *link = ring->waiting.oldest; link && n < room && n < RING_BATCH;
         link = link->next)
        batch[n++] = container_of(link, struct request, link);
    return n;
}

static bool is_for_lack_of_room(int error)
{
    return error == -EAGAIN || error == -EBUSY || error == -ENOMEM || error == -EINTR;
}

/* Hands over what waits, as far as there is room.  When the kernel has no room although some is left by our count, the next
 * completion tries again; when nothing is in flight, or the refusal is final, the pool carries the request, so
 * that there is always progress.
 */
static void pump(struct ring *ring)
{
    struct request *batch[RING_BATCH];
    unsigned count;

    stack_drain(&ring->inbox, &ring->waiting);
    while ((count = next_batch(ring, batch)) > 0) {
        int n = ring->ops->push(ring, batch, count);

        for (int i = 0; i < n; i++) {
            queue_pop(&ring->waiting);
            ring->in_flight++;
        }
        if (n > 0)
            continue;
        if (is_for_lack_of_room(n) && ring->in_flight > 0)
            return;
        ring->refusal = n;
        queue_pop(&ring->waiting);
        request_give_back(batch[0]);
    }
}

static void pump_bh(void *opaque)
{
    pump(opaque);
}

/* The eventfd fired. */
static void reap_and_pump(void *opaque)
{
    struct ring *ring = opaque;
    uint64_t count;
    ssize_t n = read(ring->event_fd, &count, sizeof count);

    assert(n == sizeof count || errno == EAGAIN || errno == EINTR);
    ring->ops->reap(ring);
    pump(ring);
}

void ring_completed(struct ring *ring, struct request *request, int64_t result)
{
    ring->in_flight--;
    if (result == -EAGAIN || result == -ECANCELED) {
        /* Not the disk's answer but the ring's (O_NONBLOCK descriptors, a dying io-wq): a blocking call knows better. */
        ring->refusal = (int)result;
        request_give_back(request);
    } else if (request_advance(request, result)) {
        request_finish(request, request->result);
    } else {
        queue_push(&ring->waiting, &request->link);
    }
}

int ring_submit(struct backend *backend, struct request *request)
{
    struct ring *ring = container_of(backend, struct ring, backend);

    stack_push(&ring->inbox, &request->link);
    bh_schedule(ring->bh);
    return 0;
}

int ring_init(struct ring *ring, const struct backend_ops *backend_ops, const struct ring_ops *ops,
              const struct backend_config *config)
{
    ring->backend.ops = backend_ops;
    ring->backend.config = *config;
    ring->ops = ops;
    queue_init(&ring->waiting);
    ring->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ring->event_fd < 0)
        return -errno;
    ring->bh = bh_new(config->loop, pump_bh, ring);
    if (!ring->bh) {
        close(ring->event_fd);
        return -ENOMEM;
    }
    return 0;
}

int ring_start(struct ring *ring)
{
    return loop_watch_new(ring->backend.config.loop, ring->event_fd, reap_and_pump, ring,
                          &ring->watch);
}

void ring_stop(struct ring *ring)
{
    while (ring->in_flight > 0 || ring->waiting.oldest || !stack_is_empty(&ring->inbox))
        loop_poll(ring->backend.config.loop, true);
    loop_watch_delete(ring->watch);
}

void ring_destroy(struct ring *ring)
{
    bh_delete(ring->bh);
    close(ring->event_fd);
}

int ring_prove(struct ring *ring)
{
    static const char written[] = "aiodisk";
    char got[sizeof written] = "";
    struct iovec iov = {.iov_base = got, .iov_len = sizeof got};
    struct request request = {.op = REQUEST_READ, .iov = &iov, .iovcnt = 1, .length = sizeof got};

    request.fd = memfd_create("aiodisk-probe", MFD_CLOEXEC);
    if (request.fd < 0)
        return -errno;
    int r = write(request.fd, written, sizeof written) == sizeof written ? 0 : -EIO;
    if (r == 0)
        r = backend_run(&ring->backend, &request);
    if (r == 0 && request.given_back)
        r = ring->refusal; /* it was given back, and the pool did it */
    if (r == 0 && memcmp(got, written, sizeof written) != 0)
        r = -EIO;
    close(request.fd);
    return r;
}
