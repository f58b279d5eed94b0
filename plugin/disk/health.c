/* SPDX-License-Identifier: BSD-3-Clause */
/* Flush, FUA, and the memory of failure.  See flush.h.
 *
 * Runs on the requests' threads.  Whoever waits here, for a descriptor or for another's sync, does so
 * before taking a slot of the pool, so no worker waits for another request.  The lock of the set is never held
 * during I/O.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "plugin/disk/fd.h"
#include "plugin/disk/flush.h"
#include "plugin/disk/health.h"
#include "plugin/disk/image.h"
#include "plugin/disk/log.h"

/* A flush that found no free descriptor.  It is answered by a sync that starts after it came: either it is
 * given a descriptor and leads, or a leader takes it along.  On its caller's stack, under the set's lock.
 */
struct flush_waiter {
    pthread_cond_t cond;
    struct flush_waiter *next;
    int slot; /* >= 0: this one leads, with that descriptor */
    bool done;
    int result; /* once done */
};

/* What is remembered of a disk for as long as the process lives, by identity and not by image: the image may
 * be closed and opened again, and a fresh descriptor knows nothing of old failures.
 */
struct health {
    struct image_key key;
    _Atomic int error; /* 0, or the -errno of the first failed sync; never goes back */

    /* Under healths_lock. */
    unsigned references;
    struct health *next;
};

static pthread_mutex_t healths_lock = PTHREAD_MUTEX_INITIALIZER;
static struct health *healths; /* under healths_lock */

static struct health *health_get(const struct image_key *key)
{
    struct health *health;

    pthread_mutex_lock(&healths_lock);
    for (health = healths; health && !image_key_equal(&health->key, key);)
        health = health->next;
    if (!health) {
        health = calloc(1, sizeof *health);
        if (health) {
            health->key = *key;
            health->next = healths;
            healths = health;
        }
    }
    if (health)
        health->references++;
    pthread_mutex_unlock(&healths_lock);
    return health;
}

/* A good one is forgotten with its last image, a bad one is kept. */
static void health_put(struct health *health)
{
    pthread_mutex_lock(&healths_lock);
    if (--health->references == 0 && atomic_load(&health->error) == 0) {
        struct health **link = &healths;
        while (*link != health)
            link = &(*link)->next;
        *link = health->next;
        free(health);
    }
    pthread_mutex_unlock(&healths_lock);
}

void health_forget_all(void)
{
    while (healths) {
        struct health *health = healths;
        healths = health->next;
        free(health);
    }
}

int image_health(const struct image *image)
{
    return atomic_load(&image->flush.health->error);
}

static void health_fail(struct image *image, int err)
{
    int expected = 0;

    if (atomic_compare_exchange_strong(&image->flush.health->error, &expected, err))
        log_warning(
            "%s: a sync failed (%s), so writes may be lost: every flush and FUA write on it fails from "
            "now on. Check the disk below, restore or repair the image, then restart nbdkit",
            image->name, strerror(-err));
}

void flush_set_init(struct flush_set *set)
{
    memset(set, 0, sizeof *set);
    pthread_mutex_init(&set->lock, NULL);
    set->last = &set->first;
}

/* More than half of the descriptors that the process may have are in use: the rest is for clients, and for other images. */
static bool is_scarce(int fd)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_NOFILE, &limit) == 0 && (rlim_t)fd >= limit.rlim_cur / 2;
}

int flush_set_open(struct image *image)
{
    struct flush_set *set = &image->flush;

    set->health = health_get(&image->key);
    if (!set->health)
        return -ENOMEM;
    if (image->readonly)
        return 0;
    while (set->count < FLUSH_DESCRIPTORS) {
        int fd = fd_reopen(image->fd, O_RDWR);
        /* One will do: flushes then share syncs.  An inherited descriptor may be all that we may use. */
        if (fd < 0 && set->count == 0 && image->inherited)
            fd = fcntl(image->fd, F_DUPFD_CLOEXEC, 0);
        if (fd < 0) {
            if (set->count == 0)
                return fd == -1 ? -errno : fd;
            break;
        }
        set->fds[set->count] = fd;
        set->free |= 1u << set->count;
        set->count++;
        if (is_scarce(fd))
            break;
    }
    return 0;
}

void flush_set_close(struct image *image)
{
    struct flush_set *set = &image->flush;

    assert(!set->first);
    for (unsigned i = 0; i < set->count; i++)
        close(set->fds[i]);
    if (set->health)
        health_put(set->health);
}

/* Gives the descriptor to the oldest waiter, who leads the next sync, or to nobody. */
static void pass_on(struct flush_set *set, int slot)
{
    struct flush_waiter *heir = set->first;

    if (!heir) {
        set->free |= 1u << slot;
        return;
    }
    set->first = heir->next;
    if (!set->first)
        set->last = &set->first;
    heir->slot = slot;
    pthread_cond_signal(&heir->cond);
}

