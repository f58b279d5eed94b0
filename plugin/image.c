/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening images and sharing them.  See image.h.
 *
 * Runs on nbdkit's threads when clients come and go.  The lock of the list is held while an image is
 * opened, so that two clients who come at once get the same one; never while one is flushed.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "plugin/image.h"
#include "plugin/lock.h"
#include "plugin/log.h"

/* Left for connections (each takes three) when many images are open. */
#define DESCRIPTOR_RESERVE 64

/* For half a second: see image_get. */
#define LOCK_TRIES 25
#define LOCK_PAUSE_NS 20000000

static pthread_mutex_t images_lock = PTHREAD_MUTEX_INITIALIZER;
static struct image *images; /* under images_lock */

static int fail(char *why, const struct image *image, const char *what, int err)
{
    snprintf(why, SOURCE_ERROR_SIZE, "%s: %s: %s", image->name, what, strerror(-err));
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

    if (!atomic_load_explicit(&image->dirty, memory_order_relaxed))
        atomic_store(&image->dirty, true);
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

/* Opens path_fd's inode again; where that is forbidden but the descriptor is the user's own, a duplicate of that. */
static int open_again(const struct image *image, int path_fd, int flags)
{
    int fd = source_reopen(path_fd, flags);

    if (fd < 0 && image->inherited && !(flags & O_DIRECT)) {
        int mode = fcntl(path_fd, F_GETFL) & O_ACCMODE;
        if (mode == O_RDWR || mode == (flags & O_ACCMODE))
            fd = fcntl(path_fd, F_DUPFD_CLOEXEC, 0);
    }
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
            *why_readonly = strerror(err);
        } else if (image->key.block && ioctl(image->buffered_fd, BLKROGET, &is_readonly) == 0 && is_readonly) {
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

/* With cache=none, opens image->fd with O_DIRECT and measures what that needs; if it is not to be had, says so. */
static int open_direct(struct image *image, bool wanted)
{
    int r = 0;

    image->fd = image->buffered_fd;
    if (wanted) {
        r = source_reopen(image->buffered_fd, (image->readonly ? O_RDONLY : O_RDWR) | O_DIRECT);
        if (r >= 0) {
            image->fd = r;
            image->direct = true;
            r = geometry_probe(image);
            if (r == 0)
                return 0;
            close(image->fd);
            image->fd = image->buffered_fd;
            image->direct = false;
        }
        log_warning("%s: cache=none is not possible here (O_DIRECT: %s), so the page cache is used", image->name,
                    strerror(-r));
    }
    return geometry_probe(image);
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

static int open_image(struct image *image, int path_fd, const struct image_options *options, char *why)
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
    r = lock_image(image, options->locking, why);
    if (r < 0)
        return r;
    r = flush_set_open(image);
    if (r < 0)
        return fail(why, image, "descriptors to flush it cannot be opened", r);
    if (why_readonly)
        log_warning("%s: served read-only: %s", image->name, why_readonly);
    log_debug("%s: %s, %lld bytes, %s, %s, direct I/O alignment %u (memory %u), preferred block %u, %u flush descriptors",
              image->name, image->key.block ? "block device" : "file", (long long)size,
              image->readonly ? "read-only" : "read-write", image->direct ? "O_DIRECT" : "page cache", image->align,
              image->mem_align, image->preferred_block, image->flush.count);
    return 0;
}

static void close_image(struct image *image)
{
    flush_set_close(image);
    if (image->fd >= 0 && image->fd != image->buffered_fd)
        close(image->fd);
    if (image->buffered_fd >= 0)
        close(image->buffered_fd);
    range_lock_destroy(&image->ranges);
    pthread_mutex_destroy(&image->fallocate_lock);
    pthread_mutex_destroy(&image->prefetch_lock);
    pthread_cond_destroy(&image->prefetch_done);
    free(image->name);
    free(image);
}

static struct image *new_image(const struct image_key *key, const char *name, const struct image_options *options)
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
    image->fd = image->buffered_fd = -1;
    flush_set_init(&image->flush);
    range_lock_init(&image->ranges);
    pthread_mutex_init(&image->fallocate_lock, NULL);
    pthread_mutex_init(&image->prefetch_lock, NULL);
    pthread_cond_init(&image->prefetch_done, NULL);
    return image;
}

static struct image *find_image(const struct image_key *key, bool readonly)
{
    struct image *image = images;

    while (image && !(image->wants_readonly == readonly && image->key.block == key->block &&
                      image->key.device == key->device && image->key.inode == key->inode))
        image = image->next;
    return image;
}

static int get_once(int path_fd, const char *name, const struct image_options *options, struct image **result,
                    char why[SOURCE_ERROR_SIZE])
{
    struct stat st;
    int r = 0;

    if (fstat(path_fd, &st) < 0) {
        r = -errno;
        snprintf(why, SOURCE_ERROR_SIZE, "%s: %s", name, strerror(-r));
        return r;
    }
    struct image_key key = {.block = S_ISBLK(st.st_mode)};
    key.device = key.block ? st.st_rdev : st.st_dev;
    key.inode = key.block ? 0 : st.st_ino;

    pthread_mutex_lock(&images_lock);
    struct image *image = find_image(&key, options->readonly);
    if (image) {
        /* A file may have been made larger or smaller since: who comes now sees what it is now. */
        int64_t size = image_measure(image);
        if (size >= 0)
            atomic_store(&image->size, size);
    } else {
        image = new_image(&key, name, options);
        if (!image) {
            snprintf(why, SOURCE_ERROR_SIZE, "%s: %s", name, strerror(ENOMEM));
            r = -ENOMEM;
        } else {
            r = open_image(image, path_fd, options, why);
            if (r < 0) {
                close_image(image);
            } else {
                image->next = images;
                images = image;
            }
        }
    }
    if (r == 0) {
        image->references++;
        *result = image;
    }
    pthread_mutex_unlock(&images_lock);
    return r;
}

/* The locks of a killed program that used io_uring go away up to 60 ms after wait(2) has told of its death (seen on Linux
 * 6.18): a server that is restarted at once must not refuse its first client for that.
 */
int image_get(int path_fd, const char *name, const struct image_options *options, struct image **result,
              char why[SOURCE_ERROR_SIZE])
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
    int r = get_once(path_fd, name, options, result, why);

    for (int i = 1; i < LOCK_TRIES && r == -EBUSY; i++) {
        nanosleep(&pause, NULL);
        r = get_once(path_fd, name, options, result, why);
    }
    return r;
}

