/* SPDX-License-Identifier: BSD-3-Clause */
/* A librados and a librbd that consist of memory, for the answers that a real cluster gives seldom
 * or never: each error of each call, silence at one exact moment, a lock whose owner is dead.  The
 * conformance suite and the tests rbd* of tests/system and tests/fault have a real cluster.
 *
 * All images are one.  Requests complete on a thread of the library, as those of librbd do.  Any
 * thread; whoever reads or sets a field holds no lock, and no request is in flight then, unless the
 * field says otherwise.  Not two images that are opened or closed at the same time.
 */
#ifndef AIODISK_FAKE_RBD_H
#define AIODISK_FAKE_RBD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FAKE_ID 4711u             /* of this client */
#define FAKE_MEMORY (8u << 20)    /* bytes that keep what is written; the rest reads as zeros */
#define FAKE_ADDRESS "10.0.0.2:0" /* of the other client */

struct fake_range {
    uint64_t offset, length;
};

struct fake_request {
    const char *op; /* "read", "write", "flush", "discard" or "zero" */
    uint64_t offset, length;
    int flags;
};

struct fake_rbd {
    /* What fails: the calls of a function, or completions by the `op` of struct fake_request; and
     * the call with a number, counted from 1.  `error` is their answer.
     */
    const char *broken;
    unsigned fail_at;
    int error;
    unsigned calls;     /* counts */
    const char *failed; /* what has failed last */

    /* The image. */
    _Atomic uint64_t size; /* any time */
    uint64_t object_size, features, flags, overlap, stripes;
    const char *id;
    unsigned char memory[FAKE_MEMORY];
    const struct fake_range *data; /* what rbd_diff_iterate2 finds, in order */
    unsigned data_count;
    bool may_write;
    bool watches; /* it was opened so */

    /* The cluster. */
    const char *request_timeout; /* in ceph.conf; or NULL */
    const char *const *images;   /* names, with a NULL at the end */
    bool has_namespace;

    /* The other client. */
    uint64_t other;            /* its id; 0: there is none */
    bool other_answers;        /* when it is asked whether it is alive */
    bool other_owns;           /* the exclusive lock */
    unsigned other_watches;    /* so many calls of rbd_watchers_list still find it */
    bool someone_else_answers; /* a third client */

    /* What was asked for. */
    struct fake_request requests[32]; /* the last ones, from [0] on */
    unsigned request_count;
    uint64_t walk_offset, walk_length; /* of rbd_diff_iterate2 */
    int walk_parent, walk_whole;
    unsigned alive_questions;
    bool has_lock;

    /* What is owed: things made and not yet given back.  Any time. */
    _Atomic int owed;
};

extern struct fake_rbd fake;

/* Makes everything as new, with an image of this size and another id. */
void fake_reset(uint64_t size);

/* Calls of this function, or completions of this `op`, wait until fake_go_on.  Any time. */
void fake_hold(const char *name);
void fake_go_on(void);
unsigned fake_held(void); /* how many wait */

/* The value that an option of Ceph has, or "".  Connected. */
const char *fake_option(const char *name);

/* --- Between fake-rados.c and fake-rbd.c --- */

extern pthread_mutex_t fake_lock;
extern pthread_cond_t fake_changed; /* broadcast when a call may go on or a request has come */

/* Each call begins with one of these.  Returns 0, or the error with which the call is to end.
 * fake_makes counts what the call makes when it succeeds.
 */
int fake_fails(const char *name);
int fake_makes(const char *name);

#endif
