/* SPDX-License-Identifier: BSD-3-Clause */
/* A second descriptor of an inode that is open already, and what statx(2) says of a descriptor. */
#ifndef AIODISK_FD_H
#define AIODISK_FD_H

#include <sys/stat.h>

/* Opens the inode that `fd` refers to again, with `flags` (open(2)): the result is a new open file
 * description, with offset, flags, OFD locks and error reports of its own.  `fd` may be an O_PATH
 * descriptor.  Returns a descriptor with O_CLOEXEC, or -errno: open(2)'s, and -ENOENT without
 * /proc.  Any thread; blocks.
 */
int fd_reopen(int fd, int flags);

/* The text for a message about `err`, a -errno of a function of this file: it names /proc if /proc
 * is missing, because "No such file" alone would blame the image.  Static text.  Any thread.
 */
const char *fd_strerror(int err);

/* The same for a descriptor that the user passed to nbdkit.  Where opening is forbidden or
 * impossible, the result is a duplicate of `fd`, if `fd` can stand for a descriptor opened with
 * `flags`; a duplicate shares offset, flags, OFD locks and error reports with `fd`.
 */
int fd_reopen_or_duplicate(int fd, int flags);

/* statx(2) of an open descriptor, for `mask`.  Where a seccomp filter that does not know statx(2)
 * answers EPERM, as those of old container engines do, fstat(2) gives the type, the size, the inode
 * and the device numbers; stx_mask then has STATX_BASIC_STATS and nothing else, and no other field
 * is set.  Returns 0 or -errno.  Any thread; blocks.
 */
int fd_statx(int fd, unsigned mask, struct statx *stx);

#endif
