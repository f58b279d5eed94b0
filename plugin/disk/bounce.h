/* SPDX-License-Identifier: BSD-3-Clause */
/* Aligned memory for O_DIRECT, recycled.
 *
 * nbdkit's buffers come from malloc, so direct I/O needs a copy in aligned memory, and a request
 * must not pay for malloc and page faults each time.
 *
 * All images together share a bounded amount of memory, and no image can take what another needs:
 * an image gets another buffer only while it then holds no more than what is still free.  A stuck
 * image that holds all it may thus leaves half, a second stuck image a quarter, and so on.  Each
 * image may hold BOUNCE_OWN bytes whatever the others hold, so every image goes on.
 */
#ifndef AIODISK_BOUNCE_H
#define AIODISK_BOUNCE_H

#include <stddef.h>

/* The largest buffer, in bytes.  A longer request passes through in chunks of this size. */
#define BOUNCE_MAX ((size_t)1 << 20)

/* What all images may hold together, in bytes; one image alone may hold half. */
#define BOUNCE_SHARED_MAX ((size_t)96 << 20)

/* What each image may hold in any case, in bytes.  At least BOUNCE_MAX, so each image proceeds. */
#define BOUNCE_OWN BOUNCE_MAX

/* A buffer starts at a multiple of this many bytes, or of its own size if that is smaller (4 KiB
 * at least).
 */
#define BOUNCE_ALIGNMENT ((size_t)64 << 10)

struct bounce_waiter;
struct tally;

/* The part of one image. */
struct bounce_share {
    struct tally *tally; /* set once; counts the requests that wait; or NULL */

    /* Under the lock of bounce.c. */
    size_t held;                        /* bytes in buffers that are in use */
    struct bounce_waiter *first, *last; /* requests that wait for a buffer, oldest first */
    struct bounce_share *next;          /* in the list of shares that have a waiter */
};

struct bounce {
    /* Set by bounce_get, read by its caller. */
    char *memory;
    unsigned bucket;
    struct bounce_share *share;
};

void bounce_share_init(struct bounce_share *share, struct tally *tally);

/* Gets a buffer of at least `size` bytes, at most BOUNCE_MAX.  The buffer holds stale bytes: the
 * caller overwrites every byte that anybody will see.  Blocks while the share may not grow; the
 * requests of one share are served in order of arrival, so none starves.  A caller holds no other
 * buffer and no slot of the pool.  Returns 0 or -ENOMEM.  Any thread but a loop's and a pool's
 * workers.
 */
int bounce_get(struct bounce_share *share, struct bounce *bounce, size_t size);

/* Gives the buffer back.  Does not block.  Any thread. */
void bounce_put(struct bounce *bounce);

/* Bytes of all buffers, in use and at rest.  Any thread. */
size_t bounce_allocated(void);

/* Frees every buffer at rest.  No buffer may be in use. */
void bounce_free_all(void);

#endif
