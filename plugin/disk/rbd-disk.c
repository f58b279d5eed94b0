/* SPDX-License-Identifier: BSD-3-Clause */
/* The requests of an RBD image: what a disk means, where librbd means something else.
 *
 * Runs on the threads of requests.  Never opens or closes anything, and knows no librbd.
 */
#include "plugin/disk/rbd-disk.h"

#include <errno.h>
#include <string.h>

#include "pool/schedule-point.h"

/* librbd takes one discard or zero for all the objects of the range at once.  This many bytes at a
 * time bound what is in flight.
 */
#define STEP ((uint64_t)1 << 30)

/* Parts with data that one request for extents reports. */
#define MAX_PARTS 512

/* The largest preferred block that NBD allows, in bytes. */
#define MAX_PREFERRED (32u << 20)
#define MIN_PREFERRED 512u

static struct rbd_disk *rbd_of(const struct disk *disk)
{
    return container_of(disk, struct rbd_disk, disk);
}

/* The cluster no longer accepts this client's writes: another client has broken the lock.  Writes
 * that librbd acknowledged from its cache are lost.
 */
static int note_loss(struct rbd_disk *rbd, int r)
{
    if (r == -ESHUTDOWN)
        health_fail(rbd->health, rbd->name, r);
    return r;
}

static int run(struct rbd_disk *rbd, enum request_op op, unsigned flags, void *buf, uint64_t length,
               uint64_t offset)
{
    struct iovec iov = {.iov_base = buf, .iov_len = length};
    struct request request = {
        .op = op,
        .flags = flags,
        .offset = offset,
        .length = length,
        .iov = &iov,
        .iovcnt = 1,
    };

    return note_loss(rbd, backend_run(rbd->backend, &request));
}

/* --- Size, health, figures --- */

static void put(struct disk *disk)
{
    rbd_disk_put(rbd_of(disk));
}

static uint64_t size(const struct disk *disk)
{
    return atomic_load(&rbd_of(disk)->size);
}

static int health(const struct disk *disk)
{
    return health_error(rbd_of(disk)->health);
}

static void read_pool(const struct disk *disk, struct pool_counters *counters)
{
    pool_read_counters(rbd_of(disk)->room.pool, counters);
}

/* --- Read, write, flush --- */

static int read_bytes(struct disk *disk, void *buf, uint64_t length, uint64_t offset)
{
    int r = run(rbd_of(disk), REQUEST_READ, 0, buf, length, offset);

    /* librbd: the range begins past the end of an image that has become smaller. */
    return r == -EINVAL ? -EIO : r;
}

/* Judges a write or zero that ended with `r`.  librbd refuses a range that begins past the end, and
 * cuts off without an error what lies past the end.  The look at the size comes after the write, so
 * it sees every smaller size that the write can have met.
 */
static int after_write(struct rbd_disk *rbd, int r, uint64_t end)
{
    if (!atomic_load_explicit(&rbd->dirty, memory_order_relaxed))
        atomic_store(&rbd->dirty, true);
    SCHEDULE_POINT();
    int64_t now = ceph_image_size(rbd->image);
    if (now >= 0 && end > (uint64_t)now && (r == 0 || r == -EINVAL))
        return -ENOSPC;
    return r < 0 ? r : now < 0 ? (int)now : 0;
}

int rbd_disk_flush(struct rbd_disk *rbd)
{
    struct rbd_flush *flush = &rbd->flush;

    if (rbd->disk.readonly || health_error(rbd->health) < 0)
        return health_error(rbd->health);
    pthread_mutex_lock(&flush->lock);
    uint64_t wanted = flush->begun + 1;
    while (flush->done < wanted) {
        if (flush->done < flush->begun) {
            progress_at(PLACE_FLUSH_JOIN);
            pthread_cond_wait(&flush->ended, &flush->lock);
            continue;
        }
        flush->begun++;
        pthread_mutex_unlock(&flush->lock);
        atomic_store(&rbd->dirty, false);
        SCHEDULE_POINT();
        int r = run(rbd, REQUEST_FDATASYNC, 0, NULL, 0, 0);
        if (r < 0)
            health_fail(rbd->health, rbd->name, r);
        pthread_mutex_lock(&flush->lock);
        flush->done++;
        pthread_cond_broadcast(&flush->ended);
    }
    pthread_mutex_unlock(&flush->lock);
    return health_error(rbd->health);
}

static int flush_disk(struct disk *disk)
{
    return rbd_disk_flush(rbd_of(disk));
}

/* A durable write begins only on a disk that has not failed. */
static int write_bytes(struct disk *disk, const void *buf, uint64_t length, uint64_t offset,
                       bool fua)
{
    struct rbd_disk *rbd = rbd_of(disk);
    int r = fua ? health_error(rbd->health) : 0;

    if (r < 0)
        return r;
    r = run(rbd, REQUEST_WRITE, 0, (void *)buf, length, offset);
    r = after_write(rbd, r, offset + length);
    return r == 0 && fua ? rbd_disk_flush(rbd) : r;
}

/* --- Zero and trim --- */

/* A zero is never a discard: librbd leaves the old data of a range that is smaller than
 * rbd_discard_granularity_bytes.
 */
