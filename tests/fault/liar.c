/* SPDX-License-Identifier: BSD-3-Clause */
/* A library that is preloaded into nbdkit, for the controls of crash.sh: it makes the server lie.
 * The environment variable AIODISK_LIE says how:
 *
 *   flush   fdatasync(2) and fsync(2) return 0 and sync nothing
 *   fua     pwritev2(2) does not see RWF_DSYNC
 *   zero    fallocate(2) returns 0 and changes nothing
 *
 * Several words may stand in the variable.  The functions run on any thread.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int lies_about(const char *what)
{
    const char *lie = getenv("AIODISK_LIE");

    return lie && strstr(lie, what);
}

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return lies_about("flush") ? 0 : real(fd);
}

__attribute__((visibility("default"))) int fsync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return lies_about("flush") ? 0 : real(fd);
}

__attribute__((visibility("default"))) int fallocate64(int fd, int mode, off64_t offset,
                                                       off64_t length)
{
    int (*real)(int, int, off64_t, off64_t) =
        (int (*)(int, int, off64_t, off64_t))dlsym(RTLD_NEXT, "fallocate64");
    return lies_about("zero") ? 0 : real(fd, mode, offset, length);
}

__attribute__((visibility("default"))) ssize_t pwritev64v2(int fd, const struct iovec *iov, int n,
                                                           off64_t offset, int flags)
{
    ssize_t (*real)(int, const struct iovec *, int, off64_t, int) =
        (ssize_t(*)(int, const struct iovec *, int, off64_t, int))dlsym(RTLD_NEXT, "pwritev64v2");
    return real(fd, iov, n, offset, lies_about("fua") ? flags & ~RWF_DSYNC : flags);
}
