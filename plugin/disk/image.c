/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening, measuring and closing one image.  See image.h.
 *
 * image_open_source, image_open and image_close run on nbdkit's threads when clients connect and
 * disconnect, on one thread at a time for each image.  image_before_write, image_after_write and
 * image_transfer run on the threads of requests.  No lock of another image is held here, so a disk
 * that hangs while it is opened holds up no other image.
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
#include <sys/sysmacros.h>
#include <unistd.h>

#include "plugin/disk/fd.h"
#include "plugin/disk/image.h"
#include "pool/schedule-point.h"

/* Descriptors left for connections (each takes three) when many images are open. */
#define DESCRIPTOR_RESERVE 64

#define NS_PER_S 1000000000u

/* Linux 5.15; Debian 12's linux/fs.h has it, older headers do not. */
#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ _IOR(0x12, 128, uint64_t)
#endif

static int fail(char *why, const char *name, const char *what, int err)
{
    snprintf(why, LOG_LINE_SIZE, "%s: %s: %s", name, what, fd_strerror(err));
    return err;
}

/* --- Opening the disk, before its image is known --- */

/* The key of an open descriptor. */
static int read_key(int fd, struct image_key *key)
{
    struct statx stx;

    int r = fd_statx(fd, STATX_BASIC_STATS | STATX_BTIME, &stx);
    if (r < 0)
        return r;
    *key = (struct image_key){.block = S_ISBLK(stx.stx_mode)};
    if (key->block) {
        key->device = makedev(stx.stx_rdev_major, stx.stx_rdev_minor);
        if (ioctl(fd, BLKGETDISKSEQ, &key->birth) < 0)
            key->birth = 0; /* before Linux 5.15 */
        return 0;
    }
    key->device = makedev(stx.stx_dev_major, stx.stx_dev_minor);
    key->inode = stx.stx_ino;
    if (stx.stx_mask & STATX_BTIME)
        key->birth = (uint64_t)stx.stx_btime.tv_sec * NS_PER_S + stx.stx_btime.tv_nsec;
    return 0;
}

static int open_again(int path_fd, int flags, bool inherited)
{
    return inherited ? fd_reopen_or_duplicate(path_fd, flags) : fd_reopen(path_fd, flags);
}

/* Opens source->fd for writing.  Returns 0 with source->readonly set, and no descriptor open, when
 * the disk can only be read.
 */
static int open_writable(struct image_source *source, int path_fd, bool inherited)
{
    int is_readonly = 0;

    source->fd = open_again(path_fd, O_RDWR, inherited);
    int err = -source->fd;
    if (source->fd < 0 && err != EROFS && err != EACCES && err != EPERM)
        return source->fd;
    if (source->fd < 0) {
        source->readonly = true;
        source->why_readonly = inherited && fcntl(path_fd, F_GETFL) & O_APPEND
                                   ? "the descriptor was opened with O_APPEND, and the file cannot "
                                     "be opened again"
                                   : strerror(err);
    } else if (ioctl(source->fd, BLKROGET, &is_readonly) == 0 && is_readonly) {
        /* open(2) lets a read-only block device be opened for writing; only the writes fail. */
        close(source->fd);
        source->readonly = true;
        source->why_readonly = "the block device is read-only (BLKROGET)";
    }
    return 0;
}

/* One of many images must not take the last descriptors: without any, nbdkit accepts no client and
 * reports nothing to the clients that wait.
 */
bool image_takes_last_descriptors(const struct image_source *source,
                                  const struct image_options *options)
{
    struct rlimit limit;

    return options->many && getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
           (rlim_t)source->fd + DESCRIPTOR_RESERVE > limit.rlim_cur;
}

