/* SPDX-License-Identifier: BSD-3-Clause */
/* See fake-rbd.h: librbd.  Completions run on a thread of their own, without a lock. */
#include "tests/unit/fake-rbd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rbd/librbd.h>

struct completion {
    rbd_callback_t fn;
    void *opaque;
    struct fake_request request;
    const struct iovec *iov;
    ssize_t result;
    struct completion *next;
};

/* Under fake_lock. */
static struct completion *queue;
static unsigned open_images;

static pthread_t thread; /* of the open images */

/* --- librbd: open and close --- */

static ssize_t carry_out(const struct completion *c)
{
    uint64_t offset = c->request.offset, size = fake.size;
    ssize_t done = 0;
    int r = fake_fails(c->request.op);

    if (r < 0 || strcmp(c->request.op, "flush") == 0)
        return r;
    if (offset > size)
        return -EINVAL;
    uint64_t length = size - offset < c->request.length ? size - offset : c->request.length;
    uint64_t kept = offset >= FAKE_MEMORY           ? 0
                    : FAKE_MEMORY - offset < length ? FAKE_MEMORY - offset
                                                    : length;
    if (strcmp(c->request.op, "read") == 0) {
        memset(c->iov->iov_base, 0, length);
        memcpy(c->iov->iov_base, fake.memory + offset, kept);
        done = (ssize_t)length;
    } else if (strcmp(c->request.op, "write") == 0) {
        memcpy(fake.memory + offset, c->iov->iov_base, kept);
    } else {
        memset(fake.memory + offset, 0, kept);
    }
    return done;
}

static void *complete(void *opaque)
{
    pthread_mutex_lock(&fake_lock);
    while (queue || open_images > 0) {
        struct completion *c = queue;

        if (!c) {
            pthread_cond_wait(&fake_changed, &fake_lock);
            continue;
        }
        queue = c->next;
        pthread_mutex_unlock(&fake_lock);
        c->result = carry_out(c);
        c->fn(c, c->opaque);
        pthread_mutex_lock(&fake_lock);
    }
    pthread_mutex_unlock(&fake_lock);
    return NULL;
}

static int open_image(rbd_image_t *image)
{
    *image = &fake;
    pthread_mutex_lock(&fake_lock);
    open_images++; /* before the thread looks */
    int r = open_images == 1 ? pthread_create(&thread, NULL, complete, NULL) : 0;
    if (r == 0)
        fake.owed++;
    else
        open_images--;
    pthread_mutex_unlock(&fake_lock);
    return -r;
}

int rbd_open(rados_ioctx_t io, const char *name, rbd_image_t *image, const char *snap_name)
{
    int r = fake_fails(__func__);

    if (r < 0 || !fake.may_write)
        return r < 0 ? r : -EPERM;
    fake.watches = true;
    return open_image(image);
}

int rbd_open_read_only(rados_ioctx_t io, const char *name, rbd_image_t *image,
                       const char *snap_name)
{
    int r = fake_fails(__func__);

    fake.watches = false;
    return r < 0 ? r : open_image(image);
}

int rbd_close(rbd_image_t image)
{
    int r = fake_fails(__func__);

    pthread_mutex_lock(&fake_lock);
    bool last = --open_images == 0;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
    if (last)
        pthread_join(thread, NULL);
    fake.has_lock = false;
    fake.owed--;
    return r;
}

/* --- librbd: facts --- */

int rbd_stat(rbd_image_t image, rbd_image_info_t *info, size_t infosize)
{
    memset(info, 0, infosize);
    info->obj_size = fake.object_size;
    snprintf(info->block_name_prefix, sizeof info->block_name_prefix, "prefix.%s", fake.id);
    return fake_fails(__func__);
}

int rbd_get_id(rbd_image_t image, char *id, size_t id_len)
{
    snprintf(id, id_len, "%s", fake.id);
    return fake_fails(__func__);
}

#define GETTER(function, field) \
    int function(rbd_image_t image, uint64_t *value) \
    { \
        int r = fake_fails(#function); \
        if (r == 0) \
            *value = fake.field; \
        return r; \
    }
GETTER(rbd_get_size, size)
GETTER(rbd_get_features, features)
GETTER(rbd_get_flags, flags)
GETTER(rbd_get_overlap, overlap)
GETTER(rbd_get_stripe_count, stripes)

int rbd_namespace_exists(rados_ioctx_t io, const char *namespace_name, bool *exists)
{
    *exists = fake.has_namespace;
    return fake_fails(__func__);
}

int rbd_list2(rados_ioctx_t io, rbd_image_spec_t *images, size_t *max_images)
{
    size_t count = 0;

    while (fake.images[count])
        count++;
    if (count > *max_images) {
        *max_images = count;
        return -ERANGE;
    }
    int r = fake_fails(__func__);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++)
        images[i].name = strdup(fake.images[i]);
    *max_images = count;
    fake.owed += (int)count;
    return 0;
}

