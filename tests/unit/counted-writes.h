/* SPDX-License-Identifier: BSD-3-Clause */
/* Wrapped functions that count the writes and syncs of an image.  For disk-calls.c and device.c;
 * tests/unit/meson.build names the functions in the linker's --wrap options.  Any thread.
 */
#ifndef AIODISK_COUNTED_WRITES_H
#define AIODISK_COUNTED_WRITES_H

#include "tests/lib/disk-test.h"

#include <sys/uio.h>

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    count(SYNC);
    return __real_fdatasync(fd);
}

ssize_t __real_pwritev64(int fd, const struct iovec *iov, int n, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int n, off_t offset)
{
    count(WRITE);
    return __real_pwritev64(fd, iov, n, offset);
}

#endif
