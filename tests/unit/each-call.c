/* SPDX-License-Identifier: BSD-3-Clause */
/* A session (open, requests of each kind, close) in which one call of the kernel or of malloc(3)
 * fails: each call in turn, with several errors.  The open or a request fails then, or succeeds by
 * other means.  No byte is wrong that was reported as written or read, no descriptor and no memory
 * stays behind, and a sync that failed is never forgotten.
 *
 * The wrapped calls are counted on every thread.  Calls that cannot fail on a descriptor of our own
 * (epoll_wait(2), io_getevents(2), read(2) of an eventfd) are not wrapped.
 *
 * each-call [all [BACKEND [PATH]]]: each call, or a part of them; with each backend, or only this
 * one; on a file, or on the device PATH.
 */
#include "tests/lib/pool-test.h"

#include <fcntl.h>
#include <libaio.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <sys/utsname.h>

#include "plugin/disk/health.h"
#include "plugin/disk/image-table.h"
#include "plugin/disk/image.h"
#include "pool/tally.h"
#include "tests/lib/silent-log.h"
#include "tests/lib/wrap.h"

/* --- The calls that fail --- */

static atomic_bool armed;
static _Atomic int calls, fail_at; /* the call of this number fails */
static atomic_bool sync_failed, has_failed;
static int error;    /* errno; set before armed */
static bool no_sync; /* fdatasync(2) is not supported; set while no request is in flight */

static bool fails(void)
{
    if (!atomic_load(&armed) || atomic_fetch_add(&calls, 1) != atomic_load(&fail_at))
        return false;
    atomic_store(&has_failed, true);
    errno = error;
    return true;
}

#define WRAP(type, name, failure, parameters, arguments) \
    WRAP_IF(fails(), type, name, failure, parameters, arguments)

WRAP(void *, malloc, NULL, (size_t n), (n))
WRAP(void *, calloc, NULL, (size_t n, size_t size), (n, size))
WRAP(void *, aligned_alloc, NULL, (size_t align, size_t size), (align, size))
WRAP(char *, strdup, NULL, (const char *s), (s))
WRAP(FILE *, fopen64, NULL, (const char *name, const char *mode), (name, mode))
WRAP_PTHREAD_CREATE_IF(fails())
WRAP(int, eventfd, -1, (unsigned n, int flags), (n, flags))
WRAP(int, epoll_create1, -1, (int flags), (flags))
WRAP(int, memfd_create, -1, (const char *name, unsigned flags), (name, flags))
WRAP(int, open64, -1, (const char *name, int flags, int mode), (name, flags, mode))
WRAP(int, __open64_2, -1, (const char *name, int flags), (name, flags))
WRAP(int, fcntl64, -1, (int fd, int command, void *p), (fd, command, p))
WRAP(int, ioctl, -1, (int fd, unsigned long command, void *p), (fd, command, p))
WRAP(int, statx, -1, (int fd, const char *name, int flags, unsigned mask, struct statx *stx),
     (fd, name, flags, mask, stx))
WRAP(int, fstat64, -1, (int fd, void *st), (fd, st))
WRAP(int, fstatfs64, -1, (int fd, void *st), (fd, st))
WRAP(int, uname, -1, (struct utsname * name), (name))
WRAP(int, getrlimit64, -1, (int what, void *limit), (what, limit))
WRAP(int, posix_fadvise64, error, (int fd, off_t at, off_t n, int advice), (fd, at, n, advice))
WRAP(off_t, lseek64, -1, (int fd, off_t at, int whence), (fd, at, whence))
WRAP(void *, mmap64, MAP_FAILED, (void *p, size_t n, int prot, int flags, int fd, off_t at),
     (p, n, prot, flags, fd, at))
WRAP(ssize_t, pread64, -1, (int fd, void *p, size_t n, off_t at), (fd, p, n, at))
WRAP(ssize_t, __pread64_chk, -1, (int fd, void *p, size_t n, off_t at, size_t room),
     (fd, p, n, at, room))
WRAP(ssize_t, preadv64, -1, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
WRAP(ssize_t, pwritev64, -1, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
WRAP(ssize_t, preadv64v2, -1, (int fd, const struct iovec *v, int n, off_t at, int flags),
     (fd, v, n, at, flags))
WRAP(ssize_t, pwritev64v2, -1, (int fd, const struct iovec *v, int n, off_t at, int flags),
     (fd, v, n, at, flags))
WRAP(int, io_setup, -error, (int depth, io_context_t *context), (depth, context))
WRAP(int, io_submit, -error, (io_context_t context, long n, struct iocb **iocbs),
     (context, n, iocbs))
WRAP(int, io_uring_queue_init_params, -error,
     (unsigned depth, struct io_uring *ring, struct io_uring_params *params), (depth, ring, params))
WRAP(int, io_uring_register_probe, -error,
     (struct io_uring * ring, struct io_uring_probe *probe, unsigned n), (ring, probe, n))
WRAP(int, io_uring_register_eventfd, -error, (struct io_uring * ring, int fd), (ring, fd))
WRAP(int, io_uring_submit, -error, (struct io_uring * ring), (ring))
WRAP(int, io_uring_get_events, -EAGAIN, (struct io_uring * ring), (ring))

/* A wake-up of a loop is only ever interrupted. */
ssize_t __real_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n)
{
    static const uint64_t one = 1;
    if (!fails())
        return __real_write(fd, p, n);
    if (n == sizeof one && memcmp(p, &one, n) == 0)
        errno = EINTR;
    return -1;
}

int __real_epoll_ctl(int epoll, int op, int fd, struct epoll_event *event);
int __wrap_epoll_ctl(int epoll, int op, int fd, struct epoll_event *event);
int __wrap_epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
    return op == EPOLL_CTL_ADD && fails() ? -1 : __real_epoll_ctl(epoll, op, fd, event);
}

