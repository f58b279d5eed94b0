/* SPDX-License-Identifier: BSD-3-Clause */
/* What units a disk wants to be used in.  See image.h.
 *
 * Runs on nbdkit's threads, when an image is opened.  Reads, and writes nothing.
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

#include "plugin/disk/bounce.h"
#include "plugin/disk/image.h"

#define PAGE_BYTES 4096u
#define SECTOR_BYTES 512u
#define MAX_ALIGN 65536u                /* nothing known wants more */
#define MAX_PREFERRED_BLOCK (32u << 20) /* NBD protocol */

/* ioctl_xfs_dioinfo, from xfsctl(3): xfslibs-dev is not asked of builders for these three numbers. */
struct xfs_dioinfo {
    uint32_t mem, min_io, max_io; /* bytes */
};
#define XFS_DIOINFO _IOR('X', 30, struct xfs_dioinfo)

static bool is_power_of_two(uint64_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

/* Does a direct read in units of `unit` bytes work?  It starts at one unit, which no larger power of two divides. */
static bool trial_read(int fd, void *memory, uint32_t unit)
{
    ssize_t r;

    do {
        r = pread(fd, memory, unit, unit);
    } while (r < 0 && errno == EINTR);
    /* A bad sector is no matter of alignment. */
    return r >= 0 || errno == EIO;
}

static int try_units(struct image *image)
{
    struct bounce bounce;
    int r = -ENOTSUP;

    if (bounce_get(&bounce, MAX_ALIGN) < 0)
        return -ENOMEM;
    for (uint32_t unit = SECTOR_BYTES; unit <= MAX_ALIGN && r < 0; unit *= 2) {
        if (trial_read(image->fd, bounce.memory, unit)) {
            image->geometry.align = unit;
            image->geometry.mem_align = unit > PAGE_BYTES ? unit : PAGE_BYTES;
            r = 0;
        }
    }
    bounce_put(&bounce);
    return r;
}

/* What the kernel says of direct I/O on this file: 0, -ENOTSUP (it says no), -ENODATA (it says nothing). */
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
    /* A driver whose sector is a page may take every segment for a whole page: zram says 512 here, and puts the wrong bytes
     * into memory that is not page aligned (seen on Linux 6.18).
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
    struct bounce bounce;

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
    /* Some filesystems take O_DIRECT at open and refuse the I/O. */
    if (bounce_get(&bounce, MAX_ALIGN) < 0)
        return -ENOMEM;
    r = trial_read(image->fd, bounce.memory, image->geometry.align) ? 0 : -ENOTSUP;
    bounce_put(&bounce);
    return r == 0 ? 0 : try_units(image);
}

/* The unit of queue/rotational, for a disk and for a partition of one. */
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
    /* fallocate zeroes parts of a filesystem block through the page cache.  Pages that direct
     * writes also touch must not be left dirty there: written back later, they would undo these.
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
