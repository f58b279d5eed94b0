/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds out the units in which a disk wants to be used.  See geometry.h.
 *
 * Runs on nbdkit's threads, when an image is opened.  Reads a few blocks; never writes to the disk
 * and waits for no other image.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "plugin/disk/image.h"

#define SECTOR_BYTES 512u
#define MEMORY_BYTES 4096u              /* the alignment that each bounce buffer has at least */
#define USUAL_BLOCK 4096u               /* bytes; what most filesystems use */
#define MAX_SEEKS 16                    /* extents that are looked at for a trial read */
#define MAX_ALIGN 65536u                /* bytes; no known disk wants more */
#define MAX_PREFERRED_BLOCK (32u << 20) /* bytes; the NBD protocol's maximum */

/* XFS_IOC_DIOINFO, from xfsctl(3).  Declared here so that a build does not need xfslibs-dev. */
struct xfs_dioinfo {
    uint32_t mem, min_io, max_io; /* bytes */
};
#define XFS_DIOINFO _IOR('X', 30, struct xfs_dioinfo)

static bool is_power_of_two(uint64_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Opens a file of sysfs that describes the queue of a disk, or of the disk that holds a partition.
 * Returns NULL if there is none, as for the devices of network filesystems.
 */
static FILE *open_queue(dev_t device, const char *name)
{
    static const char *const folders[] = {"queue", "../queue"};
    char path[96];
    FILE *file = NULL;

    for (int i = 0; i < 2 && !file; i++) {
        snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s/%s", major(device), minor(device),
                 folders[i], name);
        file = fopen(path, "re");
    }
    return file;
}

/* Does a direct read of `unit` bytes at `offset` work? */
static bool reads_direct(int fd, void *memory, uint32_t unit, uint64_t offset)
{
    ssize_t r;

    do {
        r = pread(fd, memory, unit, offset);
    } while (r < 0 && errno == EINTR);
    /* EIO is a bad sector: it says nothing about the alignment. */
    return r >= 0 || errno == EIO;
}

/* Finds a place where a direct read of `unit` bytes shows whether `unit` works: an odd multiple of
 * the unit, which no larger power of two divides, in allocated data.  The kernel fills a hole with
 * zeros before it looks at the alignment, so a read of a hole succeeds with any unit.
 */
static bool find_proof(const struct image *image, uint32_t unit, uint64_t *offset)
{
    off_t data = 0, hole = 0;
    struct stat st;

    *offset = unit;
    if (image->key.block)
        return true;
    if (fstat(image->fd, &st) < 0)
        return false;
    /* A filesystem without SEEK_HOLE reports the whole file as data, also if it has holes. */
    if (lseek(image->fd, 0, SEEK_HOLE) >= st.st_size && st.st_blocks * 512 < st.st_size)
        return false;
    for (int i = 0; i < MAX_SEEKS; i++) {
        data = lseek(image->fd, hole, SEEK_DATA);
        hole = data < 0 ? -1 : lseek(image->fd, data, SEEK_HOLE);
        if (hole <= data)
            return false;
        *offset = align_up(data, unit);
        if (*offset % (2 * unit) == 0)
            *offset += unit;
        if (*offset + unit <= (uint64_t)hole)
            return true;
    }
    return false;
}

/* The logical block of the disk below a file, or 0 if that is not known. */
static uint32_t logical_block_below(const struct image *image)
{
    unsigned long bytes = 0;

    FILE *file = open_queue(image->key.device, "logical_block_size");
    if (file) {
        if (fscanf(file, "%lu", &bytes) != 1)
            bytes = 0;
        fclose(file);
    }
    return is_power_of_two(bytes) && bytes <= MAX_ALIGN ? (uint32_t)bytes : 0;
}

/* Finds the unit of direct I/O by trial.  A unit below the one that is safe without proof
 * (USUAL_BLOCK, or the block of the disk below) counts only where the trial proves it: writes in
 * a smaller unit would fail on a disk of 4096-byte blocks.
 */
static int try_units(struct image *image)
{
    uint32_t safe = larger(logical_block_below(image), USUAL_BLOCK);
    void *memory = aligned_alloc(MAX_ALIGN, MAX_ALIGN);
    int r = -ENOTSUP;

    if (!memory)
        return -ENOMEM;
    for (uint32_t unit = SECTOR_BYTES; unit <= MAX_ALIGN && r < 0; unit *= 2) {
        uint64_t offset;
        bool proves = find_proof(image, unit, &offset);

        if (!proves && unit < safe)
            continue;
        if (!proves)
            offset = unit;
        if (reads_direct(image->fd, memory, unit, offset)) {
            image->geometry.align = unit;
            image->geometry.mem_align = larger(unit, MEMORY_BYTES);
            r = 0;
        }
    }
    free(memory);
    return r;
}

/* Asks statx(2) about direct I/O on this file.  Returns 0, -ENOTSUP (the file has no direct I/O),
 * or -ENODATA (no answer).
 */
static int ask_statx(struct image *image)
{
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(image->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) < 0 ||
        !(stx.stx_mask & STATX_DIOALIGN))
        return -ENODATA;
    if (stx.stx_dio_offset_align == 0)
        return -ENOTSUP;
    if (!is_power_of_two(stx.stx_dio_offset_align) || !is_power_of_two(stx.stx_dio_mem_align))
        return -ENODATA;
    image->geometry.align = stx.stx_dio_offset_align;
    image->geometry.mem_align = stx.stx_dio_mem_align;
    /* A driver whose sector is a page may take every segment for a whole page: zram reports 512
     * here, and stores wrong bytes in memory that is not aligned to pages (seen on Linux 6.18).
     */
    if (image->geometry.align >= MEMORY_BYTES)
        image->geometry.mem_align = image->geometry.align;
    return 0;
