/* SPDX-License-Identifier: BSD-3-Clause */
/* Flush and FUA.  See flush.h.
 *
 * Runs on the threads of requests.  A request that waits here, for a descriptor or for the sync of
 * another request, waits before it takes a slot of the pool, so no worker waits for another
 * request.  The lock of the set is never held during I/O.
 */
#include "plugin/disk/flush.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "plugin/disk/fd.h"
#include "plugin/disk/health.h"
#include "plugin/disk/image.h"
#include "pool/schedule-point.h"

/* A flush that found no free descriptor.  A sync that starts after the flush came answers it:
 * either the flush is given a descriptor and leads a sync, or the leader of a sync takes the flush
 * along.  On the stack of its thread, under the set's lock.
 */
struct flush_waiter {
    pthread_cond_t cond;
    struct flush_waiter *next;
    int slot; /* >= 0: this flush leads, with that descriptor */
    bool done;
    int result; /* once done */
};

void flush_set_init(struct flush_set *set)
{
    memset(set, 0, sizeof *set);
    pthread_mutex_init(&set->lock, NULL);
    set->last = &set->first;
}

void flush_set_destroy(struct flush_set *set)
{
    pthread_mutex_destroy(&set->lock);
}

/* More than half of the descriptors that the process may have are in use.  The other half is for
 * connections and for other images.
 */
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
        /* One descriptor is enough: flushes then share syncs.  A descriptor that the user passed
         * may be all that the process may use.
         */
        if (fd < 0 && set->count == 0 && image->inherited) {
            fd = fcntl(image->fd, F_DUPFD_CLOEXEC, 0);
            if (fd < 0)
                fd = -errno;
        }
        if (fd < 0)
            return set->count == 0 ? fd : 0;
        set->fds[set->count] = fd;
        set->free |= 1u << set->count;
        set->count++;
        if (is_scarce(fd))
            break;
    }
    return 0;
}

/* The kernel has no common code that obeys RWF_DSYNC: each filesystem has to sync after the write,
 * and the write succeeds all the same where a filesystem does not.  So only the filesystems that
 * are known to sync are trusted.
 *
 * iomap syncs when an asynchronous write ends (iomap_dio_complete), and so ext4 and xfs do; tmpfs
 * has nothing to sync.  btrfs, f2fs and NFS are trusted with synchronous writes only.
 *
 * 9p never syncs unless its cache=loose (seen on Linux 6.1), nor do direct writes of what is built
 * on netfs (9p, SMB and others, Linux 6.8 and later).  FUSE leaves the sync out where the write is
 * asynchronous (O_DIRECT by a ring): tests/fault/log-replay.sh found that on Linux 6.18.  Whether
 * FUSE obeys elsewhere depends on flags of the FUSE server that nobody can ask for.  overlayfs
 * passes the write on to a filesystem that nobody can ask for either.
 */
static bool obeys_dsync(const struct image *image)
{
    if (image->key.block)
        return true;
    switch (image->geometry.fs_type) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:
    case TMPFS_MAGIC:
        return true;
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case NFS_SUPER_MAGIC:
        return !image->direct || backend_callers_perform(image->room.backend);
    default:
        return false;
    }
}

void flush_set_choose(struct image *image)
{
    if (!obeys_dsync(image))
        atomic_store(&image->flush.no_dsync, true);
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

/* Under lock: gives the descriptor to the oldest waiter, which leads the next sync, or frees it. */
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
    SCHEDULE_POINT();
    pthread_cond_signal(&heir->cond);
}

/* Under lock, which is released while the flush waits.  Returns the descriptor to lead a sync with,
 * or -1 when the sync of another flush gave the answer: *result.
 */
static int wait_for_slot(struct flush_set *set, int *result)
{
    struct flush_waiter self = {.slot = -1};

    pthread_cond_init(&self.cond, NULL);
    *set->last = &self;
    set->last = &self.next;
    progress_at(PLACE_FLUSH_JOIN);
    while (self.slot < 0 && !self.done)
        pthread_cond_wait(&self.cond, &set->lock);
    progress_at(PLACE_PLUGIN);
    pthread_cond_destroy(&self.cond);
    *result = self.result;
    return self.done ? -1 : self.slot;
}

/* Did the sync itself fail?  These errors mean that the sync was not carried out. */
static bool is_verdict(int err)
{
    return err < 0 && err != -ESHUTDOWN && err != -ECANCELED && err != -EAGAIN;
}