int image_open_source(struct image_source *source, int path_fd, const char *name,
                      const struct image_options *options, char why[LOG_LINE_SIZE])
{
    int r = 0;

    *source = (struct image_source){.fd = -1, .readonly = options->readonly};
    if (!source->readonly && options->inherited &&
        (fcntl(path_fd, F_GETFL) & O_ACCMODE) == O_RDONLY) {
        source->readonly = true;
        source->why_readonly = "the descriptor was opened for reading only";
    }
    if (!source->readonly)
        r = open_writable(source, path_fd, options->inherited);
    if (r == 0 && source->readonly) {
        source->fd = open_again(path_fd, O_RDONLY, options->inherited);
        r = source->fd < 0 ? source->fd : 0;
    }
    if (r < 0)
        return fail(why, name, "cannot be opened", r);
    r = read_key(source->fd, &source->key);
    if (r < 0) {
        close(source->fd);
        return fail(why, name, "cannot be opened", r);
    }
    return 0;
}

void image_close_source(struct image_source *source)
{
    close(source->fd);
}

/* --- Size --- */

int64_t image_measure(const struct image *image)
{
    uint64_t bytes;
    struct statx stx;

    if (image->key.block)
        return ioctl(image->fd, BLKGETSIZE64, &bytes) < 0 ? -errno : (int64_t)bytes;
    /* Asks for the size alone.  fstat(2) also reads the times, and since Linux 6.13 a time that was
     * read makes the next write store a finer one: the inode becomes dirty again, and each sync has
     * to write the inode (write and flush, depth 16: 0.75 of nbdkit file's rate with fstat).
     */
    int r = fd_statx(image->fd, STATX_SIZE, &stx);
    return r < 0 ? r : (int64_t)stx.stx_size;
}

/* Says that the end of a disk is left out: once for each disk and size in a row, because an image
 * is opened anew when a client comes after the last one has left.
 */
static void warn_of_tail(const struct image *image, uint64_t size, uint64_t served)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct image_key warned;
    static uint64_t warned_size; /* both under lock */

    pthread_mutex_lock(&lock);
    bool is_known = image_key_equal(&warned, &image->key) && warned_size == size;
    warned = image->key;
    warned_size = size;
    pthread_mutex_unlock(&lock);
    if (!is_known)
        log_warning("%s: the last %llu of %llu bytes cannot be read, because they are less than "
                    "one of the device's blocks of %u bytes: %llu bytes are served",
                    image->name, (unsigned long long)(size - served), (unsigned long long)size,
                    image->geometry.sector, (unsigned long long)served);
}

/* How many of the disk's `size` bytes are served: all, but for a block device that ends in a part
 * of a logical block.  O_DIRECT cannot reach that part.
 *
 * Where the page cache can read the part, it is served, with cache=none too: through the page
 * cache, as the tail of a file.  nbdkit's file plugin serves it there, and a user who changes from
 * that plugin, or from one cache= to the other, must not lose bytes of the disk.
 *
 * Where the page cache cannot read it (EIO, seen on Linux 6.18), the file plugin serves it all the
 * same, and every copy of the disk fails at its end.  No program can have stored anything there on
 * such a kernel, so the part is left out.
 */
static uint64_t served_size(const struct image *image, uint64_t size)
{
    uint64_t served = align_down(size, image->geometry.sector);
    char last;

    if (!image->key.block || served == size)
        return size;
    if (pread(image->buffered_fd, &last, 1, size - 1) == 1)
        return size;
    warn_of_tail(image, size, served);
    return served;
}

/* The boundary between direct I/O and page cache moves with the size, so no write may be in flight
 * while a direct image's size changes.
 */
void image_follow_size(struct image *image)
{
    struct range everything = {.start = 0, .end = UINT64_MAX, .exclusive = true};

    pthread_mutex_lock(&image->size_lock);
    SCHEDULE_POINT();
    int64_t size = image_measure(image);
    SCHEDULE_POINT();
    if (size >= 0 && (uint64_t)size != image->measured) {
        image->measured = size;
        uint64_t served = served_size(image, size);
        if (image->direct)
            range_acquire(&image->ranges, &everything);
        SCHEDULE_POINT();
        atomic_store(&image->size, served);
        SCHEDULE_POINT();
        if (image->direct)
            range_release(&image->ranges, &everything);
    }
    pthread_mutex_unlock(&image->size_lock);
}

/* --- Opening the image --- */

