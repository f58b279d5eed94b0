/* SPDX-License-Identifier: BSD-3-Clause */
/* What a request may do to the space that a disk has allocated: discard= and detect-zeroes=.
 *
 * The policy stands above the disk, so it is the same for every kind of disk.
 */
#ifndef AIODISK_SPACE_H
#define AIODISK_SPACE_H

#include <stddef.h>

#include "plugin/disk/disk.h"

/* QEMU's names. */
enum discard_mode {
    DISCARD_UNMAP,  /* a trim, and a zero that may trim, gives space back */
    DISCARD_IGNORE, /* no request gives space back */
};

enum detect_zeroes_mode {
    DETECT_ZEROES_OFF,
    DETECT_ZEROES_ON,    /* a write of zeros becomes a zero that must not trim */
    DETECT_ZEROES_UNMAP, /* a write of zeros becomes a zero that may trim */
};

struct space_policy {
    /* Set before the first request; read by any thread. */
    enum discard_mode discard;
    enum detect_zeroes_mode detect_zeroes;
};

/* True if all bytes are zero, also if there is none.  Reads up to the first byte that is not zero.
 * Any thread.
 */
bool space_is_zeros(const void *buf, size_t length);

/* Write as in struct disk_ops, after the policy: a write of nothing but zeros may become a zero. */
int space_write(const struct space_policy *policy, struct disk *disk, const void *buf,
                uint64_t length, uint64_t offset, bool fua);

/* Zero and trim as in struct disk_ops, after the policy.  With DISCARD_IGNORE a zero never leaves a
 * hole, not even for a moment, and a trim changes no byte.
 */
int space_zero(const struct space_policy *policy, struct disk *disk, uint64_t length,
               uint64_t offset, unsigned flags);
int space_trim(const struct space_policy *policy, struct disk *disk, uint64_t length,
               uint64_t offset, unsigned flags);

#endif
