/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens an image and prints the units that the plugin found.  system/geometry.sh makes the disks,
 * runs this program on each and knows what is right.
 *
 *   test-geometry FILE default|none PAGE-BYTES [no-dioalign] [no-holes] [write=OFFSET]
 *
 * The page cache is taken to have pages of PAGE-BYTES.  With "no-dioalign" statx(2) gives no answer
 * about direct I/O, as before Linux 6.1.  With "no-holes" lseek(2) reports files as data, as on
 * filesystems without SEEK_HOLE.  With "write" the program writes 512 bytes, and prints whether
 * they went to a descriptor with O_DIRECT or through the page cache.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "plugin/disk/image-table.h"
#include "plugin/disk/image.h"

static long page_bytes;
static bool no_dioalign, no_holes;
static const char *way = "none"; /* how the last write went */

/* --- The functions that the program wraps --- */

long __real_sysconf(int name);
long __wrap_sysconf(int name);
long __wrap_sysconf(int name)
{
    return name == _SC_PAGESIZE ? page_bytes : __real_sysconf(name);
}

int __real_statx(int fd, const char *path, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *path, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *path, int flags, unsigned mask, struct statx *stx)
{
    int r = __real_statx(fd, path, flags, mask, stx);

#ifdef STATX_DIOALIGN
    if (no_dioalign)
        stx->stx_mask &= ~STATX_DIOALIGN;
#endif
    return r;
}

off_t __real_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence)
{
    if (no_holes && whence == SEEK_DATA)
        return offset;
    if (no_holes && whence == SEEK_HOLE)
        whence = SEEK_END, offset = 0;
    return __real_lseek64(fd, offset, whence);
}

ssize_t __real_pwritev64(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int count, off_t offset)
{
    way = fcntl(fd, F_GETFL) & O_DIRECT ? "direct" : "cached";
    return __real_pwritev64(fd, iov, count, offset);
}

/* --- What plugin/log.c does in the plugin --- */

void log_warning(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
}

void log_debug(const char *format, ...)
{
}

/* --- The program --- */

int main(int argc, char **argv)
{
    struct room_config room = {
        .backend = "threads", .max_threads = 4, .queue_depth = 4, .helping = true};
    struct image_options options = {.room = &room, .locking = LOCKING_OFF};
    char why[LOG_LINE_SIZE], bytes[512] = {0};
    const char *write_at = NULL;
    struct image *image;

    if (argc < 4)
        return 2;
    options.direct = strcmp(argv[2], "none") == 0;
    page_bytes = atol(argv[3]);
    for (int i = 4; i < argc; i++) {
        if (strcmp(argv[i], "no-dioalign") == 0)
            no_dioalign = true;
        else if (strcmp(argv[i], "no-holes") == 0)
            no_holes = true;
        else if (strncmp(argv[i], "write=", 6) == 0)
            write_at = argv[i] + 6;
    }
    int fd = open(argv[1], O_PATH);
    if (fd < 0) {
        perror(argv[1]);
        return 1;
    }
    if (image_get(fd, argv[1], &options, &image, why) < 0) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    close(fd);
    int r = write_at ? image_write(image, bytes, sizeof bytes, atoll(write_at), false) : 0;
    if (r < 0) {
        fprintf(stderr, "write at %s: %s\n", write_at, strerror(-r));
        return 1;
    }
    printf("direct=%d align=%u granule=%u sector=%u write=%s\n", image->direct,
           image->geometry.align, image->geometry.granule, image->geometry.sector, way);
    image_put(image);
    return 0;
}