/* Warns once for each filesystem in a row: the images of a directory are opened again and again. */
static void warn_of_page_cache(const struct image *image, int err)
{
    static _Atomic dev_t warned;

    if (atomic_exchange(&warned, image->key.device) != image->key.device)
        log_warning("%s: cache=none is not possible here (O_DIRECT: %s), so the page cache is used",
                    image->name, fd_strerror(err));
}

/* The unit in which the page cache becomes dirty and is written back: 4 KiB to 64 KiB. */
static uint32_t page_bytes(void)
{
    return (uint32_t)sysconf(_SC_PAGESIZE);
}

/* Opens image->fd with O_DIRECT and finds out what direct I/O needs.  Returns -EINVAL or -ENOTSUP
 * when the filesystem has no O_DIRECT (open(2)), with image->fd as before.
 */
static int open_direct(struct image *image)
{
    int fd = fd_reopen(image->buffered_fd, (image->readonly ? O_RDONLY : O_RDWR) | O_DIRECT);

    if (fd < 0)
        return fd;
    image->fd = fd;
    image->direct = true;
    int r = image_probe_geometry(image, page_bytes());
    if (r < 0) {
        close(fd);
        image->fd = image->buffered_fd;
        image->direct = false;
    }
    return r;
}

/* May the page cache be used where O_DIRECT failed with `err`?  EACCES and EPERM: the user's own
 * descriptor is all that may be used.  ENOENT: without /proc it is all that can be used.
 */
static bool is_no_direct_io(const struct image *image, int err)
{
    return err == -EINVAL || err == -ENOTSUP ||
           (image->inherited && (err == -EACCES || err == -EPERM || err == -ENOENT));
}

static int open_as_asked(struct image *image, bool wants_direct)
{
    if (wants_direct) {
        int r = open_direct(image);
        if (r == 0 || !is_no_direct_io(image, r))
            return r;
        warn_of_page_cache(image, r);
        tally_add(image->tally, DISK_TALLY_FELL_TO_PAGE_CACHE, 1);
    }
    return image_probe_geometry(image, page_bytes());
}

/* Opens the image's room.  A backend that worked at the start and is refused now (libaio:
 * fs.aio-max-nr is used up; io_uring: RLIMIT_MEMLOCK) is replaced by the default backend, which
 * needs nothing but memory.
 */
static int open_room(struct image *image, const struct room_config *wanted, char why[LOG_LINE_SIZE])
{
    struct room_config config = *wanted;
    char reason[ROOM_WHY_SIZE];

    int r = room_open(&image->room, &config, image->direct, image->tally, reason);
    if (r < 0 && strcmp(config.backend, backend_name(0)) != 0) {
        log_warning("%s: %s; backend=%s is used", image->name, reason, backend_name(0));
        config.backend = backend_name(0);
        tally_add(image->tally, DISK_TALLY_FELL_TO_THREADS, 1);
        r = room_open(&image->room, &config, image->direct, image->tally, reason);
    }
    if (r < 0)
        snprintf(why, LOG_LINE_SIZE, "%s: %s", image->name, reason);
    return r;
}

/* Says why the disk is served read-only: once for each disk in a row, as warn_of_tail. */
static void warn_of_readonly(const struct image *image)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct image_key warned; /* under lock */

    pthread_mutex_lock(&lock);
    bool is_known = image_key_equal(&warned, &image->key);
    if (image->why_readonly)
        warned = image->key;
    else if (is_known && !image->readonly)
        warned = (struct image_key){.block = false};
    pthread_mutex_unlock(&lock);
    if (image->why_readonly && !is_known)
        log_warning("%s: served read-only: %s", image->name, image->why_readonly);
}

static void log_opened(const struct image *image)
{
    log_debug("%s: %s, %llu bytes, %s, %s, backend %s, direct I/O alignment %u (memory %u), "
              "preferred block %u, %u flush descriptors",
              image->name, image->key.block ? "block device" : "file",
              (unsigned long long)atomic_load(&image->size),
              image->readonly ? "read-only" : "read-write",
              image->direct ? "O_DIRECT" : "page cache", image->room.backend->ops->name,
              image->geometry.align, image->geometry.mem_align, image->geometry.preferred_block,
              image->flush.count);
}