/* Waits for a descriptor, with the lock held.  Returns a slot, or -1 when another's sync answered: *result. */
static int wait_for_slot(struct flush_set *set, int *result)
{
    struct flush_waiter me = {.slot = -1};

    pthread_cond_init(&me.cond, NULL);
    *set->last = &me;
    set->last = &me.next;
    while (me.slot < 0 && !me.done)
        pthread_cond_wait(&me.cond, &set->lock);
    pthread_cond_destroy(&me.cond);
    *result = me.result;
    return me.done ? -1 : me.slot;
}

/* Did the sync itself fail, and not the way to it? */
static bool is_verdict(int err)
{
    return err < 0 && err != -ESHUTDOWN && err != -ECANCELED && err != -EAGAIN;
}

static int sync_slot(struct image *image, int slot)
{
    struct request request = {.op = REQUEST_FDATASYNC, .fd = image->flush.fds[slot]};

    int r = backend_run(image->backend, &request);
    /* Before the descriptor is free again: this sync took the kernel's report away from it, so its next user would
     * be told a false ok.  He asks image_health after his own sync, and finds this.
     */
    if (is_verdict(r))
        health_fail(image, r);
    return r;
}

int image_flush(struct image *image)
{
    struct flush_set *set = &image->flush;
    struct flush_waiter *joined;
    int r, slot;

    r = image_health(image);
    if (r < 0 || image->readonly)
        return r;
    atomic_store(&image->dirty, false);

    pthread_mutex_lock(&set->lock);
    if (set->free) {
        slot = __builtin_ctz(set->free);
        set->free &= ~(1u << slot);
    } else {
        slot = wait_for_slot(set, &r);
        if (slot < 0) {
            pthread_mutex_unlock(&set->lock);
            return r;
        }
    }
    /* Whoever waits now came before this sync starts, so it answers them too. */
    joined = set->first;
    set->first = NULL;
    set->last = &set->first;
    pthread_mutex_unlock(&set->lock);

    r = sync_slot(image, slot);
    /* Another sync may have failed while this one ran, and taken the report of what was lost before it. */
    if (r == 0)
        r = image_health(image);

    pthread_mutex_lock(&set->lock);
    while (joined) {
        /* The waiter's stack is gone once the lock is: its link is read first, the signal is the last touch. */
        struct flush_waiter *waiter = joined;
        joined = waiter->next;
        waiter->result = r;
        waiter->done = true;
        pthread_cond_signal(&waiter->cond);
    }
    pass_on(set, slot);
    pthread_mutex_unlock(&set->lock);
    return r;
}

/* A descriptor for one write, or -1.  The last free one is left for syncs: if every descriptor were held by
 * a write that failed and wants a witness, none of them could ever get one.
 */
static int lease_slot(struct flush_set *set)
{
    int slot = -1;

    pthread_mutex_lock(&set->lock);
    if (__builtin_popcount(set->free) >= 2) {
        slot = __builtin_ctz(set->free);
        set->free &= ~(1u << slot);
    }
    pthread_mutex_unlock(&set->lock);
    return slot;
}

static void return_slot(struct flush_set *set, int slot)
{
    pthread_mutex_lock(&set->lock);
    pass_on(set, slot);
    pthread_mutex_unlock(&set->lock);
}

static int write_once(struct image *image, int fd, const void *buf, uint64_t length,
                      uint64_t offset, unsigned flags)
{
    struct iovec iov = {.iov_base = (void *)buf, .iov_len = length};
    struct request request = {
        .op = REQUEST_WRITE,
        .flags = flags | (fd == image->fd && image->direct ? 0 : REQUEST_PAGE_CACHE),
        .fd = fd,
        .offset = offset,
        .length = length,
        .iov = &iov,
        .iovcnt = 1,
    };

    return backend_run(image->backend, &request);
}

int image_write_through(struct image *image, int fd, const void *buf, uint64_t length,
                        uint64_t offset)
{
    /* The kernel hands the report of a lost page to whichever call on the descriptor asks first, and that may be
     * another FUA write: so through the page cache each gets a descriptor of its own, as a sync does.  A direct
     * write is told of its own failure by the device.
     */
    bool through_cache = fd == image->buffered_fd;
    int slot = -1;
    int r = image_health(image);

    if (r < 0)
        return r;
    if (!atomic_load(&image->no_dsync)) {
        if (through_cache)
            slot = lease_slot(&image->flush);
        if (slot >= 0 || !through_cache) {
            r = write_once(image, slot >= 0 ? image->flush.fds[slot] : fd, buf, length, offset,
                           REQUEST_FUA);
            /* The witness is a sync on another descriptor, while this one is still held: a full filesystem fails
             * this write and no more, a lost write fails the disk.
             */
            if (r < 0 && r != -EOPNOTSUPP)
                image_flush(image);
            if (slot >= 0)
                return_slot(&image->flush, slot);
            if (r == 0)
                return image_health(image);
            if (r != -EOPNOTSUPP)
                return r;
            atomic_store(&image->no_dsync, true);
        }
    }
    r = write_once(image, fd, buf, length, offset, 0);
    return r < 0 ? r : image_flush(image);
}
