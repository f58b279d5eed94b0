/* SPDX-License-Identifier: BSD-3-Clause */
/* Where an image comes from: a path, an inherited descriptor, or a name in a directory.
 *
 * Whatever it is, it is pinned with O_PATH first: that opens nothing (a FIFO does not hang, a tape does not
 * rewind), and its type is judged on the very inode that is opened afterwards, so nobody can
 * exchange it in between.
 */
#ifndef AIODISK_EXPORTS_H
#define AIODISK_EXPORTS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "plugin/disk/log.h"

/* Each returns 0 or a descriptor, or -errno with a line in `why`.  Any thread; they block. */
int exports_check_file(const char *path, char why[LOG_LINE_SIZE]);
int exports_check_directory(const char *path, char why[LOG_LINE_SIZE]);
int exports_check_fd(int fd, char why[LOG_LINE_SIZE]);

/* An O_PATH descriptor of a regular file or block device. */
int exports_open_file(const char *path, char why[LOG_LINE_SIZE]);

/* The same for an export of a directory: refuses whatever is not directly in it, and symbolic links that lead out. */
int exports_open_one(const char *directory, const char *name, char why[LOG_LINE_SIZE]);

bool exports_is_directory(const char *path);

/* Calls add(opaque, name, what it is) for each export of the directory, in no order, until it returns non-zero. */
int exports_list(const char *directory,
                 int (*add)(void *opaque, const char *name, const struct stat *st), void *opaque,
                 char why[LOG_LINE_SIZE]);

#endif
