/* SPDX-License-Identifier: BSD-3-Clause */
/* Wrapped functions that answer what the kernel of this machine does not: those of an older kernel,
 * of a ring that lacks operations or returns wrong bytes, of a filesystem or device with unusual
 * units, and refusals.  Only tests/unit/disk-answers.c includes this file, and meson.build names
 * the functions in the linker's --wrap options.
 *
 * A test sets fields of `fake` while no request is in flight.  The wrappers run on whichever thread
 * makes the call.
 */
#ifndef AIODISK_DISK_ANSWERS_H
#define AIODISK_DISK_ANSWERS_H

#include "tests/unit/fake-file.h"

#include <libaio.h>
#include <liburing.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "backends/ring.h"
#include "tests/lib/wrap.h"

#define SIZE (128 * KiB) /* of the file */
#define XFS_DIOINFO _IOR('X', 30, uint32_t[3])

/* 0, NULL or false: the kernel's own answer. */
static struct {
    uint32_t xfs_unit, xfs_memory; /* XFS_IOC_DIOINFO */
    int sector;                    /* of file.block; -1: unknown */
    int lock, advice, populate;    /* errno */
    bool writes_nothing;
    bool cut, punched; /* lseek(2) does not find the end of data */
    int missing_op;    /* of io_uring, and 1 + the operation */
    bool no_fdsync;    /* of libaio */
    bool wrong_bytes;  /* a ring reads other bytes */
    int ring_error;    /* what each request of a ring ends with */
    bool interrupted;  /* io_getevents(2), once */
} fake;

int __real_ioctl(int fd, unsigned long command, void *p);
int __wrap_ioctl(int fd, unsigned long command, void *p);
int __wrap_ioctl(int fd, unsigned long command, void *p)
{
    if (command == XFS_DIOINFO && fake.xfs_unit) {
        memcpy(p, (uint32_t[3]){fake.xfs_memory, fake.xfs_unit, 1 << 20}, 12);
        return 0;
    }
    if (!file.block)
        return __real_ioctl(fd, command, p);
    switch (command) {
    case BLKGETSIZE64:
        *(uint64_t *)p = SIZE;
        return 0;
    case BLKSSZGET:
        *(int *)p = fake.sector > 0 ? fake.sector : 64;
        return answer(fake.sector > 0 ? 0 : ENOTTY);
    default:
        return answer(ENOTTY);
    }
}

off_t __real_lseek64(int fd, off_t at, int whence);
off_t __wrap_lseek64(int fd, off_t at, int whence);
off_t __wrap_lseek64(int fd, off_t at, int whence)
{
    if (whence == SEEK_HOLE && fake.punched)
        return at;
    return whence == SEEK_HOLE && fake.cut ? answer(ENXIO) : __real_lseek64(fd, at, whence);
}

int __real_fcntl64(int fd, int command, void *p);
int __wrap_fcntl64(int fd, int command, void *p);
int __wrap_fcntl64(int fd, int command, void *p)
{
    return command == F_OFD_SETLK && fake.lock ? answer(fake.lock) : __real_fcntl64(fd, command, p);
}

int __real_posix_fadvise64(int fd, off_t at, off_t n, int advice);
int __wrap_posix_fadvise64(int fd, off_t at, off_t n, int advice);
int __wrap_posix_fadvise64(int fd, off_t at, off_t n, int advice)
{
    return fake.advice ? fake.advice : __real_posix_fadvise64(fd, at, n, advice);
}

int __real_madvise(void *p, size_t n, int advice);
int __wrap_madvise(void *p, size_t n, int advice);
int __wrap_madvise(void *p, size_t n, int advice)
{
    if (advice == MADV_COLD)
        count(COLD);
    if (fake.populate && advice == MADV_POPULATE_READ)
        return answer(fake.populate);
    return __real_madvise(p, n, advice);
}

ssize_t __real_pwritev64(int fd, const struct iovec *iov, int n, off_t at);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t at);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t at)
{
    return fake.writes_nothing ? 0 : __real_pwritev64(fd, iov, n, at);
}

static _Atomic bool no_threads;
WRAP_PTHREAD_CREATE_IF(atomic_load(&no_threads))

int __real_io_uring_register_probe(struct io_uring *ring, struct io_uring_probe *probe, unsigned n);
int __wrap_io_uring_register_probe(struct io_uring *ring, struct io_uring_probe *probe, unsigned n);
int __wrap_io_uring_register_probe(struct io_uring *ring, struct io_uring_probe *probe, unsigned n)
{
    int r = __real_io_uring_register_probe(ring, probe, n);
    if (fake.missing_op)
        probe->ops[fake.missing_op - 1].flags = 0;
    return r;
}

int __real_io_getevents(io_context_t context, long min, long n, struct io_event *events,
                        struct timespec *timeout);
int __wrap_io_getevents(io_context_t context, long min, long n, struct io_event *events,
                        struct timespec *timeout);
int __wrap_io_getevents(io_context_t context, long min, long n, struct io_event *events,
                        struct timespec *timeout)
{
    if (fake.interrupted) {
        fake.interrupted = false;
        return -EINTR;
    }
    int r = __real_io_getevents(context, min, n, events, timeout);
    if (min == 1 && r == 1 && fake.no_fdsync)
        events->res = (unsigned long)-EINVAL;
    return r;
}

void __real_ring_completed(struct ring *ring, struct request *request, int64_t result);
void __wrap_ring_completed(struct ring *ring, struct request *request, int64_t result);
void __wrap_ring_completed(struct ring *ring, struct request *request, int64_t result)
{
    if (fake.wrong_bytes)
        memset(request->iov->iov_base, 'x', request->iov->iov_len);
    __real_ring_completed(ring, request, fake.ring_error ? fake.ring_error : result);
}

#endif
