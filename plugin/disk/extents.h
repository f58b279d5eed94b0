/* SPDX-License-Identifier: BSD-3-Clause */
/* Which parts of an image are holes. */
#ifndef AIODISK_EXTENTS_H
#define AIODISK_EXTENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "plugin/disk/disk.h"

struct image;

struct extents_state {
    /* Set once by extents_init. */
    bool maps; /* FIEMAP tells the same as lseek(2) */

    atomic_bool no_seek; /* any thread, relaxed: SEEK_DATA does not work on this image */
};

/* Called by image_open. */
void extents_init(struct image *image);

/* Calls add(opaque, extent) for consecutive extents from `offset` on, until `length` bytes are
 * covered, or for the first extent only with only_one.  A hole is never reported where there were
 * data when the call began.  Returns 0, -errno of lseek(2) or fstat(2), or what `add`
 * returned if that was not 0.  Any thread but a loop's and the workers'; blocks; takes no lock.
 */
int image_extents(struct image *image, uint64_t length, uint64_t offset, bool only_one,
                  int (*add)(void *opaque, const struct extent *extent), void *opaque);

#endif
