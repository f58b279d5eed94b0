/* SPDX-License-Identifier: BSD-3-Clause */
/* One open image, shared by all clients of the disk.
 *
 * image-table.c finds an image, image.c opens, measures and closes it.  Every other file of this
 * folder implements one part of what a disk means, and owns the sub-struct of that name.
 *
 * An image owns its machine room (loop, pool, backend), its share of the bounce memory and its
 * descriptors, so what its storage does reaches no other image.
 */
#ifndef AIODISK_IMAGE_H
#define AIODISK_IMAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "backends/room.h"
#include "plugin/disk/bounce.h"
#include "plugin/disk/disk-tally.h"
#include "plugin/disk/disk.h"
#include "plugin/disk/extents.h"
#include "plugin/disk/flush.h"
#include "plugin/disk/folio.h"
#include "plugin/disk/geometry.h"
#include "plugin/disk/log.h"
#include "plugin/disk/prefetch.h"
#include "plugin/disk/qemu-lock.h"
#include "plugin/disk/range-lock.h"
#include "plugin/disk/transfer.h"
#include "plugin/disk/zero.h"

/* Identifies a disk.  Two descriptors with equal keys refer to the same disk, and a file that gets
 * the inode of a deleted one has another key.
 */
struct image_key {
    bool block;     /* a block device */
    dev_t device;   /* file: st_dev; block device: st_rdev, for a device may have several nodes */
    ino_t inode;    /* file: st_ino; block device: 0 */
    uint64_t birth; /* file: ns since 1970 of its birth (statx(2)); block device: diskseq; or 0 */
};

/* Under the lock of image-table.c. */
enum image_state { IMAGE_OPENING, IMAGE_OPEN, IMAGE_CLOSING };
struct image_entry {
    enum image_state state;
    unsigned references;
    struct image *next;
};

struct image {
    struct disk disk; /* what the layers above see; set by image_open */

    /* Set once by image_new and image_open, before other threads see the image; read by any
     * thread.
     */
    struct image_key key;
    char *name;               /* for messages */
    bool readonly;            /* as served */
    bool wants_readonly;      /* as asked for: -r, or a filter */
    const char *why_readonly; /* why served read-only without being asked, or NULL; static text */
    bool direct;
    bool inherited;      /* from fd=: the descriptor may be impossible to open again */
    int fd;              /* O_DIRECT if direct; carries the QEMU locks */
    int buffered_fd;     /* the same disk through the page cache; equals fd unless direct */
    bool locked;         /* QEMU's locks were taken on fd */
    struct tally *tally; /* counts what happens to the image; or NULL */
    struct room room;
    struct geometry geometry;

    /* Each has its own lock inside, or says which lock it is under. */
    struct flush_set flush;
    struct range_lock ranges;
    struct transfer_state transfer;
    struct folio_state folio;
    struct zero_state zero;
    struct extents_state extents;
    struct prefetch_state prefetch;
    struct bounce_share bounce;
    struct image_entry entry;

    /* Held while the size is measured and stored, so a delayed thread never stores an old size.
     * Taken before the range lock.
     */
    pthread_mutex_t size_lock;
    uint64_t measured; /* bytes: what image_measure said last; set by image_open, under size_lock */
    /* Bytes that are served.  Read by any thread.  Stored under size_lock when a client connects;
     * if direct, also under the range lock for the whole image.
     */
    _Atomic uint64_t size;
};

struct image_options {
    const struct room_config *room;
    bool readonly;
    bool direct;
    enum locking_mode locking;
    bool inherited; /* path_fd is the user's own descriptor, and bounds what may be done */
    int advice;     /* of posix_fadvise(2) about reads through the page cache */
    bool many;      /* one of many images: must leave descriptors for connections */
    /* Counters up to DISK_TALLY_END, which must outlive the image; or NULL.  Used if the image is
     * not open yet.
     */
    struct tally *tally;
};

/* A disk that is open, before it is known whether its image is open already. */
struct image_source {
    struct image_key key;
    int fd; /* through the page cache, for writing unless readonly */
    bool readonly;
    const char *why_readonly; /* as in struct image */
};

/* --- For image-table.c --- */

/* Opens the disk that path_fd refers to, read-only if asked for or if nothing else is possible.
 * Returns 0, and image_close_source or image_new is owed; or -errno and a line in `why`.  Blocks.
 */
int image_open_source(struct image_source *source, int path_fd, const char *name,
                      const struct image_options *options, char why[LOG_LINE_SIZE]);
void image_close_source(struct image_source *source);

/* Would the new image leave too few descriptors for connections?  False unless options->many. */
bool image_takes_last_descriptors(const struct image_source *source,
                                  const struct image_options *options);

/* Makes an image that is not open yet, and takes over the source's descriptor.  Returns NULL when
 * there is no memory; the source is then still the caller's.
 */
struct image *image_new(const struct image_source *source, const char *name,
                        const struct image_options *options);

/* Opens the image: O_DIRECT, geometry, size, locks, flush descriptors, room.  Returns 0, or -errno
 * and a line in `why`; image_close is owed in both cases.  Blocks; takes no lock that another image
 * needs.
 */
int image_open(struct image *image, const struct image_options *options, char why[LOG_LINE_SIZE]);

/* Ends the prefetches, releases the QEMU locks, stops the room and closes every descriptor.  No
 * request is in flight.  Blocks.
 */
void image_close(struct image *image);
void image_free(struct image *image);

/* Measures the size anew.  If the size has changed and the image is direct, waits for the writes
 * in flight.  Any thread but a loop's and the workers'; blocks.
 */
void image_follow_size(struct image *image);

/* --- For the other files of this folder --- */

/* Fills in image->disk from the other fields (image-disk.c).  Called by image_open. */
void image_fill_disk(struct image *image);

/* Returns the disk's size in bytes as it is now, or -errno.  image->size may be less: an end that
 * cannot be read is not served.  Any thread; blocks.
 */
int64_t image_measure(const struct image *image);

/* Must be called before anything is written up to `end` (bytes).  Returns -ENOSPC if the file has
 * become shorter, for a write there would make it grow again; or -errno of statx(2).
 */
int image_before_write(struct image *image, uint64_t end);

/* Must be called after anything may have been written, before the client is told: a flush that
 * began meanwhile does not cover the write.
 */
void image_after_write(struct image *image);

/* Carries out one read or write of `buf` on `fd`, which is image->fd, image->buffered_fd or a
 * descriptor of image->flush.  flags: enum request_flags; REQUEST_PAGE_CACHE is added where it
 * applies.  Returns 0 or -errno; *transferred (if not NULL) becomes the number of bytes that were
 * transferred in either case.  Any thread but a loop's and the workers'; blocks.
 */
int image_transfer(struct image *image, enum request_op op, unsigned flags, int fd, void *buf,
                   uint64_t length, uint64_t offset, uint64_t *transferred);

static inline bool image_key_equal(const struct image_key *a, const struct image_key *b)
{
    return a->block == b->block && a->device == b->device && a->inode == b->inode &&
           a->birth == b->birth;
}

/* unit: a power of two. */
static inline uint64_t align_down(uint64_t n, uint64_t unit)
{
    return n & ~(unit - 1);
}

static inline uint64_t align_up(uint64_t n, uint64_t unit)
{
    return align_down(n + unit - 1, unit);
}

#endif
