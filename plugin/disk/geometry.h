/* SPDX-License-Identifier: BSD-3-Clause */
/* The units in which a disk wants to be used. */
#ifndef AIODISK_GEOMETRY_H
#define AIODISK_GEOMETRY_H

#include <stdbool.h>
#include <stdint.h>

struct image;

struct geometry {
    /* Set once by image_probe_geometry before the image is shared, read by any thread.  All in bytes, powers of two. */
    uint32_t align;     /* offset and length of direct I/O; 1 unless direct */
    uint32_t mem_align; /* memory of direct I/O; 1 unless direct */
    uint32_t granule;   /* >= align: what fallocate can take without the page cache */
    uint32_t sector;    /* unit of BLKZEROOUT and BLKDISCARD */
    uint32_t preferred_block;
    bool rotational;
};

/* Fills in image->geometry.  Returns 0, or -ENOTSUP when direct I/O is not to be had on image->fd. */
int image_probe_geometry(struct image *image);

#endif
