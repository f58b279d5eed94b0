/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of open images: who comes for the same disk gets the same image, whatever name it came by.
 *
 * Runs on nbdkit's threads when clients come and go.  The list's lock is never held while an image is opened, flushed or closed:
 * a disk that is slow or hangs holds up only those who come for that disk.  (find_stale does look at the
 * disk of a kept image, but then all clients come for that one: only file= and fd= keep images.)
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "plugin/disk/health.h"
#include "plugin/disk/image-table.h"

/* For half a second: see image_get. */
#define LOCK_TRIES 25
#define LOCK_PAUSE_NS 20000000

static pthread_mutex_t images_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t images_changed =
    PTHREAD_COND_INITIALIZER; /* broadcast: an image was opened, or left the list */
static struct image *images;  /* under images_lock */

/* Under images_lock. */
static struct image *find_image(const struct image_key *key, bool readonly)
{
    struct image *image = images;

    while (image && !(image->wants_readonly == readonly && image_key_equal(&image->key, key)))
        image = image->next;
    return image;
}

/* Under images_lock: an image that is kept without a client and is not what the newcomer means.  The file was replaced by another
 * of the same name, or it could only be read and now can be written.
 */
static struct image *find_stale(const struct image_key *key, int path_fd)
{
    struct image *image = images;

    for (; image; image = image->next) {
        if (!image->keep || image->references > 0 || image->state != IMAGE_OPEN)
            continue;
        if (!image_key_equal(&image->key, key))
            break;
        if (image->readonly && !image->wants_readonly && image_could_be_written(image, path_fd))
            break;
    }
    return image;
}

/* Under images_lock, which it lets go meanwhile.  Nobody has a reference.  Newcomers wait until it has left the list. */
static void close_and_unlink(struct image *image)
{
    assert(image->references == 0);
    image->state = IMAGE_CLOSING;
    pthread_mutex_unlock(&images_lock);
    image_close(image);
    pthread_mutex_lock(&images_lock);
    struct image **link = &images;
    while (*link != image)
        link = &(*link)->next;
    *link = image->next;
    pthread_cond_broadcast(&images_changed);
    image_free(image);
}

/* Under images_lock, which it lets go meanwhile.  The caller has the only reference.  What was written is made durable while the
 * image is still open and found by newcomers; whoever came, wrote and left meanwhile made it dirty again.
 */
static void flush_dirty(struct image *image)
{
    while (image->references == 1 && atomic_load(&image->dirty) && image_health(image) == 0) {
        pthread_mutex_unlock(&images_lock);
        image_flush(image);
        pthread_mutex_lock(&images_lock);
    }
}

/* Under images_lock, which it lets go meanwhile. */
static void close_stale(const struct image_key *key, int path_fd)
{
    struct image *image;

    while ((image = find_stale(key, path_fd))) {
        image->references++;
        flush_dirty(image);
        if (--image->references == 0)
            close_and_unlink(image);
    }
}

/* Under images_lock, which it lets go meanwhile.  The image in question, with a reference for the caller: an open one, or a new
 * one that the caller is to open.  NULL: no memory.
 */
static struct image *find_or_add(const struct image_key *key, int path_fd, const char *name,
                                 const struct image_options *options)
{
    close_stale(key, path_fd);
    struct image *image = find_image(key, options->readonly);
    while (image && image->state != IMAGE_OPEN) {
        pthread_cond_wait(&images_changed, &images_lock);
        image = find_image(key, options->readonly);
    }
    if (!image) {
        image = image_new(key, name, options);
        if (!image)
            return NULL;
        image->next = images;
        images = image;
    }
    image->references++;
    return image;
}

static int get_once(int path_fd, const char *name, const struct image_options *options,
                    struct image **result, char why[LOG_LINE_SIZE])
{
    struct stat st;

    if (fstat(path_fd, &st) < 0) {
        int err = -errno;
        snprintf(why, LOG_LINE_SIZE, "%s: %s", name, strerror(-err));
        return err;
    }
    struct image_key key = {.block = S_ISBLK(st.st_mode)};
    key.device = key.block ? st.st_rdev : st.st_dev;
    key.inode = key.block ? 0 : st.st_ino;

    pthread_mutex_lock(&images_lock);
    struct image *image = find_or_add(&key, path_fd, name, options);
    bool is_new = image && image->state == IMAGE_OPENING;
    pthread_mutex_unlock(&images_lock);
    if (!image) {
        snprintf(why, LOG_LINE_SIZE, "%s: %s", name, strerror(ENOMEM));
        return -ENOMEM;
    }
    if (!is_new) {
        /* A file may have been made larger or smaller since: who comes now sees what it is now. */
        image_follow_size(image);
        *result = image;
        return 0;
    }

    int r = image_open(image, path_fd, options, why);
    pthread_mutex_lock(&images_lock);
    if (r == 0) {
        image->state = IMAGE_OPEN;
        pthread_cond_broadcast(&images_changed);
        *result = image;
    } else {
        image->references--;
        close_and_unlink(image);
    }
    pthread_mutex_unlock(&images_lock);
    return r;
}

/* The locks of a killed program that used io_uring go away up to 60 ms after wait(2) has told of its death (seen on Linux
 * 6.18): a server that is restarted at once must not refuse its first client for that.
 */
int image_get(int path_fd, const char *name, const struct image_options *options,
              struct image **result, char why[LOG_LINE_SIZE])
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
    int r = get_once(path_fd, name, options, result, why);

    for (int i = 1; i < LOCK_TRIES && r == -EBUSY; i++) {
        nanosleep(&pause, NULL);
        r = get_once(path_fd, name, options, result, why);
    }
    return r;
}

void image_put(struct image *image)
{
    pthread_mutex_lock(&images_lock);
    if (!image->keep)
        flush_dirty(image);
    assert(image->references > 0);
    if (--image->references == 0 && !image->keep)
        close_and_unlink(image);
    pthread_mutex_unlock(&images_lock);
}

void image_close_all(void)
{
    pthread_mutex_lock(&images_lock);
    while (images)
        close_and_unlink(images);
    pthread_mutex_unlock(&images_lock);
}
