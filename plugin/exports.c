/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds, checks and opens what file=, dir=, fd= and dirfd= refer to.  See exports.h.
 *
 * Runs on nbdkit's main thread at start and on a connection's thread when a client connects or
 * lists the exports.  Never opens a file for reading or writing before its type has been checked,
 * and never writes.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "plugin/disk/fd.h"
#include "plugin/exports.h"

/* Stores the formatted line in `why` and returns `err`. */
static int fail(char *why, int err, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int fail(char *why, int err, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(why, LOG_LINE_SIZE, format, args);
    va_end(args);
    return err;
}

/* Stores the line "PATH: FAILED: REASON" for `err`, and returns `err`.  If permissions are the
 * reason, the line says whose and what they are.  path_fd: the file, or -1 if it was not found.
 */
static int fail_to_open(char *why, int err, const char *path, int path_fd, const char *failed)
{
    char allowed[128] = "a directory of this path may not be searched";
    struct stat st;

    if (err != -EACCES && err != -EPERM)
        return fail(why, err, "%s: %s: %s", path, failed, fd_strerror(err));
    if (path_fd >= 0 && fstat(path_fd, &st) == 0)
        snprintf(allowed, sizeof allowed, "it has mode %04o, owner %u, group %u",
                 st.st_mode & 07777, st.st_uid, st.st_gid);
    return fail(why, err, "%s: %s by user %u, group %u: %s (%s)", path, failed, geteuid(),
                getegid(), strerror(-err), allowed);
}

/* Returns why a file of this type is not served, or NULL if the type is served. */
static const char *refusal(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFBLK:
        return NULL;
    case S_IFDIR:
        return "is a directory";
    case S_IFIFO:
        return "is a FIFO";
    case S_IFCHR:
        return "is a character device";
    case S_IFSOCK:
        return "is a socket";
    case S_IFLNK:
        return "is a symbolic link";
    default:
        return "is of an unknown type";
    }
}

/* Returns path_fd if its type is served.  Otherwise closes path_fd and returns -errno. */
static int keep_if_served(int path_fd, const char *name, char *why)
{
    struct stat st;

    if (fstat(path_fd, &st) < 0) {
        int err = -errno;
        close(path_fd);
        return fail(why, err, "%s: %s", name, strerror(-err));
    }
    const char *reason = refusal(st.st_mode);
    if (reason) {
        close(path_fd);
        return fail(why, -EINVAL, "%s: %s; only regular files and block devices can be served",
                    name, reason);
    }
    return path_fd;
}

int exports_open_file(const char *path, char why[LOG_LINE_SIZE])
{
    int path_fd = open(path, O_PATH | O_CLOEXEC);
    if (path_fd < 0)
        return fail_to_open(why, -errno, path, -1, "cannot be opened");
    return keep_if_served(path_fd, path, why);
}

int exports_check_file(const char *path, char why[LOG_LINE_SIZE])
{
    int path_fd = exports_open_file(path, why);
    if (path_fd < 0)
        return path_fd;
    int fd = fd_reopen(path_fd, O_RDONLY);
    int r = fd < 0 ? fail_to_open(why, fd, path, path_fd, "cannot be read") : 0;
    close(path_fd);
    if (fd >= 0)
        close(fd);
    return r;
}

int exports_check_fd(int fd, char why[LOG_LINE_SIZE])
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fstat(fd, &st) < 0)
        return fail(why, -errno, "fd=%d: %s", fd, strerror(errno));
    const char *reason = refusal(st.st_mode);
    if (reason)
        return fail(why, -EINVAL, "fd=%d: %s; only regular files and block devices can be served",
                    fd, reason);
    if (flags & O_PATH)
        return fail(why, -EBADF, "fd=%d: was opened with O_PATH, so it cannot be read", fd);
    if ((flags & O_ACCMODE) == O_WRONLY)
        return fail(why, -EBADF, "fd=%d: was opened for writing only, so it cannot be read", fd);
    return 0;
}