static int zero(struct disk *disk, uint64_t length, uint64_t offset, unsigned flags)
{
    struct rbd_disk *rbd = rbd_of(disk);
    unsigned thick = flags & ZERO_MAY_TRIM ? 0 : REQUEST_THICK;
    uint64_t end = offset + length;
    int r = flags & ZERO_FUA ? health_error(rbd->health) : 0;

    if (flags & ZERO_FAST && thick)
        return -EOPNOTSUPP;
    for (uint64_t at = offset; at < end && r == 0; at += STEP) {
        uint64_t step = end - at < STEP ? end - at : STEP;
        r = after_write(rbd, run(rbd, REQUEST_ZEROOUT, thick, NULL, step, at), at + step);
    }
    return r == 0 && flags & ZERO_FUA ? rbd_disk_flush(rbd) : r == -EOPNOTSUPP ? -EIO : r;
}

static int trim(struct disk *disk, uint64_t length, uint64_t offset, unsigned flags)
{
    struct rbd_disk *rbd = rbd_of(disk);
    uint64_t end = offset + length;
    int r = flags & ZERO_FUA ? health_error(rbd->health) : 0;

    for (uint64_t at = offset; at < end && r == 0; at += STEP) {
        r = run(rbd, REQUEST_DISCARD, 0, NULL, end - at < STEP ? end - at : STEP, at);
        atomic_store(&rbd->dirty, true);
        /* Past the end of an image that has become smaller there is nothing to discard. */
        if (r == -EINVAL)
            r = 0;
    }
    return r == 0 && flags & ZERO_FUA ? rbd_disk_flush(rbd) : r;
}

/* --- Extents --- */

struct parts {
    const struct rbd_disk *rbd;
    uint64_t offset, length;
    unsigned count;
    struct extent part[MAX_PARTS]; /* with data */
};

/* -E2BIG ends the walk: the rest is left for another request. */
static int add_part(void *opaque, uint64_t offset, uint64_t length)
{
    struct parts *parts = opaque;
    struct extent *last = parts->count ? &parts->part[parts->count - 1] : NULL;

    if (last && last->offset + last->length == offset) {
        last->length += length;
        return 0;
    }
    if (parts->count == MAX_PARTS) {
        parts->length = offset - parts->offset;
        return -E2BIG;
    }
    parts->part[parts->count++] = (struct extent){.offset = offset, .length = length};
    return 0;
}

static int find_parts(struct request *request)
{
    struct parts *parts = request->opaque;

    parts->count = 0;
    uint64_t length = parts->length;
    int r = ceph_image_data(parts->rbd->image, parts->offset, &length, add_part, parts);
    if (r == -E2BIG)
        return 0;
    parts->length = length;
    return r;
}

static int report(const struct parts *parts, bool only_one,
                  int (*add)(void *opaque, const struct extent *extent), void *opaque)
{
    uint64_t at = parts->offset, end = parts->offset + parts->length;
    int r = 0;

    for (unsigned i = 0; i <= parts->count && at < end && r == 0; i++) {
        uint64_t data = i < parts->count ? parts->part[i].offset : end;
        struct extent hole = {.offset = at, .length = data - at, .hole = true};
        if (hole.length > 0) {
            r = add(opaque, &hole);
            if (only_one)
                return r;
        }
        if (i < parts->count && r == 0) {
            r = add(opaque, &parts->part[i]);
            if (only_one)
                return r;
            at = data + parts->part[i].length;
        } else {
            at = end;
        }
    }
    return r;
}

static int extents(struct disk *disk, uint64_t length, uint64_t offset, bool only_one,
                   int (*add)(void *opaque, const struct extent *extent), void *opaque)
{
    struct rbd_disk *rbd = rbd_of(disk);
    struct parts parts = {.rbd = rbd, .offset = offset, .length = length};
    /* Slow: clients that connect need a worker too, although an OSD with data does not answer. */
    struct request request = {
        .op = REQUEST_CALL,
        .flags = REQUEST_SLOW,
        .call = find_parts,
        .opaque = &parts,
    };

    int r = note_loss(rbd, backend_run(rbd->backend, &request));
    if (r == 0)
        return report(&parts, only_one, add, opaque);
    if (r != -EINVAL && r != -EOPNOTSUPP)
        return r;
    /* Past the end of an image that has become smaller, or unknown: may be anything. */
    struct extent all = {.offset = offset, .length = length};
    return add(opaque, &all);
}

/* librbd has no cache that a hint could fill. */
static void prefetch(struct disk *disk, uint64_t length, uint64_t offset)
{
}

static const struct disk_ops ops = {
    .put = put,
    .size = size,
    .health = health,
    .read_pool = read_pool,
    .read = read_bytes,
    .write = write_bytes,
    .flush = flush_disk,
    .zero = zero,
    .trim = trim,
    .extents = extents,
    .prefetch = prefetch,
};

void rbd_disk_fill(struct rbd_disk *rbd, struct tally *tally)
{
    const struct ceph_image_facts *facts = ceph_image_facts(rbd->image);
    uint64_t preferred = facts->object_size;

    rbd->disk = (struct disk){
        .ops = &ops,
        .name = rbd->name,
        .kind = "RBD image",
        .backend = rbd->backend->ops->name,
        .readonly = facts->readonly,
        .direct = true,
        .preferred_block = preferred > MAX_PREFERRED   ? MAX_PREFERRED
                           : preferred < MIN_PREFERRED ? MIN_PREFERRED
                                                       : (uint32_t)preferred,
        .tally = tally,
    };
}
