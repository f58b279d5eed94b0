/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening an inode again through /proc/self/fd, and statx(2) with a fallback.  See fd.h.
 *
 * Runs on the main thread before nbdkit forks, and on nbdkit's threads when an image is opened;
 * fd_statx also on the threads of requests.
 * Never follows a name that somebody else can change: the inode is pinned by the descriptor.
 */
#include "plugin/disk/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define FD_FOLDER "/proc/self/fd"

int fd_reopen(int fd, int flags)
{
    char path[32];

    snprintf(path, sizeof path, FD_FOLDER "/%d", fd);
    int new_fd = open(path, flags | O_CLOEXEC);
    return new_fd < 0 ? -errno : new_fd;
}

const char *fd_strerror(int err)
{
    if (err == -ENOENT && access(FD_FOLDER, F_OK) < 0)
        return FD_FOLDER " is missing: the plugin opens images through it, so mount /proc";
    return strerror(-err);
}

/* Can a duplicate of `fd` stand for a descriptor opened with `flags`?  With O_APPEND it would write
 * at the wrong offset, and with O_DIRECT it would refuse what is not aligned.  The flags belong to
 * the user, so they are not changed.
 */
static bool may_duplicate(int fd, int flags)
{
    int own = fcntl(fd, F_GETFL);

    if (flags & O_DIRECT || own & O_DIRECT)
        return false;
    if (own & O_APPEND && (flags & O_ACCMODE) != O_RDONLY)
        return false;
    return (own & O_ACCMODE) == O_RDWR || (own & O_ACCMODE) == (flags & O_ACCMODE);
}

int fd_reopen_or_duplicate(int fd, int flags)
{
    int new_fd = fd_reopen(fd, flags);

    if (new_fd < 0 && may_duplicate(fd, flags)) {
        new_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (new_fd < 0)
            return -errno;
    }
    return new_fd;
}

int fd_statx(int fd, unsigned mask, struct statx *stx)
{
    struct stat st;

    if (statx(fd, "", AT_EMPTY_PATH, mask, stx) == 0)
        return 0;
    /* The kernel's own statx(2) of a descriptor never says EPERM. */
    if (errno != EPERM || fstat(fd, &st) < 0)
        return -errno;
    *stx = (struct statx){
        .stx_mask = STATX_BASIC_STATS,
        .stx_mode = st.st_mode,
        .stx_size = st.st_size,
        .stx_ino = st.st_ino,
        .stx_dev_major = major(st.st_dev),
        .stx_dev_minor = minor(st.st_dev),
        .stx_rdev_major = major(st.st_rdev),
        .stx_rdev_minor = minor(st.st_rdev),
    };
    return 0;
}
