/* SPDX-License-Identifier: BSD-3-Clause */
/* One open image, shared by all its connections, whatever names they came by.
 *
 * image-table.c finds it, image.c opens it, geometry.c measures it; the other files each implement one part of
 * what a disk means on it: transfer.c, flush.c, zero.c, extents.c, lock.c.
 */
#ifndef AIODISK_IMAGE_H
#define AIODISK_IMAGE_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "backends/backend.h"
#include "plugin/disk/flush.h"
#include "plugin/disk/geometry.h"
#include "plugin/disk/log.h"
#include "plugin/disk/qemu-lock.h"
#include "plugin/disk/range-lock.h"

#define IMAGE_MAX_REQUEST (64u << 20) /* bytes of data, advertised and kept by nbdkit */

/* What makes two descriptors the same disk. */
struct image_key {
    bool block; /* then device is st_rdev and inode 0, for a block device may have several nodes */
    dev_t device;
    ino_t inode;
};

/* How many write into one file's page cache at once. */
#define IMAGE_WRITE_TURNS 2u

/* What is known of a way to zero or discard: found out by trying, remembered. */
enum ability { ABILITY_UNKNOWN, ABILITY_YES, ABILITY_NO };

enum image_state { IMAGE_OPENING, IMAGE_OPEN, IMAGE_CLOSING };

struct image {
    /* Set once by image_open before anybody else sees the image, read by any thread. */
    struct image_key key;
    char *name; /* for messages */
    struct backend *backend;
    bool readonly;       /* as served */
    bool wants_readonly; /* as asked for: -r, or a filter */
    bool direct;
    bool inherited;  /* from fd=: cannot always be reopened */
    int fd;          /* O_DIRECT if direct; carries the locks */
    int buffered_fd; /* the same file through the page cache; == fd unless direct */
    struct geometry geometry;

    /* Own locks inside. */
    struct flush_set flush;
    struct range_lock ranges;

    /* One is held during a write into the page cache, see transfer.c.  After the range lock, before the pool's. */
    bool takes_turns; /* set once */
    sem_t write_turns;

    /* Held during fallocate(2) on a file, see zero.c.  After the range lock, before the pool's. */
    pthread_mutex_t fallocate_lock;

    /* Any thread.  Changes only when a client connects, and, if direct, under the range lock for the whole image. */
    _Atomic uint64_t size; /* bytes */

    /* Any thread, relaxed: hints and figures that order nothing else. */
    atomic_bool dirty;    /* something was written since the last flush began */
    atomic_bool no_dsync; /* RWF_DSYNC is not to be had */
    atomic_bool no_seek;  /* SEEK_DATA is not to be had */
    _Atomic int can_punch, can_zero_range, can_allocate, can_zeroout,
        can_discard; /* enum ability */

    /* Under prefetch_lock. */
    pthread_mutex_t prefetch_lock;
    pthread_cond_t prefetch_done;
    unsigned prefetches; /* in flight */
    bool closing;        /* no more of them, and those in flight are to end soon */

    /* Under the lock of the list of images; keep is set once. */
    enum image_state state;
    unsigned references;
    bool keep; /* stays open without references, as long as its name means it */
    struct image *next;
};

struct image_options {
    struct backend *backend;
    bool readonly;
    bool direct;
    enum locking_mode locking;
    bool inherited; /* path_fd is the user's own descriptor, and bounds what may be done */
    bool keep;
    bool callers_write; /* requests' own threads make the calls, not workers or the kernel's */
};

/* --- image.c: one image; image_new to image_follow_size are for image-table.c --- */

/* A closed one, or NULL when there is no memory. */
struct image *image_new(const struct image_key *key, const char *name,
                        const struct image_options *options);

/* Returns 0, or -errno and a line in `why`; then, too, image_close is owed.  Blocks. */
int image_open(struct image *image, int path_fd, const struct image_options *options,
               char why[LOG_LINE_SIZE]);

/* Ends what runs in the background, and closes every descriptor: the locks go with them.  Blocks. */
void image_close(struct image *image);
void image_free(struct image *image);

/* Reads the size anew.  Waits for the writes under way, if it has changed and the image is direct. */
void image_follow_size(struct image *image);

/* Would an image that is served read-only be opened for writing now? */
bool image_could_be_written(const struct image *image, int path_fd);

/* The disk's size in bytes as it is now, or -errno. */
int64_t image_measure(const struct image *image);

/* To be called before anything is written up to `end`: -ENOSPC if the file has been cut short meanwhile,
 * for writing there would grow it back.
 */
int image_before_write(struct image *image, uint64_t end);

/* To be called after anything may have been written, before the client is told: a flush that began
 * meanwhile does not cover it.
 */
void image_after_write(struct image *image);

static inline bool image_key_equal(const struct image_key *a, const struct image_key *b)
{
    return a->block == b->block && a->device == b->device && a->inode == b->inode;
}

static inline uint64_t align_down(uint64_t n, uint64_t unit)
{
    return n & ~(unit - 1);
}

static inline uint64_t align_up(uint64_t n, uint64_t unit)
{
    return align_down(n + unit - 1, unit);
}

#endif