static int sync_slot(struct image *image, int slot)
{
    struct request request = {.op = REQUEST_FDATASYNC, .fd = image->flush.fds[slot]};

    SCHEDULE_POINT();
    int r = backend_run(image->room.backend, &request);
    SCHEDULE_POINT();
    /* To the callers -EOPNOTSUPP says that nothing was done: a fast zero would return it after it
     * has zeroed, and nbdkit would write instead.
     */
    if (r == -EOPNOTSUPP)
        r = -EIO;
    /* Record the failure before releasing the descriptor.  The kernel reports it once, so the next
     * sync there would succeed; its caller then checks image_health.
     */
    if (is_verdict(r))
        image_fail(image, r);
    SCHEDULE_POINT();
    return r;
}

/* Under lock: answers the flushes that the sync took along. */
static void answer_joined(struct flush_waiter *joined, int result)
{
    while (joined) {
        /* The waiter's stack is gone once the lock is released: read the link first, signal last.
         */
        struct flush_waiter *waiter = joined;
        joined = waiter->next;
        waiter->result = result;
        waiter->done = true;
        SCHEDULE_POINT();
        pthread_cond_signal(&waiter->cond);
    }
}

int image_flush(struct image *image)
{
    struct flush_set *set = &image->flush;
    struct flush_waiter *joined;
    int r, slot;

    r = image_health(image);
    if (r < 0 || image->readonly)
        return r;
    atomic_store(&set->dirty, false);
    SCHEDULE_POINT();

    pthread_mutex_lock(&set->lock);
    if (set->free) {
        slot = __builtin_ctz(set->free);
        set->free &= ~(1u << slot);
    } else {
        slot = wait_for_slot(set, &r);
        if (slot < 0) {
            pthread_mutex_unlock(&set->lock);
            tally_add(image->tally, DISK_TALLY_FLUSHES_JOINED, 1);
            return r;
        }
    }
    /* The flushes that wait now came before this sync starts, so the sync answers them too. */
    joined = set->first;
    set->first = NULL;
    set->last = &set->first;
    pthread_mutex_unlock(&set->lock);

    r = sync_slot(image, slot);
    /* Another sync may have failed meanwhile, and taken the report of a write lost before this sync
     * began.
     */
    if (r == 0)
        r = image_health(image);

    pthread_mutex_lock(&set->lock);
    answer_joined(joined, r);
    pass_on(set, slot);
    pthread_mutex_unlock(&set->lock);
    return r;
}

/* Returns a descriptor for one FUA write, or -1.  Never takes the last free descriptor: failed FUA
 * writes hold theirs while they sync on another.
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

/* Writes with RWF_DSYNC.  Returns -EOPNOTSUPP where that does not work, or when no descriptor is
 * free.
 *
 * Through the page cache the write uses a descriptor of its own, as a sync does: the kernel gives
 * the report of a lost page to the first call on the descriptor that asks, and that could be
 * another FUA write.  A direct write gets its own failure from the device.
 */
static int write_dsync(struct image *image, int fd, const void *buf, uint64_t length,
                       uint64_t offset)
{
    struct flush_set *set = &image->flush;
    int slot = -1;

    if (atomic_load(&set->no_dsync))
        return -EOPNOTSUPP;
    if (fd == image->buffered_fd) {
        slot = lease_slot(set);
        if (slot < 0)
            return -EOPNOTSUPP;
        fd = set->fds[slot];
    }
    int r =
        image_transfer(image, REQUEST_WRITE, REQUEST_FUA, fd, (void *)buf, length, offset, NULL);
    if (r == -EOPNOTSUPP)
        atomic_store(&set->no_dsync, true);
    /* A sync on another descriptor is the witness, while this descriptor is still held: on a full
     * filesystem only this write has failed; after a lost write the sync fails too, and so does the
     * disk.
     */
    else if (r < 0)
        image_flush(image);
    SCHEDULE_POINT();
    if (slot >= 0)
        return_slot(set, slot);
    return r == 0 ? image_health(image) : r;
}

int image_write_through(struct image *image, int fd, const void *buf, uint64_t length,
                        uint64_t offset)
{
    int r = image_health(image);

    if (r < 0)
        return r;
    r = write_dsync(image, fd, buf, length, offset);
    if (r != -EOPNOTSUPP)
        return r;
    tally_add(image->tally, DISK_TALLY_FELL_TO_SYNC, 1);
    r = image_transfer(image, REQUEST_WRITE, 0, fd, (void *)buf, length, offset, NULL);
    return r < 0 ? r : image_flush(image);
}
