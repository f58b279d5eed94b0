/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of connections.  See connection.h.
 *
 * Runs on nbdkit's threads when clients connect and disconnect, and on the observer's thread.  The
 * lock is never held while a disk is opened or closed, and never taken by a request.
 */
#include "plugin/watch/connection.h"

#include <pthread.h>

static pthread_mutex_t connections_lock = PTHREAD_MUTEX_INITIALIZER;
static struct connection *connections; /* under connections_lock */

void connection_add(struct connection *connection)
{
    pthread_mutex_lock(&connections_lock);
    connection->prev = NULL;
    connection->next = connections;
    if (connections)
        connections->prev = connection;
    connections = connection;
    pthread_mutex_unlock(&connections_lock);
}

void connection_remove(struct connection *connection)
{
    pthread_mutex_lock(&connections_lock);
    *(connection->prev ? &connection->prev->next : &connections) = connection->next;
    if (connection->next)
        connection->next->prev = connection->prev;
    pthread_mutex_unlock(&connections_lock);
}

struct connection *connection_any(void)
{
    return connections;
}

void connection_each(void (*look)(void *opaque, struct connection *connection), void *opaque)
{
    pthread_mutex_lock(&connections_lock);
    for (struct connection *c = connections; c; c = c->next)
        look(opaque, c);
    pthread_mutex_unlock(&connections_lock);
}
