/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds out the units in which a disk wants to be used.  See geometry.h.
 *
 * Runs on nbdkit's threads, when an image is opened.  Reads a few blocks; never writes to the disk
 * and waits for no other image.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "plugin/disk/image.h"

#define PAGE_BYTES 4096u
#define SECTOR_BYTES 512u
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

/* Does a direct read in units of `unit` bytes work?  The read starts at one unit: no larger power
 * of two divides that offset.
 */
static bool trial_read(int fd, void *memory, uint32_t unit)
{
    ssize_t r;

    do {
        r = pread(fd, memory, unit, unit);
    } while (r < 0 && errno == EINTR);
    /* EIO is a bad sector: it says nothing about the alignment. */
    return r >= 0 || errno == EIO;
}

static int try_units(struct image *image)
{
    void *memory = aligned_alloc(MAX_ALIGN, MAX_ALIGN);
    int r = -ENOTSUP;

    if (!memory)
        return -ENOMEM;
    for (uint32_t unit = SECTOR_BYTES; unit <= MAX_ALIGN && r < 0; unit *= 2) {
        if (trial_read(image->fd, memory, unit)) {
            image->geometry.align = unit;
            image->geometry.mem_align = unit > PAGE_BYTES ? unit : PAGE_BYTES;
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
    if (image->geometry.align >= PAGE_BYTES)
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
        image->geometry.mem_align = sector > (int)PAGE_BYTES ? (uint32_t)sector : PAGE_BYTES;
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
    if (image->geometry.align > MAX_ALIGN || (image->geometry.mem_align > PAGE_BYTES &&
                                              image->geometry.mem_align > image->geometry.align))
        return try_units(image);
    /* Some filesystems accept O_DIRECT in open(2) and refuse the I/O. */
    void *memory = aligned_alloc(MAX_ALIGN, MAX_ALIGN);
    if (!memory)
        return -ENOMEM;
    bool works = trial_read(image->fd, memory, image->geometry.align);
    free(memory);
    return works ? 0 : try_units(image);
}

/* Reads queue/rotational of a disk, or of the disk that a partition lies on. */
static bool is_rotational(dev_t device)
{
    static const char *const files[] = {"queue/rotational", "../queue/rotational"};
    char path[96];
    bool rotational = false;

    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s", major(device), minor(device),
                 files[i]);
        FILE *file = fopen(path, "re");
        if (!file)
            continue;
        rotational = fgetc(file) == '1';
        fclose(file);
        break;
    }
    return rotational;
}

static void measure_block_device(struct image *image)
{
    int sector = SECTOR_BYTES;
    unsigned physical = 0, optimal = 0;

    ioctl(image->fd, BLKSSZGET, &sector);
    ioctl(image->fd, BLKPBSZGET, &physical);
    ioctl(image->fd, BLKIOOPT, &optimal);
    image->geometry.sector = is_power_of_two(sector) ? (uint32_t)sector : PAGE_BYTES;
    image->geometry.granule = image->geometry.sector > image->geometry.align
                                  ? image->geometry.sector
                                  : image->geometry.align;
    image->geometry.preferred_block = is_power_of_two(optimal)    ? optimal
                                      : is_power_of_two(physical) ? physical
                                                                  : image->geometry.sector;
    image->geometry.rotational = is_rotational(image->key.device);
}

static int measure_file(struct image *image)
{
    struct statfs fs;
    struct stat st;

    if (fstat(image->fd, &st) < 0 || fstatfs(image->fd, &fs) < 0)
        return -errno;
    image->geometry.sector = SECTOR_BYTES;
    image->geometry.preferred_block =
        is_power_of_two(st.st_blksize) ? (uint32_t)st.st_blksize : PAGE_BYTES;
    /* fallocate(2) zeroes parts of a filesystem block through the page cache.  A page that direct
     * writes also touch must not become dirty there: its writeback would undo the direct writes.
     */
    image->geometry.granule = 1;
    if (image->direct) {
        image->geometry.granule =
            image->geometry.align > PAGE_BYTES ? image->geometry.align : PAGE_BYTES;
        while (image->geometry.granule < (uint64_t)fs.f_bsize &&
               image->geometry.granule < BOUNCE_MAX)
            image->geometry.granule *= 2;
    }
    image->geometry.rotational = is_rotational(image->key.device);
    return 0;
}

int image_probe_geometry(struct image *image)
{
    int r = probe_alignment(image);

    if (r == 0 && image->key.block)
        measure_block_device(image);
    else if (r == 0)
        r = measure_file(image);
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
