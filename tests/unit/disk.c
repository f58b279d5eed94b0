/* SPDX-License-Identifier: BSD-3-Clause */
/* The disk layer keeps promises that no client can see from outside, or only with luck: what is
 * closed again, which calls make a write durable, and what happens when an image grows or fails at
 * one exact moment.
 *
 * The test's thread makes the requests.  Wrapped calls of libc stop it or change its answer.
 */
#include "tests/lib/disk-test.h"

#include <linux/falloc.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "plugin/disk/health.h"
#include "tests/lib/silent-log.h"

#define SIZE ((uint64_t)MiB)

/* --- The functions that the program wraps --- */

static _Atomic unsigned durable_writes, syncs, holes;
static bool fails_meanwhile;  /* another sync fails while this one runs */
static int refusal;           /* fallocate(2) can punch; all else fails so */
static struct image *current; /* the image of fails_meanwhile */

ssize_t __real_pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    if (flags & RWF_DSYNC)
        atomic_fetch_add(&durable_writes, 1);
    return __real_pwritev64v2(fd, iov, count, offset, flags);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    atomic_fetch_add(&syncs, 1);
    if (fails_meanwhile)
        image_fail(current, -EIO);
    return __real_fdatasync(fd);
}

int __real_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length)
{
    if (refusal && !(mode & FALLOC_FL_PUNCH_HOLE)) {
        errno = refusal;
        return -1;
    }
    if (mode & FALLOC_FL_PUNCH_HOLE)
        atomic_fetch_add(&holes, 1);
    return __real_fallocate64(fd, mode, offset, length);
}

static bool no_seek; /* lseek(2) does not know SEEK_DATA */
off_t __real_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence)
{
    if (no_seek && (whence == SEEK_DATA || whence == SEEK_HOLE)) {
        errno = EINVAL;
        return -1;
    }
    return __real_lseek64(fd, offset, whence);
}

static unsigned offset_align, mem_align; /* what statx(2) says of direct I/O; 0: the truth */
int __real_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx)
{
    int r = __real_statx(fd, name, flags, mask, stx);
#ifdef STATX_DIOALIGN
    if (r == 0 && offset_align && mask & STATX_DIOALIGN) {
        stx->stx_mask |= STATX_DIOALIGN;
        stx->stx_dio_offset_align = offset_align;
        stx->stx_dio_mem_align = mem_align;
    }
#endif
    return r;
}

/* --- Images --- */

static void set_size(uint64_t size)
{
    CHECK(truncate(path, size) == 0);
}

/* As try_open_with. */
static int try_open(struct image **image, const char *backend, bool direct,
                    enum locking_mode locking)
{
    const struct room_config room = {
        .backend = backend, .max_threads = 4, .queue_depth = 4, .helping = true};
    return try_open_with(
        image, (struct image_options){.room = &room, .direct = direct, .locking = locking});
}

/* libaio's rings are mappings of a file of this name. */
static unsigned kernel_rings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    unsigned count = 0;
    CHECK(maps);
    while (fgets(line, sizeof line, maps))
        count += strstr(line, "/[aio]") != NULL;
    fclose(maps);
    return count;
}

/* --- The tests --- */

/* Opens and closes with every backend leave no descriptor and no ring behind, nor does a second
 * client of an image that is open.
 */
static void nothing_stays_open(void **state)
{
    make_file("disk", SIZE);
    for (unsigned i = 0; backend_name(i); i++) {
        struct image *image, *same;
        if (try_open(&image, backend_name(i), true, LOCKING_OFF) < 0)
            continue; /* the ring is forbidden here */
        image_put(image);
        unsigned before = descriptors(), rings = kernel_rings();
        for (int round = 0; round < 5; round++) {
            CHECK(try_open(&image, backend_name(i), true, LOCKING_OFF) == 0);
            unsigned open_once = descriptors();
            CHECK(try_open(&same, backend_name(i), true, LOCKING_OFF) == 0);
            CHECK(same == image && descriptors() == open_once);
            image_put(same);
            image_put(image);
            CHECK(descriptors() == before && kernel_rings() == rings);
        }
    }
    unlink(path);
}

