/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk: what nbdkit's face (plugin/) and the figures (plugin/watch/) talk to.
 *
 * A disk has one implementation, chosen when the disk is opened: files and block devices
 * (image-disk.c), or Ceph RBD images (rbd-disk.c).  An implementation embeds struct disk in a
 * struct of its own and fills in the fields and the table of functions.  Nothing above this
 * interface knows the implementation.
 *
 * A disk is shared by all clients that opened it.  Requests of any number of threads run at once.
 */
#ifndef AIODISK_DISK_H
#define AIODISK_DISK_H

#include <stdbool.h>
#include <stdint.h>

struct disk;
struct pool_counters;
struct tally;

/* The largest request that carries data, in bytes.  nbdkit advertises and enforces it. */
#define DISK_MAX_REQUEST (64u << 20)

/* How an implementation gets the tally of a disk that it opens: by find(opaque), once it knows that
 * the disk exists.  Names that clients make up get no tally.  The tally outlives the disk; NULL:
 * nothing is counted.
 */
struct tally_finder {
    struct tally *(*find)(void *opaque);
    void *opaque;
};

struct extent {
    uint64_t offset, length; /* bytes */
    bool hole;               /* reads as zeros; otherwise the extent may hold anything */
};

enum zero_flags {
    ZERO_MAY_TRIM = 1 << 0, /* a hole is as good as zeros */
    /* Only if nobody has to write zeros, neither this plugin nor the storage: otherwise
     * -EOPNOTSUPP, and no byte is changed.
     */
    ZERO_FAST = 1 << 1,
    ZERO_FUA = 1 << 2, /* durable when it returns 0 */
    /* Not even for a moment may the range be a hole, which other programs could take the space of.
     * Not together with ZERO_MAY_TRIM.
     */
    ZERO_NO_PUNCH = 1 << 3,
};

/* The requests (read to prefetch) run on any thread but a loop's and the workers', and block.
 * Offsets and lengths are in bytes, and lie within the size that the client was told.  Each request
 * returns 0 or -errno.
 */
struct disk_ops {
    /* Gives the reference back.  The last reference flushes and closes the disk.  Blocks.  nbdkit's
     * threads.
     */
    void (*put)(struct disk *disk);

    /* The size in bytes, as it was when the last client connected.  Any thread; does not block. */
    uint64_t (*size)(const struct disk *disk);

    /* Returns 0, or the -errno of the first flush that failed: from then on the disk is failed, and
     * stays so until the process ends.  Any thread; does not block.
     */
    int (*health)(const struct disk *disk);

    /* Reads the counters of the disk's worker pool.  Any thread; takes the pool's lock. */
    void (*read_pool)(const struct disk *disk, struct pool_counters *counters);

    /* -EIO also for a read past the end of a disk that has become smaller. */
    int (*read)(struct disk *disk, void *buf, uint64_t length, uint64_t offset);

    /* With fua the bytes are durable when it returns 0.  -ENOSPC also for a write past the end of a
     * disk that has become smaller.
     */
    int (*write)(struct disk *disk, const void *buf, uint64_t length, uint64_t offset, bool fua);

    /* Makes everything that was written before durable.  Returns 0, or the -errno that the disk
     * failed with, now or earlier.
     */
    int (*flush)(struct disk *disk);

    /* Makes up to 4 GiB - 1 bytes read as zeros.  flags: enum zero_flags.  Without ZERO_MAY_TRIM no
     * hole is left.  -EOPNOTSUPP only with ZERO_FAST.
     */
    int (*zero)(struct disk *disk, uint64_t length, uint64_t offset, unsigned flags);

    /* Discards up to 4 GiB - 1 bytes, which may read as anything afterwards.  A hint: what cannot
     * be discarded stays.  flags: ZERO_FUA or 0.
     */
    int (*trim)(struct disk *disk, uint64_t length, uint64_t offset, unsigned flags);

    /* Calls add(opaque, extent) for consecutive extents from `offset` on, until `length` bytes are
     * covered or further extents would take long, but for one extent at least; or for the first
     * extent only with only_one.  A hole is never reported where there
     * were data when the call began.  Also returns what `add` returned if that was not 0.
     */
    int (*extents)(struct disk *disk, uint64_t length, uint64_t offset, bool only_one,
                   int (*add)(void *opaque, const struct extent *extent), void *opaque);

    /* Starts to read the range before a client asks for the data.  Best effort; does not wait. */
    void (*prefetch)(struct disk *disk, uint64_t length, uint64_t offset);
};

struct disk {
    /* Set once before the disk has its first client; read by any thread. */
    const struct disk_ops *ops;
    const char *name;         /* for messages */
    const char *kind;         /* what it is, for messages; static text */
    const char *backend;      /* how its requests reach the storage; static text */
    bool readonly;            /* as served */
    bool direct;              /* requests do not go through the page cache */
    bool rotational;          /* seeks are slow */
    uint32_t preferred_block; /* bytes, a power of two */
    struct tally *tally;      /* counts what happens to the disk; or NULL */
};

#endif
