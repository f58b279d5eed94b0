/* SPDX-License-Identifier: BSD-3-Clause */
/* What a flush promises: everything written before it is durable when it returns 0, and a disk
 * that has once lost a write never says 0 again.
 *
 * The kernel reports a lost write-back once for each open file description (errseq_t).  So each sync runs on a descriptor
 * that no other sync uses at that time: two syncs on one descriptor would share the report, and
 * one of them would be told a false ok.
 */
#ifndef AIODISK_FLUSH_H
#define AIODISK_FLUSH_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct image;
struct image_key;
struct health;

#define FLUSH_DESCRIPTORS 16

struct flush_set {
    /* Set once, before the image is shared. */
    int fds[FLUSH_DESCRIPTORS];
    unsigned count;        /* of descriptors */
    struct health *health; /* outlives the image when it is bad */

    pthread_mutex_t lock;

    /* Under lock. */
    uint32_t free;                      /* bit i: fds[i] is in nobody's use */
    struct flush_waiter *first, **last; /* flushes that wait for a descriptor, oldest first */
};

void flush_set_init(struct flush_set *set);

/* Opens the descriptors: before the first write, for a descriptor opened after a failed one may not be
 * told of it.  Returns 0 or -errno.
 */
int flush_set_open(struct image *image);

/* Closes what is open, which may be nothing. */
void flush_set_close(struct image *image);

/* Makes everything written before durable.  Returns 0, or -errno: the error that the disk failed with, now or earlier.
 * Nbdkit's threads; blocks.
 */
int image_flush(struct image *image);

/* Writes with RWF_DSYNC, or by a write and a flush where that cannot be.  Through the page cache it uses
 * a descriptor of the set, through O_DIRECT `fd`.  Returns 0 or -errno.
 */
int image_write_through(struct image *image, int fd, const void *buf, uint64_t length,
                        uint64_t offset);

#endif
