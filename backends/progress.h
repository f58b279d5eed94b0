/* SPDX-License-Identifier: BSD-3-Clause */
/* Where a client's request is, told by the thread that carries it to a thread that watches.
 *
 * nbdkit's face makes one struct progress for each request in flight and sets progress_here for its
 * thread.  The layers below say in passing what the request waits for: one store, no lock.  A
 * struct request takes the pointer along to the worker or the loop thread.
 *
 * Nothing here knows how requests are counted or printed.  A thread without a client's request (a
 * test, the close of an image) has no progress, and every function does nothing there.
 */
#ifndef AIODISK_PROGRESS_H
#define AIODISK_PROGRESS_H

#include <stdatomic.h>
#include <stddef.h>

#include "pool/probe.h"

/* What the client asked for. */
enum client_op {
    CLIENT_READ,
    CLIENT_WRITE,
    CLIENT_FLUSH,
    CLIENT_TRIM,
    CLIENT_ZERO,
    CLIENT_CACHE,
    CLIENT_EXTENTS,
    CLIENT_OPS, /* their number; as a value: no client's request */
};

enum place {
    PLACE_PLUGIN,     /* being worked on; waits for nothing */
    PLACE_RANGE_LOCK, /* another request uses the same blocks (range-lock.h) */
    PLACE_BOUNCE,     /* bounce memory (bounce.h) */
    PLACE_WRITE_TURN, /* another write into the page cache of the same file (transfer.c) */
    PLACE_QUEUE,      /* a slot or worker of the pool, or room in the ring */
    PLACE_STORAGE,    /* the kernel */
    PLACE_FLUSH_JOIN, /* the sync of another flush (flush.h) */
    PLACES,
};

struct progress {
    _Atomic int op;    /* enum client_op; set by the thread of the request when it begins */
    _Atomic int place; /* enum place; any thread that carries the request */
};

/* The request of this thread, or NULL. */
extern _Thread_local struct progress *progress_here;

/* progress may be NULL. */
static inline void progress_set(struct progress *progress, enum place place)
{
    if (!progress)
        return;
    atomic_store_explicit(&progress->place, place, memory_order_relaxed);
    PROBE(place, progress, place);
}

/* Says where the request of the calling thread is. */
static inline void progress_at(enum place place)
{
    progress_set(progress_here, place);
}

static inline enum client_op progress_op(void)
{
    return progress_here ? atomic_load_explicit(&progress_here->op, memory_order_relaxed)
                         : (int)CLIENT_OPS;
}

#endif