/* The kernel keeps the advice with the open file description, and reads use this one only. */
static void advise(const struct image *image, int advice)
{
    int err = advice == POSIX_FADV_NORMAL ? 0 : posix_fadvise(image->buffered_fd, 0, 0, advice);

    if (err != 0)
        log_warning("%s: fadvise= has no effect: %s", image->name, strerror(err));
}

int image_open(struct image *image, const struct image_options *options, char why[LOG_LINE_SIZE])
{
    int r = open_as_asked(image, options->direct);
    if (r < 0)
        return fail(why, image->name, "cannot be measured", r);
    advise(image, options->advice);
    int64_t size = image_measure(image);
    if (size < 0)
        return fail(why, image->name, "its size cannot be read", size);
    image->measured = size;
    atomic_store(&image->size, served_size(image, size));
    r = image_lock(image, options->locking, why);
    if (r < 0)
        return r;
    r = flush_set_open(image);
    if (r < 0)
        return fail(why, image->name, "descriptors to flush it cannot be opened", r);
    r = open_room(image, options->room, why);
    if (r < 0)
        return r;
    flush_set_choose(image);
    transfer_init(image, options->room->helping);
    folio_init(image);
    extents_init(image);
    image_fill_disk(image);
    warn_of_readonly(image);
    log_opened(image);
    return 0;
}

void image_close(struct image *image)
{
    prefetch_stop(image);
    SCHEDULE_POINT();
    /* Nothing is written any more.  The end of the threads and of the ring takes some milliseconds
     * (33 with io_destroy(2)), for which the next program need not wait.
     */
    image_unlock(image);
    SCHEDULE_POINT();
    room_close(&image->room);
    SCHEDULE_POINT();
    flush_set_close(image);
    if (image->fd != image->buffered_fd)
        close(image->fd);
    close(image->buffered_fd);
}

struct image *image_new(const struct image_source *source, const char *name,
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
    image->key = source->key;
    image->readonly = source->readonly;
    image->why_readonly = source->why_readonly;
    image->wants_readonly = options->readonly;
    image->inherited = options->inherited;
    image->tally = options->tally;
    image->fd = image->buffered_fd = source->fd;
    flush_set_init(&image->flush);
    range_lock_init(&image->ranges, image->tally);
    zero_init(&image->zero);
    prefetch_init(&image->prefetch);
    bounce_share_init(&image->bounce, image->tally);
    pthread_mutex_init(&image->size_lock, NULL);
    return image;
}

void image_free(struct image *image)
{
    range_lock_destroy(&image->ranges);
    flush_set_destroy(&image->flush);
    zero_destroy(&image->zero);
    prefetch_destroy(&image->prefetch);
    transfer_destroy(&image->transfer);
    folio_destroy(&image->folio);
    pthread_mutex_destroy(&image->size_lock);
    free(image->name);
    free(image);
}

/* --- Requests --- */

int image_before_write(struct image *image, uint64_t end)
{
    /* A write never makes a block device larger. */
    int64_t size = image->key.block ? INT64_MAX : image_measure(image);

    if (size < 0)
        return (int)size;
    return end <= (uint64_t)size ? 0 : -ENOSPC;
}

void image_after_write(struct image *image)
{
    if (!atomic_load_explicit(&image->flush.dirty, memory_order_relaxed))
        atomic_store(&image->flush.dirty, true);
}

int image_transfer(struct image *image, enum request_op op, unsigned flags, int fd, void *buf,
                   uint64_t length, uint64_t offset, uint64_t *transferred)
{
    struct iovec iov = {.iov_base = buf, .iov_len = length};
    struct request request = {
        .op = op,
        .flags = flags | (fd == image->fd && image->direct ? 0 : REQUEST_PAGE_CACHE),
        .fd = fd,
        .offset = offset,
        .length = length,
        .iov = &iov,
        .iovcnt = 1,
    };

    SCHEDULE_POINT();
    int r = backend_run(image->room.backend, &request);
    SCHEDULE_POINT();
    if (transferred)
        *transferred = request.transferred;
    return r;
}
