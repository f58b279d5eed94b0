/* SPDX-License-Identifier: BSD-3-Clause */
/* The units in which a disk wants to be used. */
#ifndef AIODISK_GEOMETRY_H
#define AIODISK_GEOMETRY_H

#include <stdbool.h>
#include <stdint.h>

struct image;

struct geometry {
    /* Set once by image_probe_geometry, before other threads see the image; read by any thread.
     * All sizes are in bytes, and powers of two.
     */
    uint32_t align;     /* offset and length of direct I/O; 1 unless direct */
    uint32_t mem_align; /* memory of direct I/O; 1 unless direct */
    uint32_t granule;   /* >= align: what fallocate(2), BLKZEROOUT and BLKDISCARD take without doing
                         * harm in the page cache; block device: >= sector
                         */
    uint32_t sector;    /* of a block device: its logical block */
    uint32_t preferred_block;
    bool rotational;
    long fs_type; /* of a file: f_type of statfs(2), one for ext2, ext3 and ext4; block device: 0 */
};

/* Fills in image->geometry.  page: bytes of a page of the page cache, a power of two.  Returns 0;
 * -ENOTSUP when direct I/O does not work on image->fd; -ENOMEM; or -errno of fstat(2).  Called by
 * image_open; blocks.
 */
int image_probe_geometry(struct image *image, uint32_t page);

#endif