static int allocations = -1; /* so many allocations work, and ZERO_RANGE does not; -1: all works */
int __real_fallocate64(int fd, int mode, off_t at, off_t n);
int __wrap_fallocate64(int fd, int mode, off_t at, off_t n);
int __wrap_fallocate64(int fd, int mode, off_t at, off_t n)
{
    if (allocations >= 0 && !(mode & FALLOC_FL_PUNCH_HOLE) &&
        (mode & FALLOC_FL_ZERO_RANGE || allocations-- == 0)) {
        errno = mode & FALLOC_FL_ZERO_RANGE ? EOPNOTSUPP : EINVAL;
        return -1;
    }
    return fails() ? -1 : __real_fallocate64(fd, mode, at, n);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    if (!no_sync && !fails())
        return __real_fdatasync(fd);
    if (no_sync)
        errno = EOPNOTSUPP;
    atomic_store(&sync_failed, true);
    return -1;
}

/* --- The session --- */

#define KiB 1024u
#define SIZE (128 * KiB)

static bool all_calls;
static const char *only;   /* the backend, or NULL: each */
static const char *device; /* or NULL: a file of this program */
static char path[256];
static unsigned char model[SIZE], unknown[SIZE], data[SIZE];

static void make_disk(void)
{
    const char *directory = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/aiodisk-each-call-%d", directory ? directory : "/var/tmp",
             (int)getpid());
    if (device)
        snprintf(path, sizeof path, "%s", device);
    int fd = open(path, O_RDWR | O_CLOEXEC | (device ? 0 : O_CREAT | O_TRUNC), 0600);
    for (unsigned i = 0; i < SIZE; i++)
        model[i] = (unsigned char)(i * 7 + 1);
    memset(unknown, 0, SIZE);
    CHECK(fd >= 0 && pwrite(fd, model, SIZE, 0) == SIZE);
    close(fd);
}

/* Each byte that was reported as written is there. */
static void check_disk(void)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && pread(fd, data, SIZE, 0) == SIZE);
    for (unsigned i = 0; i < SIZE; i++)
        CHECK(unknown[i] || data[i] == model[i]);
    close(fd);
}

/* A request has ended: a failure must have a cause. */
static bool worked(int r)
{
    CHECK(r == 0 || atomic_load(&has_failed));
    return r == 0;
}

static void wrote(int r, const void *bytes, unsigned length, unsigned offset)
{
    if (!worked(r))
        memset(unknown + offset, 1, length);
    else if (bytes)
        memcpy(model + offset, bytes, length);
    else
        memset(model + offset, 0, length);
}

static void check_read(struct image *image, unsigned length, unsigned offset)
{
    if (worked(image_read(image, data, length, offset)))
        for (unsigned i = 0; i < length; i++)
            CHECK(unknown[offset + i] || data[i] == model[offset + i]);
}

static int add_extent(void *opaque, const struct extent *extent)
{
    unsigned *end = opaque;
    CHECK(extent->offset == *end && extent->length > 0);
    for (unsigned i = 0; extent->hole && i < extent->length; i++)
        CHECK(unknown[*end + i] || model[*end + i] == 0);
    *end += (unsigned)extent->length;
    return 0;
}

static void use(struct image *image)
{
    static unsigned char bytes[16 * KiB];
    unsigned end = 0;
    memset(bytes, 3, sizeof bytes);
    check_read(image, 100, 1000);
    check_read(image, 16 * KiB, 0);
    wrote(image_write(image, bytes, 100, 5000, false), bytes, 100, 5000);
    wrote(image_write(image, bytes, 4096, 8192, true), bytes, 4096, 8192);
    wrote(image_write(image, bytes, 9000, 20000, true), bytes, 9000, 20000);
    wrote(image_zero(image, 8192, 32 * KiB, ZERO_MAY_TRIM), NULL, 8192, 32 * KiB);
    wrote(image_zero(image, 9000, 50000, 0), NULL, 9000, 50000);
    int r = image_zero(image, 8192, 64 * KiB, ZERO_FAST | ZERO_FUA);
    if (r != -EOPNOTSUPP)
        wrote(r, NULL, 8192, 64 * KiB);
    memset(unknown + 80 * KiB, 1, 8192);
    worked(image_trim(image, 8192, 80 * KiB, ZERO_FUA));
    image_prefetch(image, SIZE, 0);
    if (worked(image_extents(image, SIZE, 0, false, add_extent, &end)))
        CHECK(end == SIZE);
    worked(image_flush(image));
    check_read(image, SIZE - 1, 1);
    image_follow_size(image);
    CHECK(image->size == SIZE);
}

