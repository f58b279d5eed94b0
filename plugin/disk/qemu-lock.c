/* SPDX-License-Identifier: BSD-3-Clause */
/* Open file description locks on single bytes.  QEMU's programs agreed on the bytes: byte 100 + n
 * says "I use permission n", byte 200 + n says "nobody else may have permission n".
 *
 * Runs on nbdkit's threads when an image is opened or closed.  Never waits for a lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "plugin/disk/image.h"
#include "pool/schedule-point.h"

#define USED 100
#define UNSHARED 200

enum permission { CONSISTENT_READ = 0, WRITE = 1, RESIZE = 3 };

struct plan {
    /* Offsets of bytes, ended by 0. */
    off_t take[5];   /* what this program announces */
    off_t refuse[6]; /* what no other program may have announced */
};

/* A writer shares reading, but neither writing nor resizing. */
static const struct plan writer = {
    .take = {USED + CONSISTENT_READ, USED + WRITE, UNSHARED + WRITE, UNSHARED + RESIZE},
    .refuse = {USED + WRITE, USED + RESIZE, UNSHARED + CONSISTENT_READ, UNSHARED + WRITE,
               UNSHARED + RESIZE},
};

static const struct plan reader = {
    .take = {USED + CONSISTENT_READ},
    .refuse = {UNSHARED + CONSISTENT_READ},
};

static const struct plan *plan_of(const struct image *image)
{
    return image->readonly ? &reader : &writer;
}

static int busy(const struct image *image, char *why)
{
    snprintf(why, LOG_LINE_SIZE,
             "%s: in use by another program, which excludes serving it %s (locking=off overrides)",
             image->name, image->readonly ? "at all" : "read-write");
    return -EBUSY;
}

/* Announces first and looks at the other programs afterwards.  Of two programs that start at once
 * at least one thus sees the other.
 */
static int take_locks(const struct image *image, const struct plan *plan, char *why)
{
    for (int i = 0; plan->take[i]; i++) {
        struct flock byte = {
            .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = plan->take[i], .l_len = 1};

        if (fcntl(image->fd, F_OFD_SETLK, &byte) < 0) {
            if (errno == EAGAIN || errno == EACCES)
                return busy(image, why);
            return -errno;
        }
    }
    SCHEDULE_POINT();
    for (int i = 0; plan->refuse[i]; i++) {
        struct flock byte = {
            .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = plan->refuse[i], .l_len = 1};

        if (fcntl(image->fd, F_OFD_GETLK, &byte) < 0)
            return -errno;
        if (byte.l_type != F_UNLCK)
            return busy(image, why);
    }
    return 0;
}

int image_lock(struct image *image, enum locking_mode mode, char why[LOG_LINE_SIZE])
{
    if (mode == LOCKING_OFF)
        return 0;
    image->locked = true;
    int r = take_locks(image, plan_of(image), why);
    if (r == 0 || r == -EBUSY)
        return r;
    if (mode == LOCKING_AUTO) {
        log_debug("%s: served without locks: %s", image->name, strerror(-r));
        return 0;
    }
    snprintf(why, LOG_LINE_SIZE, "%s: cannot be locked: %s (locking=auto goes on without)",
             image->name, strerror(-r));
    return r;
}

void image_unlock(const struct image *image)
{
    const struct plan *plan = plan_of(image);

    for (int i = 0; image->locked && plan->take[i]; i++) {
        struct flock byte = {
            .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = plan->take[i], .l_len = 1};

        fcntl(image->fd, F_OFD_SETLK, &byte);
    }
}
