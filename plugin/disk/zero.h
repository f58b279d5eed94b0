/* SPDX-License-Identifier: BSD-3-Clause */
/* Zeroing and discarding without sending the zeros. */
#ifndef AIODISK_ZERO_H
#define AIODISK_ZERO_H

#include <stdint.h>

struct image;

enum zero_flags {
    ZERO_MAY_TRIM = 1 << 0, /* a hole is as good as zeros */
    ZERO_FAST =
        1
        << 1, /* only if no zeros need be written, by us or by the kernel: else -EOPNOTSUPP, nothing touched */
    ZERO_FUA = 1 << 2,
};

/* Each returns 0 or -errno, -EOPNOTSUPP only for ZERO_FAST.  Up to 4 GiB - 1; nbdkit's threads; blocks. */
int image_zero(struct image *image, uint64_t length, uint64_t offset, unsigned flags);
int image_trim(struct image *image, uint64_t length, uint64_t offset, unsigned flags);

#endif
