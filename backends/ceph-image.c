/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens RBD images and carries requests to them by librbd.  See ceph-image.h.
 *
 * submit runs on the thread of the request; on_complete on a thread of librbd, which wakes the
 * thread that waits for the request.  A request without a waiter ends on the loop thread instead:
 * on_complete pushes the request to a list and schedules `turn`, the bottom half.  Everything else
 * runs on nbdkit's threads.
 *
 * Nothing but this file knows librbd.
 */
#include "backends/ceph-image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backends/ceph-api.h"

/* How long an image without the exclusive lock is waited for, while a client that does not answer
 * still watches the image.  Ceph forgets a dead client after 30 s.
 */
#define WATCH_TRIES 90
#define WATCH_PAUSE_NS 500000000

#define MAX_WATCHERS 64
#define MAX_OWNERS 8
#define ADDRESS_SIZE 128
#define HEADER_SIZE 96

/* Objects that one call of ceph_image_data looks at when each of them costs a request. */
#define EXACT_OBJECTS 64u

struct ceph_image {
    /* Set once by ceph_image_open, read by any thread. */
    struct ceph ceph;
    rbd_image_t rbd;
    uint64_t features;
    struct ceph_image_facts facts;
};

struct ceph_backend {
    /* Set once by ceph_backend_open, read by any thread. */
    struct backend backend;
    struct ceph_image *image;
    struct bh *bh; /* runs `turn` after the completion of a request without a waiter */

    struct stack completed; /* any thread */
    struct queue ending;    /* loop thread only */
};

/* --- Opening --- */

static int open_image(struct ceph_image *image, const struct ceph_name *name, bool readonly)
{
    if (name->snapshot || readonly)
        image->facts.readonly = true;
    if (!image->facts.readonly) {
        int r = ceph_api.rbd_open(image->ceph.pool, name->image, &image->rbd, NULL);
        if (r != -EPERM && r != -EACCES && r != -EROFS)
            return r;
        image->facts.readonly = true;
        image->facts.why_readonly = strerror(-r);
    }
    /* With a watch, which tells of a new size; a user who may not watch goes without. */
    if (!name->snapshot && ceph_api.rbd_open(image->ceph.pool, name->image, &image->rbd, NULL) == 0)
        return 0;
    return ceph_api.rbd_open_read_only(image->ceph.pool, name->image, &image->rbd, name->snapshot);
}

static int read_facts(struct ceph_image *image)
{
    rbd_image_info_t info;
    char id[40] = ""; /* more than librbd makes: two numbers in hex */

    int r = ceph_api.rbd_stat(image->rbd, &info, sizeof info);
    if (r == 0)
        r = ceph_api.rbd_get_features(image->rbd, &image->features);
    if (r < 0)
        return r;
    /* Format 1 has no id; its block name prefix is as good. */
    if (ceph_api.rbd_get_id(image->rbd, id, sizeof id) < 0)
        snprintf(id, sizeof id, "%s", info.block_name_prefix);
    image->facts.object_size = info.obj_size;
    snprintf(image->facts.id, sizeof image->facts.id, "%lld/%s",
             (long long)ceph_api.rados_ioctx_get_id(image->ceph.pool), id);
    ceph_api.rados_cluster_fsid(image->ceph.cluster, image->facts.cluster,
                                sizeof image->facts.cluster);
    return 0;
}

/* --- One writer --- */

/* Returns the id of the client with this address if it watches the image; or of any client but this
 * one, and stores its address, if `address` is empty.  Otherwise returns 0.
 */
static uint64_t find_watcher(const struct ceph_image *image, char address[ADDRESS_SIZE])
{
    rbd_image_watcher_t watchers[MAX_WATCHERS];
    size_t count = MAX_WATCHERS;
    uint64_t found = 0;

    if (ceph_api.rbd_watchers_list(image->rbd, watchers, &count) < 0)
        return 0;
    for (size_t i = 0; i < count && !found; i++) {
        uint64_t id = watchers[i].id;
        if (address[0] != '\0' ? strcmp(watchers[i].addr, address) == 0 : id != image->ceph.id) {
            found = id;
            snprintf(address, ADDRESS_SIZE, "%s", watchers[i].addr);
        }
    }
    ceph_api.rbd_watchers_list_cleanup(watchers, count);
    return found;
}

