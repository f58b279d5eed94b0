/* SPDX-License-Identifier: BSD-3-Clause */
/* Which parts of an image are holes. */
#ifndef AIODISK_EXTENTS_H
#define AIODISK_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

struct image;

struct extent {
    uint64_t offset, length; /* bytes */
    bool hole;               /* and so reads as zeros; else it may be anything */
};

/* Calls add(opaque, extent) for consecutive extents from `offset` on, until `length` bytes are covered, or after the
 * first with only_one.  Returns 0, -errno, or what add returned if that was not 0.  A hole is never reported
 * where data were when it was called.  Nbdkit's threads; blocks.
 */
int image_extents(struct image *image, uint64_t length, uint64_t offset, bool only_one,
                  int (*add)(void *opaque, const struct extent *extent), void *opaque);

#endif
