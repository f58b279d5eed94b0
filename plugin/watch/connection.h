/* SPDX-License-Identifier: BSD-3-Clause */
/* The connections: one for each client, from nbdkit's .open until .close.  .unload needs the list,
 * because nbdkit 1.32 does not call .close for clients that are still connected when nbdkit ends;
 * the observer needs it to find the requests in flight.
 */
#ifndef AIODISK_CONNECTION_H
#define AIODISK_CONNECTION_H

#include "plugin/watch/call.h"

struct connection {
    /* Set once by nbdkit's thread in .open, before connection_add. */
    struct disk *disk;             /* holds a reference */
    struct figures *image_figures; /* those that the disk counts into, or NULL */
    struct call_list calls;

    /* Under the lock of connection.c. */
    struct connection *prev, *next;
};

/* Any thread; does not block. */
void connection_add(struct connection *connection);
void connection_remove(struct connection *connection);

/* The newest connection, or NULL.  Nothing is served any more.  Main thread. */
struct connection *connection_any(void);

/* Calls look(opaque, connection) for each connection.  None is added or removed meanwhile, so
 * `look` must not block.  Any thread.
 */
void connection_each(void (*look)(void *opaque, struct connection *connection), void *opaque);

#endif
