/* SPDX-License-Identifier: BSD-3-Clause */
/* Helpers for file descriptors.  See fd.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "plugin/disk/fd.h"

int fd_reopen(int fd, int flags)
{
    char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int new_fd = open(path, flags | O_CLOEXEC);
    return new_fd < 0 ? -errno : new_fd;
}
