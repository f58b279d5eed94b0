/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of open images.  Clients of the same disk share one image, under whatever name each
 * client found the disk.
 *
 * Runs on nbdkit's threads when clients connect and disconnect, and on the main thread at the end.
 * The table's lock is never held during a system call on a disk: a disk that is slow or hangs holds
 * up only the clients of that disk.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "plugin/disk/health.h"
#include "plugin/disk/image-table.h"
#include "plugin/disk/image.h"
#include "pool/schedule-point.h"

/* How often an image whose lock another program holds is tried, see image_get. */
#define LOCK_TRIES 25
#define LOCK_PAUSE_NS 20000000

static pthread_mutex_t images_lock = PTHREAD_MUTEX_INITIALIZER;
/* Broadcast when an image was opened or has left the table. */
static pthread_cond_t images_changed = PTHREAD_COND_INITIALIZER;
static struct image *images; /* under images_lock */

/* Under images_lock. */
static struct image *find_image(const struct image_key *key, bool readonly)
{
    struct image *image = images;

    while (image && !(image->wants_readonly == readonly && image_key_equal(&image->key, key)))
        image = image->entry.next;
    return image;
}

/* Under images_lock, which is released during the close.  Nobody has a reference.  A client that
 * comes meanwhile waits until the image has left the table.
 */
static void close_and_unlink(struct image *image)
{
    assert(image->entry.references == 0);
    image->entry.state = IMAGE_CLOSING;
    pthread_mutex_unlock(&images_lock);
    SCHEDULE_POINT();
    image_close(image);
    SCHEDULE_POINT();
    pthread_mutex_lock(&images_lock);
    struct image **link = &images;
    while (*link != image)
        link = &(*link)->entry.next;
    *link = image->entry.next;
    pthread_cond_broadcast(&images_changed);
    image_free(image);
}

/* Under images_lock, which is released during the flush.  The caller has the only reference.  Makes
 * what was written durable while the image is still open and in the table.  A client that came,
 * wrote and left meanwhile made the image dirty again.
 */
static void flush_dirty(struct image *image)
{
    while (image->entry.references == 1 && atomic_load(&image->flush.dirty) &&
           image_health(image) == 0) {
        pthread_mutex_unlock(&images_lock);
        SCHEDULE_POINT();
        image_flush(image);
        SCHEDULE_POINT();
        pthread_mutex_lock(&images_lock);
    }
}

/* Under images_lock, which is released while another thread opens or closes the image.  Stores the
 * image of the disk, with a reference for the caller: an open one; or a new one, which takes over
 * `opened` and which the caller is to open.  Returns 0, -ENOMEM, or -EMFILE: a new image would take
 * the last descriptors.  A further client of an open image needs none.
 */
static int find_or_add(struct image_source *opened, const char *name,
                       const struct image_options *options, struct image **result)
{
    struct image *image = find_image(&opened->key, options->readonly);

    while (image && image->entry.state != IMAGE_OPEN) {
        pthread_cond_wait(&images_changed, &images_lock);
        image = find_image(&opened->key, options->readonly);
    }
    if (!image) {
        if (image_takes_last_descriptors(opened, options))
            return -EMFILE;
        image = image_new(opened, name, options);
        if (!image)
            return -ENOMEM;
        image->entry.next = images;
        images = image;
    }
    image->entry.references++;
    *result = image;
    return 0;
}

/* Opens the new image, and wakes the clients that wait for that. */
static int open_new(struct image *image, const struct image_options *options,
                    char why[LOG_LINE_SIZE])
{
    SCHEDULE_POINT();
    int r = image_open(image, options, why);

    pthread_mutex_lock(&images_lock);
    if (r == 0) {
        image->entry.state = IMAGE_OPEN;
        pthread_cond_broadcast(&images_changed);
    } else {
        image->entry.references--;
        close_and_unlink(image);
    }
    pthread_mutex_unlock(&images_lock);
    return r;
}

static int get_once(int path_fd, const char *name, const struct image_options *options,
                    struct image **result, char why[LOG_LINE_SIZE])
{
    struct image_source opened;
    struct image *image;

    /* The key is that of the descriptor that will be used, not of path_fd: on overlayfs the first
     * open for writing copies the file up, which changes its device and inode.
     */
    int r = image_open_source(&opened, path_fd, name, options, why);
    if (r < 0)
        return r;
    pthread_mutex_lock(&images_lock);
    r = find_or_add(&opened, name, options, &image);
    bool is_new = r == 0 && image->entry.state == IMAGE_OPENING;
    pthread_mutex_unlock(&images_lock);
    if (r < 0) {
        image_close_source(&opened);
        snprintf(why, LOG_LINE_SIZE, "%s: cannot be opened: %s", name, strerror(-r));
        return r;
    }
    if (is_new) {
        r = open_new(image, options, why);
    } else {
        image_close_source(&opened);
        SCHEDULE_POINT();
        /* The disk may have become larger or smaller: a new client sees the size of now. */
        image_follow_size(image);
    }
    if (r == 0)
        *result = image;
    return r;
}

/* The locks of a killed program that used io_uring are released up to 60 ms after wait(2) has
 * reported its death (seen on Linux 6.18).  A server that is restarted at once must not refuse its
 * first client for that.
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
    flush_dirty(image);
    assert(image->entry.references > 0);
    if (--image->entry.references == 0)
        close_and_unlink(image);
    pthread_mutex_unlock(&images_lock);
}