/* Returns whether a call has failed. */
static bool session(const char *backend, bool direct, int number, int with)
{
    const struct room_config room = {
        .backend = backend, .max_threads = 4, .queue_depth = 4, .helping = true};
    struct image_options options = {
        .room = &room, .direct = direct, .locking = LOCKING_ON, .inherited = number % 5 == 4};
    char why[LOG_LINE_SIZE] = "";
    struct image *image;
    make_disk();
    unsigned before = descriptors();
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    atomic_store(&fail_at, number);
    atomic_store(&calls, 0);
    atomic_store(&has_failed, false);
    atomic_store(&sync_failed, false);
    error = with;
    atomic_store(&armed, true);
    options.tally = tally_new(DISK_TALLY_END);
    int r = image_get(fd, path, &options, &image, why);
    if (r == 0) {
        if (!image->readonly) /* with EPERM, an open for writing falls back */
            use(image);
        CHECK(!atomic_load(&sync_failed) || image_health(image) < 0);
        image_put(image);
    } else {
        CHECK(atomic_load(&has_failed) && strlen(why) > strlen(path));
    }
    atomic_store(&armed, false);
    tally_free(options.tally);
    close(fd);
    check_disk();
    CHECK(descriptors() == before);
    bounce_free_all(); /* no buffer is in use */
    health_forget_all();
    if (!device)
        unlink(path);
    return atomic_load(&has_failed);
}

static void each_call_fails(void **state)
{
    static const int errors[] = {EIO, EINVAL, EOPNOTSUPP, EPERM, ENOSYS};
    int sessions = 0;
    for (unsigned i = 0; backend_name(i); i++)
        for (int direct = 0; direct < 2; direct++) {
            bool more = !only || strcmp(only, backend_name(i)) == 0;
            for (int number = 0; more; number++) {
                more = false;
                for (unsigned e = 0; e < 5; e++) {
                    if (!all_calls && (number + (int)(e * 7 + i)) % 67 != 0) {
                        more |= number < 60; /* every open has more calls than that */
                        continue;
                    }
                    more |= session(backend_name(i), direct, number, errors[e]);
                    sessions++;
                }
            }
        }
    print_message("%d sessions\n", sessions);
}

/* What a sync that is not supported returns must not look like a fast zero that did nothing: the
 * bytes are zeros already.
 */
static void an_unsupported_sync_is_a_failed_sync(void **state)
{
    const struct room_config room = {.backend = "threads", .max_threads = 4, .helping = true};
    const struct image_options options = {.room = &room, .locking = LOCKING_OFF};
    static const unsigned flags[] = {ZERO_FAST | ZERO_MAY_TRIM | ZERO_FUA, ZERO_FUA};
    char why[LOG_LINE_SIZE];
    struct image *image;
    if (device)
        return;
    for (unsigned i = 0; i < 2; i++) {
        make_disk();
        int fd = open(path, O_RDWR | O_CLOEXEC);
        CHECK(fd >= 0 && image_get(fd, path, &options, &image, why) == 0);
        no_sync = true;
        CHECK(image_zero(image, 8192, 8192, flags[i]) == -EIO);
        CHECK(image_zero(image, 8192, 8192, flags[i]) == -EIO); /* the disk has failed */
        CHECK(image_flush(image) == -EIO);
        no_sync = false;
        image_put(image);
        close(fd);
        health_forget_all();
        unlink(path);
    }
}

/* The allocation after the punch fails: the bytes are zeros, so the answer is not the one of a fast
 * zero that did nothing.
 */
static void a_fast_zero_that_punched_says_so(void **state)
{
    const struct room_config room = {.backend = "threads", .max_threads = 4, .helping = true};
    const struct image_options options = {.room = &room, .locking = LOCKING_OFF};
    char why[LOG_LINE_SIZE];
    struct image *image;
    if (device)
        return;
    make_disk();
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && image_get(fd, path, &options, &image, why) == 0);
    allocations = 1; /* the one before the punch */
    CHECK(image_zero(image, 8192, 8192, ZERO_FAST) == -EIO);
    CHECK(image_zero(image, 8192, 8192, 0) == 0);
    allocations = -1;
    image_put(image);
    close(fd);
    unlink(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_call_fails),
        cmocka_unit_test(an_unsupported_sync_is_a_failed_sync),
        cmocka_unit_test(a_fast_zero_that_punched_says_so),
    };
    all_calls = argc > 1;
    only = argc > 2 ? argv[2] : NULL;
    device = argc > 3 ? argv[3] : NULL;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
