/* SPDX-License-Identifier: BSD-3-Clause */
/* A request's way through a ring, the same for io_uring and libaio: inbox, queue, kernel,
 * completion.
 *
 * ring_submit runs on the submitter's thread: it pushes the request to the inbox and schedules the
 * bottom half.  turn, reap_and_turn and ring_completed run on the loop thread.  So the kernel's
 * ring needs no lock, and requests that arrive while the loop thread is busy go to the kernel in
 * one batch.
 *
 * Nothing here blocks the loop thread.  Nothing here fails a request because the ring is full or
 * broken: the request waits, or the pool carries it.
 */
#include "backends/ring.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pool/probe.h"
#include "pool/schedule-point.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u /* linux/memfd.h since Linux 6.3 */
#endif

/* Stores the oldest waiting requests in `batch`, as many as the ring has room for, at most
 * RING_BATCH.  They stay in the queue.  Returns their number.
 */
static unsigned next_batch(const struct ring *ring, struct request *batch[RING_BATCH])
{
    unsigned room = ring->backend.config.queue_depth - ring->in_flight;
    unsigned n = 0;

    for (struct link *link = ring->waiting.oldest; link && n < room && n < RING_BATCH;
         link = link->next)
        batch[n++] = container_of(link, struct request, link);
    return n;
}

/* Whether the kernel may accept the same request later. */
static bool is_for_lack_of_room(int error)
{
    return error == -EAGAIN || error == -EBUSY || error == -ENOMEM || error == -EINTR;
}

/* Queues a request that the ring cannot carry for the pool. */
static void refuse(struct ring *ring, struct request *request, int error)
{
    ring->refusal = error;
    request->given_back = true;
    queue_push(&ring->leaving, &request->link);
}

/* Offers the batch to the kernel.  The call itself may take long (io_submit(2) blocks on an inode's
 * lock), so the requests count as being with the storage before it.
 */
static int push_batch(struct ring *ring, struct request *const *batch, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        PROBE(io_submit, batch[i], batch[i]->op, batch[i]->fd, batch[i]->offset, batch[i]->length);
        progress_set(batch[i]->progress, PLACE_STORAGE);
        if (batch[i]->submitted_ns == 0)
            batch[i]->submitted_ns = request_clock(batch[i]);
    }
    SCHEDULE_POINT();
    int n = ring->ops->push(ring, batch, count);
    SCHEDULE_POINT();
    for (unsigned i = n > 0 ? n : 0; i < count; i++)
        progress_set(batch[i]->progress, PLACE_QUEUE);
    return n;
}

/* Hands the waiting requests to the kernel while the ring has room.  The kernel may refuse a
 * request for lack of room although in_flight is below queue_depth.  The next completion then calls
 * push_waiting again.  If nothing is in flight, no completion will come, and if the kernel refused
 * for another reason, a second try is refused too; in both cases the pool carries the request.  So
 * every request makes progress.
 */
static void push_waiting(struct ring *ring)
{
    struct request *batch[RING_BATCH];
    unsigned count;

    stack_drain(&ring->inbox, &ring->waiting);
    while ((count = next_batch(ring, batch)) > 0) {
        int n = push_batch(ring, batch, count);

        for (int i = 0; i < n; i++) {
            queue_pop(&ring->waiting);
            ring->in_flight++;
        }
        if (n > 0)
            continue;
        if (is_for_lack_of_room(n) && ring->in_flight > 0)
            return;
        queue_pop(&ring->waiting);
        refuse(ring, batch[0], n);
    }
}

/* Ends the requests that leave, or gives them back.  A `done` may poll the loop for any other
 * request of this ring, one that leaves in the same batch or one that waits: the bottom half, which
 * is scheduled before, then runs from inside `done` and carries on.
 */
static void end_leaving(struct ring *ring)
{
    struct link *link;

    while ((link = queue_pop(&ring->leaving))) {
        struct request *request = container_of(link, struct request, link);

        if (!request->waiter)
            bh_schedule(ring->bh);
        SCHEDULE_POINT();
        if (request->given_back)
            request_give_back(request);
        else
            request_finish(request, request->result);
    }
}

