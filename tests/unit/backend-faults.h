/* SPDX-License-Identifier: BSD-3-Clause */
/* Wrapped functions that disturb what the kernel returns to a backend: short transfers, -EINTR,
 * -EAGAIN, partial submissions, a ring or a thread that cannot be made.  backend.c and
 * backend-async.c include this file, and meson.build names the functions in the linker's --wrap
 * options.
 *
 * A test sets fields of `faults`; open_backend clears all of them.  The wrappers run on whichever
 * thread makes the call: a worker, a caller of backend_run, or the loop thread.
 */
#ifndef AIODISK_BACKEND_FAULTS_H
#define AIODISK_BACKEND_FAULTS_H

#include <errno.h>
#include <libaio.h>
#include <liburing.h>
#include <stdatomic.h>

#include "backends/ring.h"
#include "tests/lib/pool-test.h"
#include "tests/lib/wrap.h"

#define BLOCK 4096u /* bytes; a shortened transfer is a multiple */

/* Written by the test, read by any thread. */
static struct {
    _Atomic unsigned submit_every; /* disturb each submit_every-th submission; 0: none */
    _Atomic int submit_error;      /* -errno that submission returns; 0: accept half the batch */
    _Atomic unsigned result_every; /* disturb each result_every-th result; 0: none */
    _Atomic int result_error;      /* -errno that replaces the result; 0: a short transfer */
    _Atomic int setup_error;       /* -errno that making a ring returns; 0: succeed */
    _Atomic bool hold_reads;       /* a blocking read does not return */
    _Atomic bool flag_stays;       /* IORING_SQ_TASKRUN is set although no work is left */
    _Atomic bool no_threads;       /* no thread can be created */
    _Atomic unsigned result_us;    /* each result of a ring takes so much longer */

    /* Counted by any thread. */
    _Atomic unsigned submissions, results, held_reads, get_events;

    _Atomic bool closed; /* backend_close has returned */
} faults;

static bool disturbed(_Atomic unsigned *count, unsigned every)
{
    return atomic_fetch_add(count, 1) % (every ? every : 1) == every - 1;
}

static bool submit_disturbed(void)
{
    return disturbed(&faults.submissions, atomic_load(&faults.submit_every));
}

/* Replaces a successful result by an error, so that the transfer is made again, or by a smaller
 * count.
 */
static int64_t disturb_result(int64_t result)
{
    if (result < 0 || !disturbed(&faults.results, atomic_load(&faults.result_every)))
        return result;
    if (atomic_load(&faults.result_error))
        return atomic_load(&faults.result_error);
    return result > (int64_t)BLOCK ? result / 2 / BLOCK * BLOCK : result;
}

/* Of a blocking call only -EINTR is replaced: any other error would be the disk's own answer, and
 * would rightly reach the submitter.
 */
static ssize_t disturb_call(ssize_t n)
{
    int64_t result = disturb_result(n);
    if (result >= 0)
        return result;
    if (n >= 0 && result != -EINTR)
        return n;
    if (n >= 0)
        errno = EINTR;
    return -1;
}

ssize_t __real_preadv64(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_preadv64(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_preadv64(int fd, const struct iovec *iov, int count, off_t offset)
{
    if (atomic_load(&faults.hold_reads))
        atomic_fetch_add(&faults.held_reads, 1);
    WAIT_UNTIL(!atomic_load(&faults.hold_reads));
    return disturb_call(__real_preadv64(fd, iov, count, offset));
}

ssize_t __real_pwritev64(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int count, off_t offset)
{
    return disturb_call(__real_pwritev64(fd, iov, count, offset));
}

void __real_ring_completed(struct ring *ring, struct request *request, int64_t result);
void __wrap_ring_completed(struct ring *ring, struct request *request, int64_t result);
void __wrap_ring_completed(struct ring *ring, struct request *request, int64_t result)
{
    if (atomic_load(&faults.result_us))
        usleep(atomic_load(&faults.result_us));
    __real_ring_completed(ring, request, disturb_result(result));
}

WRAP_PTHREAD_CREATE_IF(atomic_load(&faults.no_threads))

int __real_io_submit(io_context_t context, long count, struct iocb **iocbs);
int __wrap_io_submit(io_context_t context, long count, struct iocb **iocbs);
int __wrap_io_submit(io_context_t context, long count, struct iocb **iocbs)
{
    if (submit_disturbed()) {
        if (atomic_load(&faults.submit_error))
            return atomic_load(&faults.submit_error);
        count = count > 1 ? count / 2 : count;
    }
    return __real_io_submit(context, count, iocbs);
}

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring)
{
    if (submit_disturbed() && atomic_load(&faults.submit_error))
        return atomic_load(&faults.submit_error);
    return __real_io_uring_submit(ring);
}

int __real_io_uring_get_events(struct io_uring *ring);
int __wrap_io_uring_get_events(struct io_uring *ring);
int __wrap_io_uring_get_events(struct io_uring *ring)
{
    int r = __real_io_uring_get_events(ring);

    atomic_fetch_add(&faults.get_events, 1);
    if (atomic_load(&faults.flag_stays))
        __atomic_fetch_or(ring->sq.kflags, IORING_SQ_TASKRUN, __ATOMIC_SEQ_CST);
    return r;
}

int __real_io_setup(int depth, io_context_t *context);
int __wrap_io_setup(int depth, io_context_t *context);
int __wrap_io_setup(int depth, io_context_t *context)
{
    int error = atomic_load(&faults.setup_error);
    return error ? error : __real_io_setup(depth, context);
}

/* A new ring may be mapped where an old one was.  The kernel orders the two, and TSan does not see
 * that, because liburing unmaps without libc: it reported a race between them.
 */
static _Atomic unsigned mappings;

void __real_io_uring_queue_exit(struct io_uring *ring);
void __wrap_io_uring_queue_exit(struct io_uring *ring);
void __wrap_io_uring_queue_exit(struct io_uring *ring)
{
    atomic_fetch_add(&mappings, 1);
    __real_io_uring_queue_exit(ring);
}

int __real_io_uring_queue_init_params(unsigned depth, struct io_uring *ring,
                                      struct io_uring_params *params);
int __wrap_io_uring_queue_init_params(unsigned depth, struct io_uring *ring,
                                      struct io_uring_params *params);
int __wrap_io_uring_queue_init_params(unsigned depth, struct io_uring *ring,
                                      struct io_uring_params *params)
{
    int error = atomic_load(&faults.setup_error);
    if (!error)
        error = __real_io_uring_queue_init_params(depth, ring, params);
    atomic_fetch_add(&mappings, 1);
    return error;
}

#endif
