/* SPDX-License-Identifier: BSD-3-Clause */
/* Zeroing and discarding without sending the zeros. */
#ifndef AIODISK_ZERO_H
#define AIODISK_ZERO_H

#include <pthread.h>
#include <stdint.h>

#include "plugin/disk/disk.h"

struct image;

/* What is known of a method to zero or discard: found out by trying, then remembered. */
enum ability { ABILITY_UNKNOWN, ABILITY_YES, ABILITY_NO };

struct method {
    /* Any thread, relaxed. */
    _Atomic int ability; /* enum ability */
    _Atomic int skips;   /* <= 0, or how many more requests pass the method by: note_refusal */
    _Atomic int pause;   /* what skips was set to at the last refusal */
};

struct zero_state {
    /* Held during fallocate(2) on a file, see zero.c.  Lock order: after the range lock, before the
     * pool's.
     */
    pthread_mutex_t fallocate_lock;

    struct method punch;
    struct method zero_range;
    struct method allocate;
    struct method zeroout;
    struct method discard;
};

void zero_init(struct zero_state *state);
void zero_destroy(struct zero_state *state);

/* Makes `length` bytes (up to 4 GiB - 1) at `offset` read as zeros.  flags: enum zero_flags.
 * Without ZERO_MAY_TRIM no hole is left.  Returns 0 or -errno; -EOPNOTSUPP only with ZERO_FAST.
 * Any thread but a loop's and the workers'; blocks.
 */
int image_zero(struct image *image, uint64_t length, uint64_t offset, unsigned flags);

/* Discards the range: its bytes may read as anything afterwards.  A hint: what cannot be discarded
 * stays, and what lies beyond the end of a disk that has become smaller is no error.  flags:
 * ZERO_FUA or 0.  As image_zero.
 */
int image_trim(struct image *image, uint64_t length, uint64_t offset, unsigned flags);

#endif
