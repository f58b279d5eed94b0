/* SPDX-License-Identifier: BSD-3-Clause */
/* Files and block devices as an implementation of struct disk.  See disk.h.
 *
 * Each function leads to the function of the same name of another file in this folder, on the same
 * thread.  Decides nothing.
 */
#include "plugin/disk/health.h"
#include "plugin/disk/image-table.h"
#include "plugin/disk/image.h"

static struct image *image_of(const struct disk *disk)
{
    return container_of(disk, struct image, disk);
}

static void put(struct disk *disk)
{
    image_put(image_of(disk));
}

static uint64_t size(const struct disk *disk)
{
    return atomic_load(&image_of(disk)->size);
}

static int health(const struct disk *disk)
{
    return image_health(image_of(disk));
}

static void read_pool(const struct disk *disk, struct pool_counters *counters)
{
    pool_read_counters(image_of(disk)->room.pool, counters);
}

static int disk_read(struct disk *disk, void *buf, uint64_t length, uint64_t offset)
{
    return image_read(image_of(disk), buf, length, offset);
}

static int disk_write(struct disk *disk, const void *buf, uint64_t length, uint64_t offset,
                      bool fua)
{
    return image_write(image_of(disk), buf, length, offset, fua);
}

static int flush(struct disk *disk)
{
    return image_flush(image_of(disk));
}

static int zero(struct disk *disk, uint64_t length, uint64_t offset, unsigned flags)
{
    return image_zero(image_of(disk), length, offset, flags);
}

static int trim(struct disk *disk, uint64_t length, uint64_t offset, unsigned flags)
{
    return image_trim(image_of(disk), length, offset, flags);
}

static int extents(struct disk *disk, uint64_t length, uint64_t offset, bool only_one,
                   int (*add)(void *opaque, const struct extent *extent), void *opaque)
{
    return image_extents(image_of(disk), length, offset, only_one, add, opaque);
}

static void prefetch(struct disk *disk, uint64_t length, uint64_t offset)
{
    image_prefetch(image_of(disk), length, offset);
}

static const struct disk_ops ops = {
    .put = put,
    .size = size,
    .health = health,
    .read_pool = read_pool,
    .read = disk_read,
    .write = disk_write,
    .flush = flush,
    .zero = zero,
    .trim = trim,
    .extents = extents,
    .prefetch = prefetch,
};

void image_fill_disk(struct image *image)
{
    image->disk = (struct disk){
        .ops = &ops,
        .name = image->name,
        .kind = image->key.block ? "block device" : "file",
        .backend = image->room.backend->ops->name,
        .readonly = image->readonly,
        .direct = image->direct,
        .rotational = image->geometry.rotational,
        .preferred_block = image->geometry.preferred_block,
        .tally = image->tally,
    };
}