/* Stores the address of the client that owns the exclusive lock; returns false if there is none. */
static bool find_owner(const struct ceph_image *image, char address[ADDRESS_SIZE])
{
    char *owners[MAX_OWNERS];
    size_t count = MAX_OWNERS;
    rbd_lock_mode_t mode;

    if (ceph_api.rbd_lock_get_owners(image->rbd, &mode, owners, &count) < 0 || count == 0)
        return false;
    snprintf(address, ADDRESS_SIZE, "%s", owners[0]);
    ceph_api.rbd_lock_get_owners_cleanup(owners, count);
    return true;
}

static void header_of(const struct ceph_image *image, char header[HEADER_SIZE])
{
    snprintf(header, HEADER_SIZE, "rbd_header.%s", strchr(image->facts.id, '/') + 1);
}

/* An owner that is alive is not asked for the lock: librbd's default is to give the lock away and
 * to go on writing later.  A dead owner does not answer.  librbd then waits until the cluster has
 * forgotten the owner's watch, puts the owner on the blocklist, and breaks the lock.
 */
static int take_lock(struct ceph_image *image, const struct ceph_name *name, char *why,
                     size_t why_size)
{
    char address[ADDRESS_SIZE] = "", header[HEADER_SIZE];
    uint64_t owner = find_owner(image, address) ? find_watcher(image, address) : 0;
    int r = -EROFS;

    header_of(image, header);
    if (!owner || !ceph_is_alive(&image->ceph, header, owner))
        r = ceph_api.rbd_lock_acquire(image->rbd, RBD_LOCK_MODE_EXCLUSIVE);
    if (r == -EROFS && find_owner(image, address)) {
        owner = find_watcher(image, address);
        snprintf(why, why_size, "client.%llu at %s has the exclusive lock",
                 (unsigned long long)owner, address);
        return -EBUSY;
    }
    if (r < 0)
        snprintf(why, why_size, "the exclusive lock cannot be taken by client.%s: %s",
                 ceph_user(name), strerror(-r));
    return r;
}

/* Without the exclusive lock nothing stops a second writer.  Of two that open at once, each sees
 * the other, because each watches the image by now.
 */
static int look_for_others(struct ceph_image *image, char *why, size_t why_size)
{
    const struct timespec pause = {.tv_nsec = WATCH_PAUSE_NS};
    char address[ADDRESS_SIZE], header[HEADER_SIZE];
    uint64_t other = 0;

    header_of(image, header);
    for (int i = 0; i < WATCH_TRIES; i++) {
        address[0] = '\0';
        other = find_watcher(image, address);
        if (!other)
            return 0;
        if (ceph_is_alive(&image->ceph, header, 0))
            break;
        nanosleep(&pause, NULL);
    }
    snprintf(why, why_size,
             "client.%llu at %s has the image open too, and the image has no exclusive lock that "
             "would keep it from writing (`rbd feature enable`)",
             (unsigned long long)other, address);
    return -EBUSY;
}

static int keep_others_out(struct ceph_image *image, const struct ceph_name *name,
                           enum ceph_lock lock, char *why, size_t why_size)
{
    if (image->facts.readonly || lock == CEPH_LOCK_NONE)
        return 0;
    if (image->features & RBD_FEATURE_EXCLUSIVE_LOCK)
        return take_lock(image, name, why, why_size);
    if (lock == CEPH_LOCK_AUTO)
        return look_for_others(image, why, why_size);
    snprintf(why, why_size, "the image has no exclusive lock (`rbd feature enable`)");
    return -EOPNOTSUPP;
}

/* --- Open, close, size --- */

static int explain_open(const struct ceph_image *image, const struct ceph_name *name, int err,
                        char *why, size_t why_size)
{
    bool exists = true;

    if (err == -ENOENT && name->space[0] != '\0')
        ceph_api.rbd_namespace_exists(image->ceph.pool, name->space, &exists);
    if (err == -ETIMEDOUT)
        snprintf(why, why_size, "an OSD did not answer in %u s (rbd-timeout)", name->timeout_s);
    else if (err == -EPERM || err == -EACCES)
        snprintf(why, why_size, "the image cannot be opened by client.%s: %s", ceph_user(name),
                 strerror(-err));
    else
        snprintf(why, why_size, "%s: %s",
                 !exists          ? "no namespace of this name"
                 : err != -ENOENT ? "the image cannot be opened"
                 : name->snapshot ? "no image or no snapshot of this name"
                                  : "no image of this name",
                 strerror(-err));
    return err;
}

