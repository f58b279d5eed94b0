/* SPDX-License-Identifier: BSD-3-Clause */
/* The exports: what file=, dir=, fd= and dirfd= refer to, and whether that can be served.
 *
 * A file is always opened with O_PATH first.  That has no effect on the file: opening a FIFO does
 * not wait and opening a tape does not rewind.  The type of the file is then checked on the O_PATH
 * descriptor, and the caller opens the image through the same descriptor.  So nobody can replace
 * the file between the check and the opening.
 *
 * Every function here may block on the disk.  Any thread may call them.  On an error each stores
 * one line in `why`, which names the file and the reason.
 */
#ifndef AIODISK_EXPORTS_H
#define AIODISK_EXPORTS_H

#include <stdbool.h>
#include <sys/stat.h>

#include "plugin/disk/log.h"

/* Which symbolic links in a directory of exports are followed. */
enum symlinks_mode {
    SYMLINKS_INSIDE,   /* those that lead to a file below the directory */
    SYMLINKS_ANYWHERE, /* all, as nbdkit's file plugin does */
    SYMLINKS_NONE,
};

/* A directory whose files are the exports. */
struct exports_directory {
    /* Set by the caller, and not changed while a function here runs. */
    char *name; /* the absolute path; or for messages only, if fd is used */
    int fd;     /* an inherited descriptor of the directory, or -1 */
    enum symlinks_mode symlinks;
};

/* Checks that file=PATH is a regular file or block device and can be read.  Returns 0, -EINVAL if
 * the file is of another type, or -errno of open(2).
 */
int exports_check_file(const char *path, char why[LOG_LINE_SIZE]);

/* Checks that this is a directory, that this process may list it and look up names in it, and that
 * images can be opened at all (see fd_reopen).  Returns 0, or -errno of openat(2) or faccessat(2).
 */
int exports_check_directory(const struct exports_directory *directory, char why[LOG_LINE_SIZE]);

/* Checks that fd=FD is a regular file or block device.  Returns 0, -EINVAL if the file is of
 * another type, -EBADF if FD is not open or not open for reading, or -errno of fstat(2).
 */
int exports_check_fd(int fd, char why[LOG_LINE_SIZE]);

/* Opens the regular file or block device with O_PATH.  Returns a descriptor, -EINVAL if the file is
 * of another type, or -errno of open(2).
 */
int exports_open_file(const char *path, char why[LOG_LINE_SIZE]);

/* As exports_open_file, for the export called `name` of a directory.  Also returns -ENOENT if
 * `name` is no name of a directory entry, -EXDEV if a symbolic link leads out of the directory with
 * SYMLINKS_INSIDE, and -EINVAL for every symbolic link with SYMLINKS_NONE.
 */
int exports_open_one(const struct exports_directory *directory, const char *name,
                     char why[LOG_LINE_SIZE]);

/* True if `path` is a directory; false also if the path cannot be examined. */
bool exports_is_directory(const char *path);

/* Calls add(opaque, name, st) for each export of the directory, in no particular order.  Stops
 * early if `add` returns a value other than 0, and returns that value without a line in `why`.
 * Otherwise returns 0, or -errno of openat(2), fdopendir(3) or readdir(3).  Skips what
 * exports_open_one would refuse.
 */
int exports_list(const struct exports_directory *directory,
                 int (*add)(void *opaque, const char *name, const struct stat *st), void *opaque,
                 char why[LOG_LINE_SIZE]);

#endif
