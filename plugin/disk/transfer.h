/* SPDX-License-Identifier: BSD-3-Clause */
/* Bytes in and out of an image, at any offset and length, whatever its descriptors demand. */
#ifndef AIODISK_TRANSFER_H
#define AIODISK_TRANSFER_H

#include <stdbool.h>
#include <stdint.h>

struct image;
struct range;

/* Each returns 0 or -errno; nbdkit's threads; blocks. */

int image_read(struct image *image, void *buf, uint64_t length, uint64_t offset);

/* With fua, durable when it returns 0. */
int image_write(struct image *image, const void *buf, uint64_t length, uint64_t offset, bool fua);

/* Writes zeros; the caller holds the range lock (transfer_lock) and has called image_before_write. */
int transfer_write_zeros(struct image *image, uint64_t length, uint64_t offset);

/* Takes the range lock for something that will be written: exclusively if it begins or ends inside a block, so
 * that it has to be read, modified and written.  transfer_unlock gives it back.
 */
void transfer_lock(struct image *image, struct range *range, uint64_t length, uint64_t offset);
void transfer_unlock(struct image *image, struct range *range);

#endif