int ceph_image_open(struct ceph_image **result, const struct ceph_name *name,
                    const struct ceph_image_options *options, char *why, size_t why_size)
{
    struct ceph_image *image = calloc(1, sizeof *image);

    if (!image) {
        snprintf(why, why_size, "out of memory");
        return -ENOMEM;
    }
    int r = ceph_connect(&image->ceph, name, options->uncached, why, why_size);
    if (r < 0) {
        free(image);
        return r;
    }
    r = open_image(image, name, options->readonly);
    if (r == 0) {
        r = read_facts(image);
        if (r < 0)
            ceph_api.rbd_close(image->rbd);
    }
    if (r < 0) {
        explain_open(image, name, r, why, why_size);
        ceph_disconnect(&image->ceph);
        free(image);
        return r;
    }
    r = keep_others_out(image, name, options->lock, why, why_size);
    if (r == 0 && !options->brief)
        r = ceph_lift_limit(&image->ceph);
    if (r < 0) {
        ceph_image_close(image);
        return r;
    }
    *result = image;
    return 0;
}

void ceph_image_close(struct ceph_image *image)
{
    ceph_api.rbd_close(image->rbd); /* also releases the lock */
    ceph_disconnect(&image->ceph);
    free(image);
}

const struct ceph_image_facts *ceph_image_facts(const struct ceph_image *image)
{
    return &image->facts;
}

int64_t ceph_image_size(const struct ceph_image *image)
{
    uint64_t size;
    int r = ceph_api.rbd_get_size(image->rbd, &size);

    return r < 0 ? r : (int64_t)size;
}

int ceph_image_list(const struct ceph_name *name, int (*add)(void *opaque, const char *name),
                    void *opaque, char *why, size_t why_size)
{
    rbd_image_spec_t *images = NULL;
    size_t count = 0;
    struct ceph ceph;

    int r = ceph_connect(&ceph, name, false, why, why_size);
    if (r < 0)
        return r;
    while ((r = ceph_api.rbd_list2(ceph.pool, images, &count)) == -ERANGE) {
        free(images);
        count += 16; /* for images that are made meanwhile */
        images = calloc(count, sizeof *images);
        if (!images) {
            r = -ENOMEM;
            break;
        }
    }
    if (r < 0) {
        snprintf(why, why_size, "the images of pool %s cannot be listed: %s", name->pool,
                 strerror(-r));
    } else {
        for (size_t i = 0; r == 0 && i < count; i++)
            r = add(opaque, images[i].name);
        ceph_api.rbd_image_spec_list_cleanup(images, count);
    }
    free(images);
    ceph_disconnect(&ceph);
    return r;
}

/* --- Which parts hold data --- */

struct data_walk {
    uint64_t offset, end; /* bytes: what was asked for */
    int (*add)(void *opaque, uint64_t offset, uint64_t length);
    void *opaque;
};

static int found_data(uint64_t offset, size_t length, int exists, void *opaque)
{
    const struct data_walk *walk = opaque;
    uint64_t end = offset + length;

    if (offset < walk->offset)
        offset = walk->offset;
    if (end > walk->end)
        end = walk->end;
    return exists && offset < end ? walk->add(walk->opaque, offset, end - offset) : 0;
}

/* Returns whether the object map knows which objects exist, so that whole objects can be reported
 * without a request to each.  A clone's parent and stripes need the exact way.
 */
static bool knows_objects(const struct ceph_image *image)
{
    uint64_t flags, overlap, stripes;

    return image->features & RBD_FEATURE_FAST_DIFF &&
           ceph_api.rbd_get_flags(image->rbd, &flags) == 0 &&
           !(flags & (RBD_FLAG_FAST_DIFF_INVALID | RBD_FLAG_OBJECT_MAP_INVALID)) &&
           ceph_api.rbd_get_overlap(image->rbd, &overlap) == 0 && overlap == 0 &&
           ceph_api.rbd_get_stripe_count(image->rbd, &stripes) == 0 && stripes == 1;
}

int ceph_image_data(const struct ceph_image *image, uint64_t offset, uint64_t *length,
                    int (*add)(void *opaque, uint64_t offset, uint64_t length), void *opaque)
{
    struct data_walk walk = {offset, offset + *length, add, opaque};
    uint64_t unit = image->facts.object_size, start = offset - offset % unit;
    bool fast = knows_objects(image);

    if (!fast && walk.end - start > EXACT_OBJECTS * unit) {
        walk.end = start + EXACT_OBJECTS * unit;
        *length = walk.end - offset;
    }
    /* From the start of the object: librbd before 17 reports wrong offsets for whole objects when
     * the range begins inside one (Ceph issue 53784).
     */
    return ceph_api.rbd_diff_iterate2(image->rbd, NULL, start, walk.end - start, 1, fast,
                                      found_data, &walk);
}

