/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening one image, measuring it, and closing it.  See image.h; image-table.c decides when.
 *
 * Runs on nbdkit's threads when clients come and go, on one at a time for each image; image_before_write and image_after_write on
 * the requests' threads.  No lock is held here, so a disk that hangs while it is opened holds up nobody else.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/disk/fd.h"
#include "plugin/disk/image.h"
#include "plugin/disk/log.h"
#include "plugin/disk/qemu-lock.h"

/* Left for connections (each takes three) when many images are open. */
#define DESCRIPTOR_RESERVE 64

static int fail(char *why, const struct image *image, const char *what, int err)
{
    snprintf(why, LOG_LINE_SIZE, "%s: %s: %s", image->name, what, strerror(-err));
    return err;
}

int64_t image_measure(const struct image *image)
{
    uint64_t bytes;
    struct stat st;

    if (image->key.block)
        return ioctl(image->fd, BLKGETSIZE64, &bytes) < 0 ? -errno : (int64_t)bytes;
    return fstat(image->fd, &st) < 0 ? -errno : st.st_size;
}

int image_before_write(struct image *image, uint64_t end)
{
    struct statx stx;

    /* A block device never grows by a write. */
    if (image->key.block)
        return 0;
    /* Asks for the size alone.  fstat(2) would also look at the times, and since Linux 6.13 a time that was looked
     * at makes the next write take a finer one: the inode is dirty again, and each sync has to write
     * it (write + flush, depth 16: 0.75 of nbdkit file's rate with fstat).
     */
    if (statx(image->fd, "", AT_EMPTY_PATH, STATX_SIZE, &stx) < 0)
        return -errno;
    return end <= stx.stx_size ? 0 : -ENOSPC;
}

void image_after_write(struct image *image)
{
    if (!atomic_load_explicit(&image->dirty, memory_order_relaxed))
        atomic_store(&image->dirty, true);
}

/* Can a duplicate of the user's own descriptor stand for one opened with `flags`?  O_APPEND would write somewhere else, and
 * O_DIRECT refuse what is not aligned; the flags are the user's, and not changed.
 */
static bool may_duplicate(int fd, int flags)
{
    int own = fcntl(fd, F_GETFL);

    if (own & O_DIRECT || (own & O_APPEND && (flags & O_ACCMODE) != O_RDONLY))
        return false;
    return (own & O_ACCMODE) == O_RDWR || (own & O_ACCMODE) == (flags & O_ACCMODE);
}

/* Opens path_fd's inode again; where that is forbidden but the descriptor is the user's own, a duplicate of that. */
static int open_again(const struct image *image, int path_fd, int flags)
{
    int fd = fd_reopen(path_fd, flags);

    if (fd < 0 && image->inherited && !(flags & O_DIRECT) && may_duplicate(path_fd, flags))
        fd = fcntl(path_fd, F_DUPFD_CLOEXEC, 0);
    return fd;
}

/* Why it can only be served read-only, or NULL.  Opens image->buffered_fd. */
static int open_buffered(struct image *image, int path_fd, const char **why_readonly)
{
    int is_readonly = 0;

    *why_readonly = NULL;
    image->readonly = image->wants_readonly;
    if (!image->readonly && image->inherited && (fcntl(path_fd, F_GETFL) & O_ACCMODE) == O_RDONLY) {
        image->readonly = true;
        *why_readonly = "the descriptor was opened for reading only";
    }
    if (!image->readonly) {
        image->buffered_fd = open_again(image, path_fd, O_RDWR);
        int err = -image->buffered_fd;
        if (image->buffered_fd < 0 && err != EROFS && err != EACCES && err != EPERM)
            return image->buffered_fd;
        if (image->buffered_fd < 0) {
            image->readonly = true;
            *why_readonly =
                image->inherited && fcntl(path_fd, F_GETFL) & O_APPEND
                    ? "the descriptor was opened with O_APPEND, and the file cannot be opened again"
                    : strerror(err);
        } else if (image->key.block && ioctl(image->buffered_fd, BLKROGET, &is_readonly) == 0 &&
                   is_readonly) {
            /* open(2) lets a read-only block device be opened for writing; only the writes fail. */
            close(image->buffered_fd);
            image->readonly = true;
            *why_readonly = "the block device is read-only (BLKROGET)";
        }
    }
    if (image->readonly)
        image->buffered_fd = open_again(image, path_fd, O_RDONLY);
    return image->buffered_fd < 0 ? image->buffered_fd : 0;
}

/* Once for each filesystem that the last warning was not about: a directory's images are opened again and again. */
static void warn_of_page_cache(const struct image *image, int err)
{
    static _Atomic dev_t warned;

    if (atomic_exchange(&warned, image->key.device) != image->key.device)
        log_warning("%s: cache=none is not possible here (O_DIRECT: %s), so the page cache is used",
                    image->name, strerror(-err));
}