/* Two files that were made within one tick of the filesystem's clock have the same time of birth.
 * The loop ends when it has met such files.
 */
static void two_files_are_two_disks(void **state)
{
    char first[sizeof path];
    bool same_birth = false;
    for (int i = 0; i < 1000 && !same_birth; i++) {
        make_file("disk-a", SIZE);
        memcpy(first, path, sizeof path);
        struct image *a = open_image(false);
        make_file("disk", SIZE);
        struct image *b = open_image(false);
        CHECK(a != b && !image_key_equal(&a->key, &b->key));
        same_birth = a->key.birth == b->key.birth;
        image_put(a);
        image_put(b);
        unlink(first);
        unlink(path);
    }
}

/* A FUA write is one durable write where the kernel has that, and a write with a sync elsewhere. */
static void fua_is_a_durable_write(void **state)
{
    static char data[4096] __attribute__((aligned(4096)));
    make_file("disk", SIZE);
    for (int direct = 0; direct < 2; direct++) {
        struct image *image = open_image(direct);
        atomic_store(&durable_writes, 0);
        atomic_store(&syncs, 0);
        CHECK(image_write(image, data, sizeof data, 0, true) == 0);
        if (!atomic_load(&image->flush.no_dsync))
            CHECK(atomic_load(&durable_writes) == 1 && atomic_load(&syncs) == 0 &&
                  image_write(image, data, sizeof data, 0, true) == 0 &&
                  atomic_load(&durable_writes) == 2 && atomic_load(&syncs) == 0);
        /* A write of several calls ends with one sync. */
        CHECK(image_write(image, data, 1000, 100, true) == 0);
        CHECK(atomic_load(&durable_writes) + atomic_load(&syncs) >= 3);
        /* A filesystem without RWF_DSYNC. */
        atomic_store(&image->flush.no_dsync, true);
        atomic_store(&durable_writes, 0);
        atomic_store(&syncs, 0);
        CHECK(image_write(image, data, sizeof data, 4096, true) == 0);
        CHECK(atomic_load(&durable_writes) == 0 && atomic_load(&syncs) == 1);
        image_put(image);
    }
    unlink(path);
}

/* While a sync runs, another one fails and takes the report of a lost write.  The first sync must
 * not be answered with 0, nor any later one.
 */
static void a_sync_beside_a_failed_sync_fails(void **state)
{
    char data[512] = {0};
    make_file("disk", SIZE);
    current = open_image(false);
    CHECK(image_write(current, data, sizeof data, 0, false) == 0);
    fails_meanwhile = true;
    CHECK(image_flush(current) == -EIO);
    fails_meanwhile = false;
    atomic_store(&syncs, 0);
    CHECK(image_flush(current) == -EIO && atomic_load(&syncs) == 0);
    CHECK(image_write(current, data, sizeof data, 0, true) == -EIO);
    image_put(current);
    unlink(path);
}

/* A fast zero that must not trim first finds out whether blocks can be allocated.  It must not
 * punch a hole and fail then.
 */
static void a_refused_fast_zero_punches_no_hole(void **state)
{
    static const int refusals[] = {EOPNOTSUPP, ENOSYS, ENODEV};
    make_file("disk", SIZE);
    for (unsigned i = 0; i < 3; i++) {
        struct image *image = open_image(false);
        refusal = refusals[i];
        atomic_store(&holes, 0);
        CHECK(image_zero(image, 64 * KiB, 64 * KiB, ZERO_FAST) == -EOPNOTSUPP);
        CHECK(atomic_load(&holes) == 0);
        CHECK(image_zero(image, 64 * KiB, 64 * KiB, 0) == 0); /* written */
        refusal = 0;
        image_put(image);
    }
    unlink(path);
}