/* The bottom half. */
static void turn(void *opaque)
{
    struct ring *ring = opaque;

    end_leaving(ring);
    push_waiting(ring);
    end_leaving(ring);
}

/* The watch of the eventfd.  EAGAIN: a nested poll of the loop, from inside a `done`, has read it
 * before.
 */
static void reap_and_turn(void *opaque)
{
    struct ring *ring = opaque;
    uint64_t count;
    SCHEDULE_POINT();
    ssize_t n = read(ring->event_fd, &count, sizeof count);

    assert(n == sizeof count || errno == EAGAIN || errno == EINTR);
    SCHEDULE_POINT();
    ring->ops->reap(ring);
    SCHEDULE_POINT();
    turn(ring);
}

/* These errors come from the ring and not from the disk: an O_NONBLOCK descriptor, an io-wq worker
 * of the kernel that exits, or a code that the kernel keeps for itself (ERESTARTSYS, 512, and
 * above; the largest errno of user space is below that).  A blocking call gives the disk's own
 * answer.
 */
static bool is_of_the_ring(int64_t result)
{
    return result == -EAGAIN || result == -ECANCELED || result <= -512;
}

void ring_completed(struct ring *ring, struct request *request, int64_t result)
{
    ring->in_flight--;
    PROBE(io_complete, request, result);
    if (is_of_the_ring(result)) {
        refuse(ring, request, (int)result);
    } else if (request_advance(request, result)) {
        request_count_time(request, request->submitted_ns);
        queue_push(&ring->leaving, &request->link);
    } else {
        queue_push(&ring->waiting, &request->link);
    }
}

int ring_submit(struct backend *backend, struct request *request)
{
    struct ring *ring = container_of(backend, struct ring, backend);

    stack_push(&ring->inbox, &request->link);
    SCHEDULE_POINT();
    bh_schedule(ring->bh);
    SCHEDULE_POINT();
    return 0;
}

int ring_init(struct ring *ring, const struct backend_ops *backend_ops, const struct ring_ops *ops,
              const struct backend_config *config)
{
    backend_init(&ring->backend, backend_ops, config);
    ring->ops = ops;
    queue_init(&ring->waiting);
    queue_init(&ring->leaving);
    ring->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ring->event_fd < 0)
        return -errno;
    ring->bh = bh_new(config->loop, turn, ring);
    if (!ring->bh) {
        close(ring->event_fd);
        return -ENOMEM;
    }
    return 0;
}

int ring_start(struct ring *ring)
{
    return loop_watch_new(ring->backend.config.loop, ring->event_fd, reap_and_turn, ring,
                          &ring->watch);
}

void ring_stop(struct ring *ring)
{
    assert(ring->in_flight == 0 && !ring->waiting.oldest && !ring->leaving.oldest);
    SCHEDULE_POINT();
    loop_watch_delete(ring->watch);
}

void ring_destroy(struct ring *ring)
{
    SCHEDULE_POINT();
    bh_delete(ring->bh);
    close(ring->event_fd);
}

int ring_probe_file(void)
{
    /* A pid namespace with vm.memfd_noexec=2 refuses a file without the flag, and a kernel before
     * Linux 6.3 does not know the flag.
     */
    int fd = memfd_create("aiodisk-probe", MFD_CLOEXEC | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("aiodisk-probe", MFD_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int ring_prove(struct ring *ring)
{
    static const char written[] = "aiodisk";
    char got[sizeof written] = "";
    struct iovec iov = {.iov_base = got, .iov_len = sizeof got};
    struct request request = {.op = REQUEST_READ, .iov = &iov, .iovcnt = 1, .length = sizeof got};

    request.fd = ring_probe_file();
    if (request.fd < 0)
        return request.fd;
    int r = write(request.fd, written, sizeof written) == sizeof written ? 0 : -EIO;
    if (r == 0)
        r = backend_run(&ring->backend, &request);
    if (r == 0 && request.given_back)
        r = ring->refusal; /* the pool carried the read, so the ring does not work */
    if (r == 0 && memcmp(got, written, sizeof written) != 0)
        r = -EIO;
    close(request.fd);
    return r;
}
