/* SPDX-License-Identifier: BSD-3-Clause */
/* Where an image comes from: a path, an inherited descriptor, or a name in a directory.
 *
 * Whatever it is, it is pinned with O_PATH first: that opens nothing (a FIFO does not hang, a tape does not
 * rewind), and its type is judged on the very inode that is opened afterwards, so nobody can
 * exchange it in between.
 */
#ifndef AIODISK_SOURCE_H
#define AIODISK_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

/* Room for one line that says what was wrong, on what. */
#define SOURCE_ERROR_SIZE 512

/* Each returns 0 or a descriptor, or -errno with a line in `why`.  Any thread; they block. */
int source_check_file(const char *path, char why[SOURCE_ERROR_SIZE]);
int source_check_directory(const char *path, char why[SOURCE_ERROR_SIZE]);
int source_check_fd(int fd, char why[SOURCE_ERROR_SIZE]);

/* An O_PATH descriptor of a regular file or block device. */
int source_open_file(const char *path, char why[SOURCE_ERROR_SIZE]);

/* The same for an export of a directory: refuses whatever is not directly in it, and symbolic links that lead out. */
int source_open_export(const char *directory, const char *name, char why[SOURCE_ERROR_SIZE]);

bool source_is_directory(const char *path);

/* Calls add(opaque, name, what it is) for each export of the directory, in no order, until it returns non-zero. */
int source_list_exports(const char *directory,
                        int (*add)(void *opaque, const char *name, const struct stat *st),
                        void *opaque, char why[SOURCE_ERROR_SIZE]);

/* Opens what `fd` refers to once more, with flags of its own: a new open file description of the same
 * inode.  Returns a descriptor or -errno (open(2); -ENOENT without /proc).
 */
int source_reopen(int fd, int flags);

#endif