/* A trim beyond the end of a file that has become shorter: also one that begins at the end. */
static void a_trim_beyond_the_end_succeeds(void **state)
{
    make_file("disk", SIZE);
    for (int direct = 0; direct < 2; direct++) {
        set_size(SIZE);
        struct image *image = open_image(direct);
        set_size(SIZE / 2);
        CHECK(image_trim(image, SIZE / 2, SIZE / 2, 0) == 0);
        CHECK(image_trim(image, SIZE / 4, SIZE * 3 / 4, 0) == 0);
        CHECK(image_trim(image, SIZE / 2, SIZE / 4, 0) == 0);
        CHECK(image_measure(image) == (int64_t)SIZE / 2);
        image_put(image);
    }
    unlink(path);
}

struct growing_write {
    struct image *image;
    int result;
};

static void *write_tail(void *opaque)
{
    struct growing_write *w = opaque;
    char data[100];
    memset(data, 7, sizeof data);
    w->result = image_write(w->image, data, sizeof data, SIZE + 100, false);
    return NULL;
}

/* A write to the tail of a file waits for its range, and the image grows meanwhile: the tail is
 * now a part of a direct block, so the write must read the block first, and let others wait.
 */
static void a_write_waits_while_the_image_grows(void **state)
{
    struct range everything = {.start = 0, .end = UINT64_MAX, .exclusive = true};
    char found[300];
    pthread_t thread;
    make_file("disk", SIZE + 300);
    struct image *image = open_image(true);
    if (image->direct) {
        struct growing_write w = {.image = image};
        range_acquire(&image->ranges, &everything);
        CHECK(pthread_create(&thread, NULL, write_tail, &w) == 0);
        bool waits = false;
        while (!waits) {
            pthread_mutex_lock(&image->ranges.lock);
            waits = image->ranges.last != &everything;
            pthread_mutex_unlock(&image->ranges.lock);
        }
        set_size(2 * SIZE);
        atomic_store(&image->size, 2 * SIZE);
        range_release(&image->ranges, &everything);
        pthread_join(thread, NULL);
        CHECK(w.result == 0 && !image->ranges.first && image->ranges.exclusive == 0);
        CHECK(image_read(image, found, sizeof found, SIZE) == 0);
        for (unsigned i = 0; i < sizeof found; i++)
            CHECK(found[i] == (i >= 100 && i < 200 ? 7 : 0));
    }
    image_put(image);
    unlink(path);
}

/* A program holds one of QEMU's bytes exclusively. */
static void a_foreign_lock_is_respected(void **state)
{
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 200};
    struct image *image;
    make_file("disk", SIZE);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && fcntl(fd, F_OFD_SETLK, &byte) == 0);
    CHECK(try_open(&image, "threads", false, LOCKING_AUTO) == -EBUSY);
    CHECK(try_open(&image, "threads", false, LOCKING_OFF) == 0);
    image_put(image);
    close(fd);
    CHECK(try_open(&image, "threads", false, LOCKING_AUTO) == 0);
    image_put(image);
    unlink(path);
}

/* An image that no other thread uses is closed while a prefetch is in flight. */
static void a_close_ends_the_prefetches(void **state)
{
    make_file("disk", SIZE);
    for (int round = 0; round < ROUNDS(100); round++) {
        struct image *image = open_image(false);
        image_prefetch(image, SIZE, 0);
        image_prefetch(image, SIZE, 0);
        image_put(image);
    }
    unlink(path);
}

static void *open_and_close(void *opaque)
{
    char data[512] = {0};
    for (int round = 0; round < ROUNDS(100); round++) {
        struct image *image = open_image(opaque != NULL);
        CHECK(image_write(image, data, sizeof data, 0, round % 2) == 0);
        CHECK(image_flush(image) == 0);
        image_prefetch(image, SIZE, 0);
        image_put(image);
    }
    return NULL;
}

/* Clients of two images of one disk come and go.  TSan sees whether the locks are taken. */
static void clients_come_and_go(void **state)
{
    pthread_t threads[4];
    make_file("disk", SIZE);
    for (unsigned i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, open_and_close, i % 2 ? threads : NULL) == 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    unlink(path);
}

