/* SPDX-License-Identifier: BSD-3-Clause */
/* An open RBD image, and the backend that carries requests to it.
 *
 * The backend takes READ, WRITE, FDATASYNC, DISCARD and ZEROOUT, and ignores the descriptor of the
 * request.  REQUEST_CALL goes to the pool.  Three differences to a file: a transfer that librbd cut
 * short at the end of the image fails; REQUEST_FUA is refused with -EOPNOTSUPP; and a submission
 * may block while librados has as much in flight as it allows, so no loop thread may submit.
 */
#ifndef AIODISK_CEPH_IMAGE_H
#define AIODISK_CEPH_IMAGE_H

#include "backends/backend.h"
#include "backends/ceph.h"

struct ceph_image;

/* How an image is kept from a second writer. */
enum ceph_lock {
    CEPH_LOCK_NONE,   /* not at all */
    CEPH_LOCK_AUTO,   /* by the exclusive lock; without that feature only others are looked for */
    CEPH_LOCK_NEEDED, /* by the exclusive lock; -EOPNOTSUPP for an image without that feature */
};

struct ceph_image_options {
    bool uncached; /* see ceph_connect */
    bool readonly;
    bool brief; /* requests to the image, and its close, keep the limit of ceph_connect */
    enum ceph_lock lock;
};

/* What does not change while an image is open. */
struct ceph_image_facts {
    bool readonly;            /* also when only reading is allowed, or of a snapshot */
    const char *why_readonly; /* static text: why, when nobody asked for it; or NULL */
    uint64_t object_size;     /* bytes, a power of two */
    char id[64];              /* POOL-ID/IMAGE-ID: the image, whatever its name is */
    char cluster[48];         /* the fsid */
};

/* Opens the image of this name, for writing unless readonly is set or writing is not allowed, and
 * takes the lock.  Returns 0, and ceph_image_close is owed; or -errno and a line in `why`: what
 * ceph_connect returns; -ENOENT (image, snapshot or namespace); -EBUSY (another client writes, and
 * `why` says which); -EOPNOTSUPP; what librbd returns.  Blocks; waits until the watch of a client
 * that died has timed out.  Any thread but a loop's.
 */
int ceph_image_open(struct ceph_image **image, const struct ceph_name *name,
                    const struct ceph_image_options *options, char *why, size_t why_size);

/* Every request has ended.  librbd writes what it still caches.  Blocks. */
void ceph_image_close(struct ceph_image *image);

const struct ceph_image_facts *ceph_image_facts(const struct ceph_image *image);

/* The size in bytes as it is now, or -errno.  Blocks only when the image's header has changed. */
int64_t ceph_image_size(const struct ceph_image *image);

/* Calls add(opaque, offset, length) for the parts of the range that may hold data, in order.  What
 * lies between them reads as zeros.  *length may become shorter: the bytes that were looked at.
 * Returns 0, -errno, or what `add` returned if that was negative.  Blocks.
 */
int ceph_image_data(const struct ceph_image *image, uint64_t offset, uint64_t *length,
                    int (*add)(void *opaque, uint64_t offset, uint64_t length), void *opaque);

/* Makes the backend of an open image.  backend_close frees it, before ceph_image_close.  Returns 0,
 * or -ENOMEM.  Does not block.
 */
int ceph_backend_open(struct ceph_image *image, const struct backend_config *config,
                      struct backend **backend);

/* Calls add(opaque, name) for each image of the pool and namespace; stops early, and returns what
 * `add` returned, if that was not 0.  Otherwise returns as ceph_connect, or -errno of librbd, with
 * a line in `why`.  Blocks.
 */
int ceph_image_list(const struct ceph_name *name, int (*add)(void *opaque, const char *name),
                    void *opaque, char *why, size_t why_size);

#endif