#else
    return -ENODATA;
#endif
}

static int ask_ioctls(struct image *image)
{
    struct xfs_dioinfo info;
    int sector;

    if (image->key.block) {
        if (ioctl(image->fd, BLKSSZGET, &sector) < 0 || !is_power_of_two(sector))
            return -ENODATA;
        image->geometry.align = sector;
        image->geometry.mem_align = larger(sector, MEMORY_BYTES);
        return 0;
    }
    if (ioctl(image->fd, XFS_DIOINFO, &info) < 0 || !is_power_of_two(info.min_io) ||
        !is_power_of_two(info.mem))
        return -ENODATA;
    image->geometry.align = info.min_io;
    image->geometry.mem_align = info.mem;
    return 0;
}

static int probe_alignment(struct image *image)
{
    image->geometry.align = image->geometry.mem_align = 1;
    if (!image->direct)
        return 0;
    int r = ask_statx(image);
    if (r == -ENODATA)
        r = ask_ioctls(image);
    if (r == -ENODATA)
        return try_units(image);
    if (r < 0)
        return r;
    if (image->geometry.align > MAX_ALIGN || (image->geometry.mem_align > MEMORY_BYTES &&
                                              image->geometry.mem_align > image->geometry.align))
        return try_units(image);
    /* Some filesystems accept O_DIRECT in open(2) and refuse the I/O. */
    void *memory = aligned_alloc(MAX_ALIGN, MAX_ALIGN);
    if (!memory)
        return -ENOMEM;
    bool works = reads_direct(image->fd, memory, image->geometry.align, image->geometry.align);
    free(memory);
    return works ? 0 : try_units(image);
}

static bool is_rotational(dev_t device)
{
    FILE *file = open_queue(device, "rotational");

    if (!file)
        return false;
    bool rotational = fgetc(file) == '1';
    fclose(file);
    return rotational;
}

static void measure_block_device(struct image *image, uint32_t page)
{
    int sector = SECTOR_BYTES;
    unsigned physical = 0, optimal = 0;

    ioctl(image->fd, BLKSSZGET, &sector);
    ioctl(image->fd, BLKPBSZGET, &physical);
    ioctl(image->fd, BLKIOOPT, &optimal);
    image->geometry.sector = is_power_of_two(sector) ? (uint32_t)sector : USUAL_BLOCK;
    /* In the page cache a zero of a part of a page may be undone, before Linux 6.15:
     *   zero: drops the page from the cache;
     *   a write beside the zeroed part: reads the page from the device, with the old bytes;
     *   zero: zeroes its part on the device;
     *   the write: changes its bytes in the page, and the writeback restores the old bytes.
     * So only whole pages go to the kernel's calls, and zeros are written into the others: the
     * kernel lets one write at a time into a page.
     *
     * With O_DIRECT, a device of larger sectors may end in a part of a sector, which goes through
     * the page cache, as the tail of a file does.
     */
    bool caches = !image->direct || image->geometry.sector > SECTOR_BYTES;
    image->geometry.granule = larger(image->geometry.sector, caches ? page : 1);
    image->geometry.granule = larger(image->geometry.granule, image->geometry.align);
    image->geometry.preferred_block = is_power_of_two(optimal)    ? optimal
                                      : is_power_of_two(physical) ? physical
                                                                  : image->geometry.sector;
    image->geometry.rotational = is_rotational(image->key.device);
}

static int measure_file(struct image *image, uint32_t page)
{
    struct statfs fs;
    struct stat st;

    if (fstat(image->fd, &st) < 0 || fstatfs(image->fd, &fs) < 0)
        return -errno;
    image->geometry.sector = SECTOR_BYTES;
    image->geometry.preferred_block =
        is_power_of_two(st.st_blksize) ? (uint32_t)st.st_blksize : USUAL_BLOCK;
    /* fallocate(2) zeroes parts of a filesystem block through the page cache.  A page that direct
     * writes also touch must not become dirty there: its writeback would undo the direct writes.
     */
    image->geometry.granule = 1;
    if (image->direct) {
        image->geometry.granule = larger(image->geometry.align, page);
        while (image->geometry.granule < (uint64_t)fs.f_bsize &&
               image->geometry.granule < BOUNCE_MAX)
            image->geometry.granule *= 2;
    }
    image->geometry.rotational = is_rotational(image->key.device);
    image->geometry.fs_type = (long)fs.f_type;
    return 0;
}

int image_probe_geometry(struct image *image, uint32_t page)
{
    int r = probe_alignment(image);

    if (r == 0 && image->key.block)
        measure_block_device(image, page);
    else if (r == 0)
        r = measure_file(image, page);
    if (r < 0)
        return r;
    if (image->geometry.preferred_block < image->geometry.align)
        image->geometry.preferred_block = image->geometry.align;
    if (image->geometry.preferred_block < SECTOR_BYTES)
        image->geometry.preferred_block = SECTOR_BYTES;
    if (image->geometry.preferred_block > MAX_PREFERRED_BLOCK)
        image->geometry.preferred_block = MAX_PREFERRED_BLOCK;
    return 0;
}
