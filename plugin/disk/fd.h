/* SPDX-License-Identifier: BSD-3-Clause */
/* Helpers for file descriptors. */
#ifndef AIODISK_FD_H
#define AIODISK_FD_H

/* Opens the inode that `fd` refers to again, with `flags` (open(2)): the result is a new open file
 * description.  `fd` may be an O_PATH descriptor.  Returns a descriptor with O_CLOEXEC, or -errno:
 * open(2)'s, and -ENOENT without /proc.  Any thread; blocks.
 */
int fd_reopen(int fd, int flags);

#endif
