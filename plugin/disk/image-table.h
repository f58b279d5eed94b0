/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of open images: all clients of one disk share one image. */
#ifndef AIODISK_IMAGE_TABLE_H
#define AIODISK_IMAGE_TABLE_H

#include "plugin/disk/image.h"

/* Finds the open image of the disk that path_fd refers to, or opens the image.  path_fd may be an
 * O_PATH descriptor; it stays the caller's.  Returns 0 and a reference, or -errno and a line in
 * `why`: what open(2), the size, the lock or the room failed with, or -ENOMEM.  -EBUSY (the lock of
 * another program) is returned only after half a second.  Blocks: waits for the disk, and while
 * another thread opens or closes the same image, but never for another image.  nbdkit's threads.
 */
int image_get(int path_fd, const char *name, const struct image_options *options,
              struct image **image, char why[LOG_LINE_SIZE]);

/* Gives the reference back.  The last reference flushes and closes the image: without clients no
 * descriptor of the image is open and no lock is held.  Blocks.  nbdkit's threads.
 */
void image_put(struct image *image);

#endif
