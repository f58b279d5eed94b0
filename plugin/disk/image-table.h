/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of open images: all connections to one disk share one image. */
#ifndef AIODISK_IMAGE_TABLE_H
#define AIODISK_IMAGE_TABLE_H

#include "plugin/disk/image.h"

/* Finds the open image of the file that path_fd refers to, or opens it.  Returns 0 and a reference, or -errno and
 * a line in `why`; -EBUSY (another program's lock) only after half a second.  Waits while another opens or closes this one, and
 * for no other image.  path_fd stays the caller's.  Nbdkit's threads; blocks.
 */
int image_get(int path_fd, const char *name, const struct image_options *options,
              struct image **image, char why[LOG_LINE_SIZE]);

/* Gives the reference back.  The last one flushes and closes the image, unless it is to be kept. */
void image_put(struct image *image);

/* Closes those that were kept.  No references are left, and the backend still runs. */
void image_close_all(void);

#endif