/* With cache=none, opens image->fd with O_DIRECT and measures what that needs; if it is not to be had, says so. */
static int open_direct(struct image *image, bool wanted)
{
    int r = 0;

    image->fd = image->buffered_fd;
    if (wanted) {
        r = fd_reopen(image->buffered_fd, (image->readonly ? O_RDONLY : O_RDWR) | O_DIRECT);
        if (r >= 0) {
            image->fd = r;
            image->direct = true;
            r = image_probe_geometry(image);
            if (r == 0)
                return 0;
            close(image->fd);
            image->fd = image->buffered_fd;
            image->direct = false;
        }
        warn_of_page_cache(image, r);
    }
    return image_probe_geometry(image);
}

/* One of many images must not take the last descriptors: without any, nbdkit accepts no client and says nothing to
 * those who wait.
 */
static bool is_one_too_many(const struct image *image)
{
    struct rlimit limit;

    return !image->keep && getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
           (rlim_t)image->buffered_fd + DESCRIPTOR_RESERVE > limit.rlim_cur;
}

int image_open(struct image *image, int path_fd, const struct image_options *options,
               char why[LOG_LINE_SIZE])
{
    const char *why_readonly;

    int r = open_buffered(image, path_fd, &why_readonly);
    if (r == 0 && is_one_too_many(image))
        r = -EMFILE;
    if (r < 0)
        return fail(why, image, "cannot be opened", r);
    r = open_direct(image, options->direct);
    if (r < 0)
        return fail(why, image, "cannot be measured", r);
    int64_t size = image_measure(image);
    if (size < 0)
        return fail(why, image, "its size cannot be read", size);
    atomic_store(&image->size, size);
    r = image_lock(image, options->locking, why);
    if (r < 0)
        return r;
    r = flush_set_open(image);
    if (r < 0)
        return fail(why, image, "descriptors to flush it cannot be opened", r);
    if (why_readonly)
        log_warning("%s: served read-only: %s", image->name, why_readonly);
    log_debug(
        "%s: %s, %lld bytes, %s, %s, direct I/O alignment %u (memory %u), preferred block %u, %u flush descriptors",
        image->name, image->key.block ? "block device" : "file", (long long)size,
        image->readonly ? "read-only" : "read-write", image->direct ? "O_DIRECT" : "page cache",
        image->geometry.align, image->geometry.mem_align, image->geometry.preferred_block,
        image->flush.count);
    return 0;
}

static void stop_prefetches(struct image *image)
{
    pthread_mutex_lock(&image->prefetch_lock);
    image->closing = true;
    while (image->prefetches > 0)
        pthread_cond_wait(&image->prefetch_done, &image->prefetch_lock);
    pthread_mutex_unlock(&image->prefetch_lock);
}

void image_close(struct image *image)
{
    stop_prefetches(image);
    flush_set_close(image);
    if (image->fd >= 0 && image->fd != image->buffered_fd)
        close(image->fd);
    if (image->buffered_fd >= 0)
        close(image->buffered_fd);
}

void image_free(struct image *image)
{
    range_lock_destroy(&image->ranges);
    pthread_mutex_destroy(&image->flush.lock);
    sem_destroy(&image->write_turns);
    pthread_mutex_destroy(&image->fallocate_lock);
    pthread_mutex_destroy(&image->prefetch_lock);
    pthread_cond_destroy(&image->prefetch_done);
    free(image->name);
    free(image);
}

struct image *image_new(const struct image_key *key, const char *name,
                        const struct image_options *options)
{
    struct image *image = calloc(1, sizeof *image);

    if (!image)
        return NULL;
    image->name = strdup(name);
    if (!image->name) {
        free(image);
        return NULL;
    }
    image->key = *key;
    image->backend = options->backend;
    image->wants_readonly = options->readonly;
    image->inherited = options->inherited;
    image->keep = options->keep;
    image->takes_turns = options->callers_write && !key->block;
    image->fd = image->buffered_fd = -1;
    flush_set_init(&image->flush);
    range_lock_init(&image->ranges);
    sem_init(&image->write_turns, 0, IMAGE_WRITE_TURNS);
    pthread_mutex_init(&image->fallocate_lock, NULL);
    pthread_mutex_init(&image->prefetch_lock, NULL);
    pthread_cond_init(&image->prefetch_done, NULL);
    return image;
}

/* The boundary between what goes direct and what goes through the page cache moves with the size, so no write may be under
 * way.
 */
void image_follow_size(struct image *image)
{
    struct range everything = {.start = 0, .end = UINT64_MAX, .exclusive = true};
    int64_t size = image_measure(image);

    if (size < 0 || (uint64_t)size == atomic_load(&image->size))
        return;
    if (image->direct)
        range_acquire(&image->ranges, &everything);
    atomic_store(&image->size, size);
    if (image->direct)
        range_release(&image->ranges, &everything);
}

bool image_could_be_written(const struct image *image, int path_fd)
{
    int is_readonly = 0;

    if (image->inherited && (fcntl(path_fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
        return false;
    int fd = open_again(image, path_fd, O_RDWR);
    if (fd < 0)
        return false;
    if (image->key.block && ioctl(fd, BLKROGET, &is_readonly) < 0)
        is_readonly = 1;
    close(fd);
    return !is_readonly;
}
