/* SPDX-License-Identifier: BSD-3-Clause */
/* Ceph RBD images as an implementation of struct disk.
 *
 * rbd-table.c finds, opens and closes a disk; rbd-disk.c carries out its requests.  A disk owns its
 * connection to the cluster and its machine room, so what one image's storage does reaches no other
 * image.
 */
#ifndef AIODISK_RBD_DISK_H
#define AIODISK_RBD_DISK_H

#include <pthread.h>
#include <stdatomic.h>

#include "backends/ceph-image.h"
#include "backends/room.h"
#include "plugin/disk/disk.h"
#include "plugin/disk/health.h"
#include "plugin/disk/log.h"

struct rbd_options {
    const struct room_config *room; /* `backend` is not used */
    bool readonly;
    bool uncached; /* cache=none: no cache in librbd; otherwise ceph.conf says */
    enum ceph_lock lock;
    struct tally_finder tally;
};

/* Flushes run one at a time, and a flush that begins while another runs waits for the next one:
 * librbd reports a write that it had acknowledged and then lost to one flush only, so two flushes
 * at once could share one report.
 */
struct rbd_flush {
    pthread_mutex_t lock;
    pthread_cond_t ended; /* broadcast when a flush has ended */

    /* Under lock. */
    uint64_t begun, done; /* flushes: their number */
};

/* Reads the size in the background for clients that connect to an open disk; see rbd-table.c, whose
 * lock guards the fields.  Clients are counted from 1 as they come.
 */
struct rbd_size_reader {
    struct request request; /* belongs to the backend while busy */
    bool busy;
    uint64_t reads_for; /* clients up to this one came before the last read began */
    uint64_t read_for;  /* the same, of the last read that has ended; 0: none */
};

struct rbd_disk {
    /* Set once by rbd-table.c, before other threads see the disk; read by any thread. */
    struct disk disk;
    char *name; /* POOL/[NAMESPACE/]IMAGE[@SNAPSHOT] */
    bool wants_readonly;
    struct ceph_image *image;
    struct room room;
    struct backend *backend; /* carries the requests */
    struct health *health;

    /* Any thread. */
    _Atomic uint64_t size; /* bytes; stored for each client that connects */
    atomic_bool dirty;     /* something was written since the last flush began */

    struct rbd_flush flush;

    /* Under the lock of rbd-table.c. */
    enum { RBD_OPENING, RBD_OPEN, RBD_CLOSING } state;
    unsigned references;
    struct rbd_size_reader size_reader;
    struct rbd_disk *next;
};

/* Finds the open disk of this name, or opens it.  Returns 0 and a reference, or -errno and a line
 * in `why`.  A client that comes later sees a new size.  Blocks on the cluster, and while another
 * thread opens or closes the same disk, but never for another disk; while the cluster does not
 * answer, a few times timeout_s at most (-ETIMEDOUT).  nbdkit's threads.
 */
int rbd_disk_get(const struct ceph_name *name, const struct rbd_options *options,
                 struct disk **disk, char why[LOG_LINE_SIZE]);

/* Connects to the cluster and opens the image for reading, or finds the pool if the name has no
 * image; then disconnects.  Returns 0, or -errno and a line in `why`.  Leaves no thread behind.
 * Blocks, for a few times timeout_s at most.  Main thread.
 */
int rbd_disk_check(const struct ceph_name *name, char why[LOG_LINE_SIZE]);

/* Writes POOL/[NAMESPACE/]IMAGE[@SNAPSHOT] or POOL[/NAMESPACE] to `text`. */
void rbd_disk_spell(const struct ceph_name *name, char *text, size_t size);

/* --- Between rbd-table.c and rbd-disk.c --- */

/* Fills in rbd->disk from the other fields. */
void rbd_disk_fill(struct rbd_disk *rbd, struct tally *tally);

/* As disk_ops.flush. */
int rbd_disk_flush(struct rbd_disk *rbd);

/* As disk_ops.put; in rbd-table.c. */
void rbd_disk_put(struct rbd_disk *rbd);

#endif