bool exports_is_directory(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Opens the directory anew, so that each listing has a position of its own.  "." needs no right on
 * the path to the directory, and no /proc.
 */
static int open_directory(const struct exports_directory *directory, int flags)
{
    flags |= O_DIRECTORY | O_CLOEXEC;
    int fd = directory->fd < 0 ? open(directory->name, flags) : openat(directory->fd, ".", flags);
    return fd < 0 ? -errno : fd;
}

int exports_check_directory(const struct exports_directory *directory, char why[LOG_LINE_SIZE])
{
    const char *path = directory->name, *failed = "cannot be read as a directory";
    int path_fd = open_directory(directory, O_PATH);
    if (path_fd < 0)
        return fail_to_open(why, path_fd, path, directory->fd, failed);

    int r = 0;
    int fd = fd_reopen(path_fd, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        r = fail_to_open(why, fd, path, path_fd, failed);
    else if (faccessat(fd, ".", X_OK, AT_EACCESS) < 0)
        r = fail_to_open(why, -errno, path, path_fd, "cannot be searched");
    close(path_fd);
    if (fd >= 0)
        close(fd);
    return r;
}

/* Opens `name`, which contains no slash, with O_PATH in the directory dir_fd.  A symbolic link that
 * leads out of the directory gives -EXDEV (openat2(2), RESOLVE_BENEATH).
 */
static int open_beneath(int dir_fd, const char *name)
{
    struct open_how how = {
        .flags = O_PATH | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
    };
    int fd;

    /* openat2(2): EAGAIN means that a concurrent rename kept the kernel from deciding. */
    do {
        fd = syscall(SYS_openat2, dir_fd, name, &how, sizeof how);
    } while (fd < 0 && (errno == EAGAIN || errno == EINTR));
    if (fd >= 0)
        return fd;
    /* ENOSYS: a kernel before 5.6.  EPERM: a seccomp filter that does not know openat2(2).  Then no
     * symbolic link is followed.
     */
    if (errno == ENOSYS || errno == EPERM)
        fd = openat(dir_fd, name, O_PATH | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? -errno : fd;
}

/* Opens the entry of the directory dir_fd as the mode says.  With SYMLINKS_NONE the result may be a
 * symbolic link itself, whose type is refused.
 */
static int open_entry(int dir_fd, const char *name, enum symlinks_mode symlinks)
{
    if (symlinks == SYMLINKS_INSIDE)
        return open_beneath(dir_fd, name);
    int fd =
        openat(dir_fd, name, O_PATH | O_CLOEXEC | (symlinks == SYMLINKS_NONE ? O_NOFOLLOW : 0));
    return fd < 0 ? -errno : fd;
}

static bool name_is_one_component(const char *name)
{
    return name[0] != '\0' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           !strchr(name, '/');
}

int exports_open_one(const struct exports_directory *directory, const char *name,
                     char why[LOG_LINE_SIZE])
{
    const char *path = directory->name;

    if (name[0] == '\0')
        return fail(why, -ENOENT,
                    "%s: the client named no export; the names of the files in it are the exports",
                    path);
    if (!name_is_one_component(name))
        return fail(why, -ENOENT,
                    "%s: no export '%s': only what lies in the directory itself is an export", path,
                    name);

    int dir_fd = open_directory(directory, O_PATH);
    if (dir_fd < 0)
        return fail(why, dir_fd, "%s: %s", path, strerror(-dir_fd));
    int path_fd = open_entry(dir_fd, name, directory->symlinks);
    close(dir_fd);
    if (path_fd < 0)
        return fail(why, path_fd, "%s: no export '%s': %s", path, name,
                    path_fd == -EXDEV ? "its symbolic link leads out of the directory"
                                      : strerror(-path_fd));
    return keep_if_served(path_fd, name, why);
}

int exports_list(const struct exports_directory *directory,
                 int (*add)(void *opaque, const char *name, const struct stat *st), void *opaque,
                 char why[LOG_LINE_SIZE])
{
    int r = 0;
    int dir_fd = open_directory(directory, O_RDONLY);
    if (dir_fd < 0)
        return fail(why, dir_fd, "%s: %s", directory->name, strerror(-dir_fd));
    DIR *dir = fdopendir(dir_fd);
    if (!dir) {
        r = fail(why, -errno, "%s: %s", directory->name, strerror(errno));
        close(dir_fd);
        return r;
    }
    while (r == 0) {
        struct stat st;

        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry) {
            if (errno)
                r = fail(why, -errno, "%s: %s", directory->name, strerror(errno));
            break;
        }
        if (!name_is_one_component(entry->d_name))
            continue;
        int path_fd = open_entry(dir_fd, entry->d_name, directory->symlinks);
        if (path_fd < 0)
            continue;
        if (fstat(path_fd, &st) == 0 && !refusal(st.st_mode))
            r = add(opaque, entry->d_name, &st);
        close(path_fd);
    }
    closedir(dir);
    return r;
}