static int add_extent(void *opaque, const struct extent *extent)
{
    struct extent *last = opaque;
    CHECK(last->offset == extent->offset);
    last->offset += extent->length;
    last->length += extent->hole ? 0 : extent->length;
    return 0;
}

/* Returns how many bytes of the image are reported as data. */
static uint64_t data_of(struct image *image)
{
    struct extent sum = {.offset = 0};
    CHECK(image_extents(image, SIZE, 0, false, add_extent, &sum) == 0 && sum.offset == SIZE);
    return sum.length;
}

/* Every query finds the holes.  Where lseek(2) does not know SEEK_DATA everything is data. */
static void extents_are_found_each_time(void **state)
{
    static char data[4096];
    make_file("disk", SIZE);
    struct image *image = open_image(false);
    memset(data, 1, sizeof data);
    CHECK(image_write(image, data, sizeof data, SIZE / 2, false) == 0);
    uint64_t bytes = data_of(image);
    CHECK(bytes > 0 && bytes < SIZE && data_of(image) == bytes);
    image->extents.maps = false; /* FIEMAP, on ext4 */
    no_seek = true;
    CHECK(data_of(image) == SIZE);
    no_seek = false;
    CHECK(data_of(image) == SIZE); /* not asked again */
    image_put(image);
    unlink(path);
}

/* statx(2) may answer anything; only a unit that works is used. */
static void units_that_make_no_sense_are_not_used(void **state)
{
    static const unsigned answers[][2] = {{3, 4}, {4096, 3}, {65536, 512}, {131072, 512}};
    char data[512];
    make_file("disk", SIZE);
    for (unsigned i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        offset_align = answers[i][0];
        mem_align = answers[i][1];
        struct image *image = open_image(true);
        if (image->direct)
            CHECK(offset_align == 65536
                      ? image->geometry.align == 65536
                      : image->geometry.align >= 512 && image->geometry.align <= 4096);
        CHECK(image->geometry.preferred_block >= image->geometry.align);
        CHECK(image_read(image, data, sizeof data, 1000) == 0);
        CHECK(image_write(image, data, sizeof data, 1000, false) == 0);
        image_put(image);
    }
    offset_align = 0;
    unlink(path);
}

static _Atomic unsigned sleeps;
int __real_epoll_wait(int fd, struct epoll_event *events, int count, int timeout);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int count, int timeout);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int count, int timeout)
{
    atomic_fetch_add(&sleeps, 1);
    return __real_epoll_wait(fd, events, count, timeout);
}

/* The loop thread of an image without requests sleeps, whatever the backend.  A loop that does not
 * would go to sleep thousands of times meanwhile.
 */
static void an_idle_image_sleeps(void **state)
{
    char data[512];
    make_file("disk", SIZE);
    for (unsigned i = 0; backend_name(i); i++) {
        struct image *image;
        if (try_open(&image, backend_name(i), true, LOCKING_OFF) < 0)
            continue; /* the ring is forbidden here */
        CHECK(image_read(image, data, sizeof data, 0) == 0);
        sleep_us(10000);
        unsigned before = atomic_load(&sleeps);
        sleep_us(90000);
        CHECK(atomic_load(&sleeps) - before < 20);
        image_put(image);
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_stays_open),
        cmocka_unit_test(two_files_are_two_disks),
        cmocka_unit_test(fua_is_a_durable_write),
        cmocka_unit_test(extents_are_found_each_time),
        cmocka_unit_test(units_that_make_no_sense_are_not_used),
        cmocka_unit_test(an_idle_image_sleeps),
        cmocka_unit_test(a_refused_fast_zero_punches_no_hole),
        cmocka_unit_test(a_trim_beyond_the_end_succeeds),
        cmocka_unit_test(a_write_waits_while_the_image_grows),
        cmocka_unit_test(a_foreign_lock_is_respected),
        cmocka_unit_test(a_close_ends_the_prefetches),
        cmocka_unit_test(clients_come_and_go),
        cmocka_unit_test(a_sync_beside_a_failed_sync_fails), /* its disk stays failed */
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
