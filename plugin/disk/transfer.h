/* SPDX-License-Identifier: BSD-3-Clause */
/* Bytes in and out of an image, at any offset and length, whatever its descriptors demand. */
#ifndef AIODISK_TRANSFER_H
#define AIODISK_TRANSFER_H

#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

struct image;
struct range;

struct transfer_state {
    /* Set once by transfer_init. */
    bool takes_turns; /* writes into the page cache of this image take turns */

    /* Any thread: a request holds one turn during a write into the page cache.  Lock order: after
     * the range lock, before the pool's.
     */
    sem_t turns;
};

/* Called by image_open.  helping: the threads of requests may make the calls themselves. */
void transfer_init(struct image *image, bool helping);
void transfer_destroy(struct transfer_state *state);

/* Reads `length` bytes at `offset`.  Returns 0, or -errno: -EIO also for a read past the end of the
 * file, -ENOMEM without memory for a bounce buffer.  Any thread but a loop's and the workers';
 * blocks.
 */
int image_read(struct image *image, void *buf, uint64_t length, uint64_t offset);

/* Writes `length` bytes at `offset`; with fua the bytes are durable when it returns 0.  Returns 0,
 * or -errno: -ENOSPC also for a write past the end of a file that has become shorter.  As
 * image_read.
 */
int image_write(struct image *image, const void *buf, uint64_t length, uint64_t offset, bool fua);

/* --- For zero.c --- */

/* Writes zeros.  The caller holds the range by transfer_lock and has called image_before_write.
 * Returns as image_write.
 */
int transfer_write_zeros(struct image *image, uint64_t length, uint64_t offset);

/* Counts a client's request that O_DIRECT cannot carry as it is. */
void transfer_count_unaligned(struct image *image, uint64_t length, uint64_t offset);

/* Takes the range lock for something that will be written: exclusively if the range begins or ends
 * inside a block, which must then be read, modified and written.  Blocks.  transfer_unlock releases
 * the range.
 */
void transfer_lock(struct image *image, struct range *range, uint64_t length, uint64_t offset);
void transfer_unlock(struct image *image, struct range *range);

#endif
