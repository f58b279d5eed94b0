/* SPDX-License-Identifier: BSD-3-Clause */
/* Aligned memory for O_DIRECT, recycled: nbdkit's buffers come from malloc, and the hot path must not
 * go there itself.
 */
#ifndef AIODISK_BOUNCE_H
#define AIODISK_BOUNCE_H

#include <stddef.h>

/* The largest buffer; longer requests go through in chunks of this many bytes. */
#define BOUNCE_MAX ((size_t)1 << 20)

/* All buffers together take at most so many bytes, however many clients there are. */
#define BOUNCE_TOTAL_MAX ((size_t)48 << 20)

/* A buffer starts at a multiple of this many bytes, or of its own size if that is smaller (4 KiB at least). */
#define BOUNCE_ALIGNMENT ((size_t)64 << 10)

struct bounce {
    char *memory;
    unsigned bucket;
};

/* At least `size` bytes, at most BOUNCE_MAX.  What is in them is stale: the caller overwrites every
 * byte that anybody will see.  Waits while others hold BOUNCE_TOTAL_MAX bytes, so a caller holds no other buffer and no slot
 * of the pool.  Returns 0 or -ENOMEM.  Any thread but the loop's and the workers'.
 */
int bounce_get(struct bounce *bounce, size_t size);
void bounce_put(struct bounce *bounce);

/* Frees all of them: none is in use. */
void bounce_free_all(void);

#endif