/* --- The backend --- */

static bool takes(const struct backend *backend, const struct request *request)
{
    return request->op != REQUEST_CALL;
}

/* The bottom half, for requests of backend_submit.  A `done` may poll the loop for another request
 * that ends in the same batch: the bottom half, which is scheduled before, then runs from inside
 * `done`.
 */
static void turn(void *opaque)
{
    struct ceph_backend *cb = opaque;
    struct link *link;

    stack_drain(&cb->completed, &cb->ending);
    while ((link = queue_pop(&cb->ending))) {
        struct request *request = container_of(link, struct request, link);

        bh_schedule(cb->bh);
        request_finish(request, request->result);
    }
}

/* A thread of librbd.  A read that librbd cut off at the end of the image returns fewer bytes.  The
 * request may be gone as soon as its waiter is awake or the request is in the list.  backend_close
 * waits for this thread.
 */
static void on_complete(rbd_completion_t completion, void *opaque)
{
    struct request *request = opaque;
    struct ceph_backend *cb = container_of(request->backend, struct ceph_backend, backend);
    ssize_t r = ceph_api.rbd_aio_get_return_value(completion);

    ceph_api.rbd_aio_release(completion);
    if (r < 0)
        request->result = (int)r;
    else if (request->op == REQUEST_READ && (uint64_t)r < request->length)
        request->result = -EIO;
    else
        request->transferred = request->length;
    request_count_time(request, request->submitted_ns);
    if (request->waiter) {
        request_finish(request, request->result);
    } else {
        stack_push(&cb->completed, &request->link);
        bh_schedule(cb->bh);
    }
    backend_leave(&cb->backend);
}

static int start(rbd_image_t rbd, const struct request *request, rbd_completion_t completion)
{
    int zero_flags = request->flags & REQUEST_THICK ? RBD_WRITE_ZEROES_FLAG_THICK_PROVISION : 0;

    switch (request->op) {
    case REQUEST_READ:
        return ceph_api.rbd_aio_readv(rbd, request->iov, request->iovcnt, request->offset,
                                      completion);
    case REQUEST_WRITE:
        if (request->flags & REQUEST_FUA)
            return -EOPNOTSUPP;
        return ceph_api.rbd_aio_writev(rbd, request->iov, request->iovcnt, request->offset,
                                       completion);
    case REQUEST_FDATASYNC:
        return ceph_api.rbd_aio_flush(rbd, completion);
    case REQUEST_DISCARD:
        return ceph_api.rbd_aio_discard(rbd, request->offset, request->length, completion);
    case REQUEST_ZEROOUT:
        return ceph_api.rbd_aio_write_zeroes(rbd, request->offset, request->length, completion,
                                             zero_flags, 0);
    default:
        return -EOPNOTSUPP;
    }
}

static int submit(struct backend *backend, struct request *request)
{
    struct ceph_backend *cb = container_of(backend, struct ceph_backend, backend);
    rbd_completion_t completion;

    int r = ceph_api.rbd_aio_create_completion(request, on_complete, &completion);
    if (r < 0)
        return r;
    progress_set(request->progress, PLACE_STORAGE);
    request->submitted_ns = request_clock(request);
    atomic_fetch_add_explicit(&backend->users, 1, memory_order_relaxed); /* on_complete */
    r = start(cb->image->rbd, request, completion);
    if (r < 0) {
        ceph_api.rbd_aio_release(completion);
        backend_leave(backend);
    }
    return r;
}

static void do_nothing(void *opaque)
{
}

static void close_backend(struct backend *backend)
{
    struct ceph_backend *cb = container_of(backend, struct ceph_backend, backend);

    /* `turn` may not have returned since it ended its last request. */
    loop_call(backend->config.loop, do_nothing, NULL);
    bh_delete(cb->bh);
    free(cb);
}

static const struct backend_ops ceph_ops = {
    .name = "rbd",
    .close = close_backend,
    .takes = takes,
    .submit = submit,
};

int ceph_backend_open(struct ceph_image *image, const struct backend_config *config,
                      struct backend **backend)
{
    struct ceph_backend *cb = calloc(1, sizeof *cb);

    if (!cb)
        return -ENOMEM;
    cb->image = image;
    queue_init(&cb->ending);
    cb->bh = bh_new(config->loop, turn, cb);
    if (!cb->bh) {
        free(cb);
        return -ENOMEM;
    }
    backend_init(&cb->backend, &ceph_ops, config);
    *backend = &cb->backend;
    return 0;
}