void rbd_image_spec_list_cleanup(rbd_image_spec_t *images, size_t num_images)
{
    for (size_t i = 0; i < num_images; i++)
        free(images[i].name);
    fake.owed -= (int)num_images;
}

/* --- librbd: the other client --- */

int rbd_watchers_list(rbd_image_t image, rbd_image_watcher_t *watchers, size_t *max_watchers)
{
    int r = fake_makes(__func__);

    if (r < 0)
        return r;
    *max_watchers = 0;
    watchers[(*max_watchers)++] =
        (rbd_image_watcher_t){.addr = (char *)"10.0.0.1:0", .id = FAKE_ID};
    if (fake.other && fake.other_watches > 0) {
        fake.other_watches--;
        watchers[(*max_watchers)++] =
            (rbd_image_watcher_t){.addr = (char *)FAKE_ADDRESS, .id = (int64_t)fake.other};
        watchers[(*max_watchers)++] = (rbd_image_watcher_t){.addr = (char *)"10.0.0.3:0", .id = 99};
    }
    return 0;
}

void rbd_watchers_list_cleanup(rbd_image_watcher_t *watchers, size_t num_watchers)
{
    fake.owed--;
}

int rbd_lock_get_owners(rbd_image_t image, rbd_lock_mode_t *lock_mode, char **lock_owners,
                        size_t *max_lock_owners)
{
    int r = fake_fails(__func__);

    if (r < 0)
        return r;
    *max_lock_owners = 0;
    if (fake.other_owns) {
        fake.owed++;
        lock_owners[(*max_lock_owners)++] = (char *)FAKE_ADDRESS;
    }
    return 0;
}

void rbd_lock_get_owners_cleanup(char **lock_owners, size_t lock_owner_count)
{
    fake.owed--;
}

int rbd_lock_acquire(rbd_image_t image, rbd_lock_mode_t lock_mode)
{
    int r = fake_fails(__func__);

    if (r == 0)
        fake.has_lock = true;
    return r;
}

/* --- librbd: requests --- */

int rbd_aio_create_completion(void *cb_arg, rbd_callback_t complete_cb, rbd_completion_t *c)
{
    struct completion *completion = calloc(1, sizeof *completion);
    int r = fake_makes(__func__);

    if (r < 0) {
        free(completion);
        return r;
    }
    completion->fn = complete_cb;
    completion->opaque = cb_arg;
    *c = completion;
    return 0;
}

void rbd_aio_release(rbd_completion_t c)
{
    fake.owed--;
    free(c);
}

ssize_t rbd_aio_get_return_value(rbd_completion_t c)
{
    return ((struct completion *)c)->result;
}

static int begin(const char *function, rbd_completion_t c, struct fake_request request,
                 const struct iovec *iov)
{
    struct completion *completion = c, **link = &queue;
    int r = fake_fails(function);

    if (r < 0)
        return r;
    completion->request = request;
    completion->iov = iov;
    pthread_mutex_lock(&fake_lock);
    memmove(fake.requests + 1, fake.requests, sizeof fake.requests - sizeof fake.requests[0]);
    fake.requests[0] = request;
    fake.request_count++;
    while (*link)
        link = &(*link)->next;
    *link = completion;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

int rbd_aio_readv(rbd_image_t image, const struct iovec *iov, int iovcnt, uint64_t off,
                  rbd_completion_t c)
{
    return begin(__func__, c, (struct fake_request){"read", off, iov->iov_len, 0}, iov);
}

int rbd_aio_writev(rbd_image_t image, const struct iovec *iov, int iovcnt, uint64_t off,
                   rbd_completion_t c)
{
    return begin(__func__, c, (struct fake_request){"write", off, iov->iov_len, 0}, iov);
}

int rbd_aio_flush(rbd_image_t image, rbd_completion_t c)
{
    return begin(__func__, c, (struct fake_request){"flush", 0, 0, 0}, NULL);
}

int rbd_aio_discard(rbd_image_t image, uint64_t off, uint64_t len, rbd_completion_t c)
{
    return begin(__func__, c, (struct fake_request){"discard", off, len, 0}, NULL);
}

int rbd_aio_write_zeroes(rbd_image_t image, uint64_t off, size_t len, rbd_completion_t c,
                         int zero_flags, int op_flags)
{
    return begin(__func__, c, (struct fake_request){"zero", off, len, zero_flags}, NULL);
}

int rbd_diff_iterate2(rbd_image_t image, const char *fromsnapname, uint64_t ofs, uint64_t len,
                      uint8_t include_parent, uint8_t whole_object,
                      int (*cb)(uint64_t, size_t, int, void *), void *arg)
{
    int r = fake_fails(__func__);

    fake.walk_offset = ofs;
    fake.walk_length = len;
    fake.walk_parent = include_parent;
    fake.walk_whole = whole_object;
    for (unsigned i = 0; i < fake.data_count && r == 0; i++) {
        const struct fake_range *range = &fake.data[i];
        if (range->offset + range->length > ofs && range->offset < ofs + len)
            r = cb(range->offset, range->length, 1, arg);
    }
    return r;
}
