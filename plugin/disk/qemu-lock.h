/* SPDX-License-Identifier: BSD-3-Clause */
/* The locks that QEMU's programs take on images, so that two writers of one image notice each
 * other, whichever programs they are.
 */
#ifndef AIODISK_QEMU_LOCK_H
#define AIODISK_QEMU_LOCK_H

#include "plugin/disk/log.h"

struct image;

/* auto: serve without locks where the filesystem has none.  on: refuse to. */
enum locking_mode { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };

/* Locks image->fd as a reader or a writer.  Returns 0; -EBUSY and a line in `why` when another
 * program uses the image in a way that excludes this use; with LOCKING_ON also -errno of fcntl(2)
 * where the filesystem has no such locks.  Does not wait for a lock.  Called by image_open.
 */
int image_lock(struct image *image, enum locking_mode mode, char why[LOG_LINE_SIZE]);

/* Releases the locks that image_lock took.  Closing image->fd would release them too, unless it is
 * a duplicate of a descriptor that the user passed with fd=, which stays open.  Called by
 * image_close.
 */
void image_unlock(const struct image *image);

#endif
