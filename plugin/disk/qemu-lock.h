/* SPDX-License-Identifier: BSD-3-Clause */
/* The locks that QEMU takes on images, so that two writers of one image, of whichever program, see each other. */
#ifndef AIODISK_QEMU_LOCK_H
#define AIODISK_QEMU_LOCK_H

#include "plugin/disk/log.h"

struct image;

enum locking_mode { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };

/* Locks image->fd as a reader or writer; closing the descriptor unlocks.  Returns 0; -EBUSY and a line in `why` when another
 * program uses the image in a way that excludes ours; with LOCKING_ON also what fcntl(2) says where there are no such locks.
 */
int image_lock(const struct image *image, enum locking_mode mode, char why[LOG_LINE_SIZE]);

#endif
