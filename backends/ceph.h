/* SPDX-License-Identifier: BSD-3-Clause */
/* A connection to a Ceph cluster, for one pool and namespace.
 *
 * Each open RBD image has a connection of its own (ceph-image.h), as each image has a room of its
 * own: the connection has its own threads, its own bounds on what is in flight, and its own
 * identity, so an image whose lock another client breaks takes no other image with it.
 *
 * Every function here may block on the cluster.  Any thread but a loop's.
 */
#ifndef AIODISK_CEPH_H
#define AIODISK_CEPH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Names one image of a cluster.  The strings are the caller's, and outlive what uses the name. */
struct ceph_name {
    const char *conf;   /* path of ceph.conf, or NULL for the usual places */
    const char *user;   /* without "client."; or NULL for admin */
    unsigned timeout_s; /* how long the cluster may be silent while an image is opened */
    const char *pool;
    const char *space;    /* the namespace; or "" */
    const char *image;    /* NULL: the whole pool */
    const char *snapshot; /* or NULL */
};

struct ceph {
    /* Set once by ceph_connect, read by any thread until ceph_disconnect. */
    void *cluster;            /* rados_t */
    void *pool;               /* rados_ioctx_t */
    uint64_t id;              /* the cluster knows this connection as client.ID */
    char request_timeout[32]; /* rados_osd_op_timeout as the user set it; "0": no limit */
};

/* The user's name, without "client.".  Any thread; does not block. */
const char *ceph_user(const struct ceph_name *name);

/* Connects and finds the pool.  uncached: no cache in librbd, whatever ceph.conf says.  Returns 0,
 * and ceph_disconnect is owed; or -errno and a line in `why`: -ETIMEDOUT (no monitor), -ENOENT (no
 * configuration, keyring or pool), -EACCES, ...
 * A request to an OSD that takes longer than timeout_s fails with -ETIMEDOUT, until
 * ceph_lift_limit.
 */
int ceph_connect(struct ceph *ceph, const struct ceph_name *name, bool uncached, char *why,
                 size_t why_size);
void ceph_disconnect(struct ceph *ceph);

/* From now on requests to OSDs have no limit but the user's own, if ceph.conf sets one.  Returns 0,
 * or -errno of librados.  Does not block.
 */
int ceph_lift_limit(struct ceph *ceph);

/* Asks each client that watches the object whether it is alive: a notification, which librbd takes
 * for "the image's header has changed" and answers (rados_notify2).  Returns true if the client
 * with this id answered, or with id 0 any client but this one.  Blocks for CEPH_ALIVE_MS when a
 * client does not answer.
 */
#define CEPH_ALIVE_MS 3000
bool ceph_is_alive(const struct ceph *ceph, const char *object, uint64_t id);

#endif
