/* SPDX-License-Identifier: BSD-3-Clause */
/* The locks that QEMU takes on images, so that two writers of one image, of whichever program, see each other. */
#ifndef AIODISK_LOCK_H
#define AIODISK_LOCK_H

#include "plugin/config.h"
#include "plugin/exports.h"

struct image;

/* Locks image->fd as a reader or writer; closing the descriptor unlocks.  Returns 0; -EBUSY and a line in `why` when another
 * program uses the image in a way that excludes ours; with LOCKING_ON also what fcntl(2) says where there are no such locks.
 */
int lock_image(const struct image *image, enum locking_mode mode, char why[SOURCE_ERROR_SIZE]);

#endif