static void wait_for_prefetches(struct image *image)
{
    pthread_mutex_lock(&image->prefetch_lock);
    while (image->prefetches > 0)
        pthread_cond_wait(&image->prefetch_done, &image->prefetch_lock);
    pthread_mutex_unlock(&image->prefetch_lock);
}

/* Under images_lock. */
static void unlink_image(struct image *image)
{
    struct image **link = &images;

    while (*link != image)
        link = &(*link)->next;
    *link = image->next;
}

void image_put(struct image *image)
{
    pthread_mutex_lock(&images_lock);
    /* The last client's writes are made durable while the image is still open and found by newcomers, and
     * the lock is free for them; whoever came, wrote and left meanwhile made it dirty again.
     */
    while (!image->keep && image->references == 1 && atomic_load(&image->dirty) && flush_health(image) == 0) {
        pthread_mutex_unlock(&images_lock);
        flush_image(image);
        pthread_mutex_lock(&images_lock);
    }
    assert(image->references > 0);
    if (--image->references > 0 || image->keep) {
        pthread_mutex_unlock(&images_lock);
        return;
    }
    unlink_image(image);
    wait_for_prefetches(image);
    close_image(image);
    pthread_mutex_unlock(&images_lock);
}

void image_close_all(void)
{
    while (images) {
        struct image *image = images;

        assert(image->references == 0);
        images = image->next;
        wait_for_prefetches(image);
        close_image(image);
    }
}
