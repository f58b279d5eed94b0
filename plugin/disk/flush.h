/* SPDX-License-Identifier: BSD-3-Clause */
/* What a flush promises: when it returns 0, everything written before is durable; and a disk that
 * has lost a write never returns 0 again.
 *
 * The kernel reports a lost writeback once for each open file description (errseq_t, fsync(2)).  Of
 * two syncs at once on one descriptor only one would get the report, and the other would return a
 * false ok.  So each sync runs on a descriptor that no other sync uses at that time.
 */
#ifndef AIODISK_FLUSH_H
#define AIODISK_FLUSH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct flush_waiter;
struct health;
struct image;

/* Descriptors for syncs; also the most syncs of one image at once. */
#define FLUSH_DESCRIPTORS 16

struct flush_set {
    /* Set once by flush_set_open, read by any thread. */
    int fds[FLUSH_DESCRIPTORS];
    unsigned count;        /* of descriptors; 0 if the image is read-only */
    struct health *health; /* of the disk */

    /* Any thread, relaxed: orders nothing else. */
    atomic_bool dirty;    /* something was written since the last flush began */
    atomic_bool no_dsync; /* RWF_DSYNC does not work on this image */

    pthread_mutex_t lock;

    /* Under lock. */
    uint32_t free;                      /* bit i: nobody uses fds[i] */
    struct flush_waiter *first, **last; /* flushes that wait for a descriptor, oldest first */
};

void flush_set_init(struct flush_set *set);

/* Opens the descriptors.  Called by image_open, before the first write: a descriptor that is opened
 * after a failed writeback may not report the failure.  Returns 0, -ENOMEM, or -errno of open(2).
 */
int flush_set_open(struct image *image);

/* Decides whether FUA writes use RWF_DSYNC.  Called by image_open, when the room is open. */
void flush_set_choose(struct image *image);

/* Closes the descriptors.  Called by image_close, also after flush_set_open failed. */
void flush_set_close(struct image *image);

void flush_set_destroy(struct flush_set *set);

/* Makes everything that was written before durable.  Returns 0, or the -errno that the disk failed
 * with, now or earlier.  Any thread but a loop's and the workers'; blocks.
 */
int image_flush(struct image *image);

/* Writes `length` bytes of `buf` durably: with RWF_DSYNC (pwritev2(2)), or by a write and a flush
 * where RWF_DSYNC does not work.  fd is image->fd or image->buffered_fd; through the page cache the
 * write uses a descriptor of the set instead.  Returns 0 or -errno.  As image_flush.
 */
int image_write_through(struct image *image, int fd, const void *buf, uint64_t length,
                        uint64_t offset);

#endif
