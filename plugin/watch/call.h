/* SPDX-License-Identifier: BSD-3-Clause */
/* A call: one request of a client, from nbdkit's call of the plugin to the plugin's answer.
 *
 * Every request begins in call_begin and ends in call_end, on the same thread of nbdkit.  Between
 * the two the observer can see the request: what it is, how old it is and where it is.  A thread
 * uses one struct call of its connection again and again, so a request takes no lock and allocates
 * nothing.
 */
#ifndef AIODISK_CALL_H
#define AIODISK_CALL_H

#include "backends/progress.h"
#include "plugin/watch/figures.h"

struct call_list;

struct call {
    /* Set once, when a thread carries its first request of this connection. */
    struct call_list *list;
    struct call *next;

    struct progress progress;

    /* Written by the thread of the request.  `turn` is odd while a request is in flight.  The
     * observer reads turn, the other fields, and turn again: if it has changed, the fields belong
     * to different requests.
     */
    _Atomic uint64_t turn, start_ns, offset, length;

    /* Written by the observer: the turn of the request that it named in the log, or 0. */
    _Atomic uint64_t named_turn;

    /* The observer's thread only. */
    uint64_t next_age_ns; /* of the request named_turn: it is named again at this age */
};

/* The calls of one connection. */
struct call_list {
    /* Set once by call_list_init. */
    uint64_t id;             /* differs from that of every other connection, also of closed ones */
    const char *name;        /* of the export, for messages */
    struct figures *figures; /* or NULL: nothing is counted */

    _Atomic(struct call *) first; /* any thread */
};

/* Says, before the first client connects, how old a request is when it is slow, in ns; 0: no
 * request is.  Main thread.
 */
void call_set_slow(uint64_t slow_ns);

/* What the observer sees of a request in flight. */
struct call_view {
    uint64_t turn, age_ns, offset, length;
    enum client_op op;
    enum place place;
};

void call_list_init(struct call_list *list, const char *name, struct figures *figures);

/* No request of the connection is in flight and none will come. */
void call_list_free(struct call_list *list);

/* Begins a request.  length and offset are in bytes.  Never fails.  A thread of nbdkit. */
struct call *call_begin(struct call_list *list, enum client_op op, uint64_t length,
                        uint64_t offset);

/* Ends the request.  error: 0 or the errno that the client sees.  Returns how long the request took
 * in ns if the observer has named it as slow, else 0.  The same thread.
 */
uint64_t call_end(struct call *call, int error);

/* Looks at one call.  Returns whether a request is in flight there.  The observer's thread. */
bool call_look(const struct call *call, uint64_t now_ns, struct call_view *view);

#endif
