/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing the metrics file.  See metrics-file.h.
 *
 * Each write makes a new file beside the old one, locks it and renames it over the old one.  The
 * lock is on the open file description of the newest file (fcntl(2), F_OFD_SETLK), so it ends with
 * the process, and no file but the metrics file is left behind.
 *
 * Runs on the observer's thread, but for the functions that metrics-file.h gives to the main
 * thread.  Never runs on a thread of requests, and no request waits for it.
 */
#include "plugin/watch/metrics-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* How each file of metrics_print begins. */
#define METRICS_START "# HELP aiodisk_"

static struct {
    /* Set once by metrics_file_open. */
    const char *path;
    struct metrics_labels labels;

    /* The observer's thread. */
    int fd;      /* the file that was written last, with the lock; or -1 */
    bool warned; /* the last write failed */
} file = {.fd = -1};

static struct flock whole_file(void)
{
    return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
}

/* Whether a server has written this file.  What a server that was killed has written may be a part
 * of the text.  Returns 0; -EEXIST if the file holds anything else; or -errno.
 */
static int check_content(int fd)
{
    char start[sizeof METRICS_START - 1];

    ssize_t n = pread(fd, start, sizeof start, 0);
    if (n < 0)
        return -errno;
    return memcmp(start, METRICS_START, n) == 0 ? 0 : -EEXIST;
}

/* Whether the file at `path` may be replaced.  Returns 0; -EBUSY if another server holds the lock
 * on it, -EINVAL if it is no regular file, -EEXIST if no server has written it; or -errno.
 */
static int check_replaceable(const char *path)
{
    struct flock lock = whole_file();
    struct stat now, ours;

    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    int r = fstat(fd, &now) < 0 ? -errno : 0;
    bool is_ours = r == 0 && file.fd >= 0 && fstat(file.fd, &ours) == 0 &&
                   ours.st_dev == now.st_dev && ours.st_ino == now.st_ino;
    if (r == 0 && !S_ISREG(now.st_mode))
        r = -EINVAL;
    /* A filesystem without locks has no other owner that could be seen. */
    if (r == 0 && !is_ours && fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK)
        r = -EBUSY;
    if (r == 0 && !is_ours)
        r = check_content(fd);
    close(fd);
    return r;
}

static const char *explain(int error)
{
    return error == -EBUSY      ? "another server writes this file"
           : error == -EINVAL   ? "not a regular file"
           : error == -EEXIST   ? "no server wrote this file, so it is not replaced"
           : error == -ENOTUNIQ ? "no server wrote the file of this name with .tmp at the end"
                                : strerror(-error);
}

int metrics_file_check(const char *path, char why[LOG_LINE_SIZE])
{
    int r = check_replaceable(path);

    if (r != -EBUSY && r != -EINVAL && r != -EEXIST)
        return 0;
    snprintf(why, LOG_LINE_SIZE, "metrics=%s: %s; give each server a file of its own", path,
             explain(r));
    return r;
}

static int write_all(int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, text, length);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            text += n;
            length -= n;
        }
    }
    return 0;
}

/* Writes and locks a new file called `name`.  Returns its descriptor; -ENOTUNIQ if `name` exists
 * and no server has written it; or -errno.
 */
static int make(const char *name, const char *text, size_t length)
{
    struct flock lock = whole_file();

    /* What a server that was killed left behind. */
    int r = check_replaceable(name);
    if (r < 0)
        return r == -EEXIST ? -ENOTUNIQ : r;
    unlink(name);
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    r = write_all(fd, text, length);
    if (r < 0) {
        unlink(name);
        close(fd);
        return r;
    }
    fcntl(fd, F_OFD_SETLK, &lock);
    return fd;
}

static int replace(const char *text, size_t length)
{
    char *name;

    int r = check_replaceable(file.path);
    if (r < 0)
        return r;
    if (asprintf(&name, "%s.tmp", file.path) < 0)
        return -ENOMEM;
    int fd = r = make(name, text, length);
    if (fd >= 0 && rename(name, file.path) < 0) {
        r = -errno;
        unlink(name);
        close(fd);
    }
    free(name);
    if (r < 0)
        return r;
    if (file.fd >= 0)
        close(file.fd);
    file.fd = fd;
    return 0;
}

void metrics_file_open(const char *path, const struct metrics_labels *labels)
{
    file.path = path;
    file.labels = *labels;
}

void metrics_file_write(bool up)
{
    char *text = NULL;
    size_t length;
    int r = -ENOMEM;

    FILE *out = open_memstream(&text, &length);
    if (out) {
        metrics_print(out, &file.labels, up);
        if (fclose(out) == 0)
            r = replace(text, length);
    }
    free(text);
    if (r < 0 && !file.warned)
        log_warning("metrics=%s: not written: %s", file.path, explain(r));
    file.warned = r < 0;
}

void metrics_file_close(void)
{
    if (file.fd >= 0)
        close(file.fd);
    file.fd = -1;
}
