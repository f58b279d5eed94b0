/* SPDX-License-Identifier: BSD-3-Clause */
/* Which calls of the kernel an image makes beside the transfers: for extents, for hints to read
 * ahead, before small writes, and at its end.  No client sees them in the bytes.
 */
#include "tests/lib/disk-test.h"

#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include "tests/lib/silent-log.h"

/* --- The functions that the program wraps --- */

static _Atomic int error; /* of posix_fadvise(2), or 0 */

int __wrap_posix_fadvise64(int fd, off_t offset, off_t length, int advice);
int __wrap_posix_fadvise64(int fd, off_t offset, off_t length, int advice)
{
    CHECK(advice == POSIX_FADV_WILLNEED);
    count_range(ADVISE, (uint64_t)offset, (uint64_t)length);
    return atomic_load(&error);
}

off_t __real_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence)
{
    count(SEEK);
    return __real_lseek64(fd, offset, whence);
}

int __real_ioctl(int fd, unsigned long command, void *p);
int __wrap_ioctl(int fd, unsigned long command, void *p);
int __wrap_ioctl(int fd, unsigned long command, void *p)
{
    if (command == FS_IOC_FIEMAP)
        count(MAP);
    return __real_ioctl(fd, command, p);
}

int __wrap_madvise(void *p, size_t n, int advice);
int __wrap_madvise(void *p, size_t n, int advice)
{
    if (advice == MADV_COLD)
        count(COLD);
    return 0;
}

static bool plays_ext4;
int __real_fstatfs64(int fd, struct statfs *fs);
int __wrap_fstatfs64(int fd, struct statfs *fs);
int __wrap_fstatfs64(int fd, struct statfs *fs)
{
    int r = __real_fstatfs64(fd, fs);
    if (plays_ext4)
        fs->f_type = EXT4_SUPER_MAGIC;
    return r;
}

static int watched = -1; /* no program may hold a lock of this file when a thread is joined */
int __real_pthread_join(pthread_t thread, void **result);
int __wrap_pthread_join(pthread_t thread, void **result);
int __wrap_pthread_join(pthread_t thread, void **result)
{
    struct flock bytes = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 200};
    if (watched >= 0) {
        count(JOIN);
        CHECK(fcntl(watched, F_OFD_GETLK, &bytes) == 0 && bytes.l_type == F_UNLCK);
    }
    return __real_pthread_join(thread, result);
}

/* --- The tests --- */

static int add_extent(void *opaque, const struct extent *extent)
{
    uint64_t *end = opaque; /* and the number of extents */
    CHECK(extent->offset == end[0] && extent->hole == (end[1] % 2 == 0));
    end[0] += extent->length;
    end[1]++;
    return 0;
}

/* On ext4 one call finds hundreds of extents. */
static void many_extents_cost_few_calls(void **state)
{
    const unsigned n = 300;
    static char data[4096] = {1};
    uint64_t end[2] = {0};
    make_file("calls", (2 * n + 1) * 4096);
    struct image *image = open_image(false);
    for (unsigned i = 0; i < n; i++)
        CHECK(image_write(image, data, sizeof data, (2 * i + 1) * 4096, false) == 0);
    CHECK(image_flush(image) == 0);
    forget_calls();
    CHECK(image_extents(image, (2 * n + 1) * 4096, 0, false, add_extent, end) == 0);
    CHECK(end[0] == (2 * n + 1) * 4096 && end[1] == 2 * n + 1);
    if (image->extents.maps)
        CHECK(made[MAP] == 2 && made[SEEK] == 0);
    else
        CHECK(made[MAP] == 0 && made[SEEK] > n);
    image_put(image);
    unlink(path);
}

static int add_data(void *opaque, const struct extent *extent)
{
    CHECK(!extent->hole);
    *(uint64_t *)opaque += extent->length;
    return 0;
}

/* Beyond the end of a file that became shorter nothing is called a hole: a read fails there. */
static void beyond_the_end_is_no_hole(void **state)
{
    static const unsigned offsets[] = {MiB / 2, MiB * 3 / 4};
    make_file("calls", MiB);
    struct image *image = open_image(false);
    CHECK(truncate(path, MiB / 2) == 0);
    for (unsigned i = 0; i < 2; i++)
        for (int only_one = 0; only_one < 2; only_one++) {
            uint64_t bytes = 0;
            CHECK(image_extents(image, MiB / 4, offsets[i], only_one, add_data, &bytes) == 0);
            CHECK(bytes == MiB / 4);
        }
    image_put(image);
    unlink(path);
}

static unsigned prefetches_of(struct image *image, bool *closing)
{
    pthread_mutex_lock(&image->prefetch.lock);
    unsigned n = image->prefetch.in_flight;
    *closing = image->prefetch.closing;
    pthread_mutex_unlock(&image->prefetch.lock);
    return n;
}

/* A hint is read in pieces of 2 MiB, 64 MiB at most; an error ends it.  An eighth of the slots is
 * for hints, further ones are dropped, and the end of the image ends them early.
 */
static void hints_are_read_in_pieces(void **state)
{
    struct client closer;
    struct gate g;
    bool closing;
    make_file("calls", MiB);
    struct image *image = open_image(false);
    forget_calls();
    image_prefetch(image, 5 * MiB + 1000, 4096);
    WAIT_UNTIL(prefetches_of(image, &closing) == 0);
    CHECK(made[ADVISE] == 3);
    for (unsigned i = 0; i < 3; i++)
        CHECK(ranges[i][0] == 4096 + i * 2 * MiB && ranges[i][1] == (i < 2 ? 2 * MiB : MiB + 1000));
    forget_calls();
    image_prefetch(image, 100 * MiB, 0);
    WAIT_UNTIL(prefetches_of(image, &closing) == 0);
    CHECK(made[ADVISE] == 32 && ranges[31][0] == 62 * MiB && ranges[31][1] == 2 * MiB);
    forget_calls();
    atomic_store(&error, EINVAL);
    image_prefetch(image, 100 * MiB, 0);
    WAIT_UNTIL(prefetches_of(image, &closing) == 0);
    CHECK(made[ADVISE] == 1);
    atomic_store(&error, 0);

    forget_calls();
    close_gate(&g, ADVISE);
    for (int i = 0; i < 5; i++)
        image_prefetch(image, 8 * MiB, 0);
    gate_wait_for(&g, 2);
    CHECK(prefetches_of(image, &closing) == 2 && !closing);
    start_clients(&closer, 1, image, OP_CLOSE);
    WAIT_UNTIL((prefetches_of(image, &closing), closing));
    gate_open(&g);
    join_clients(&closer, 1);
    end_gate(&g);
    CHECK(made[ADVISE] == 2);

    image = open_image(true);
    forget_calls();
    image_prefetch(image, MiB, 0);
    CHECK(!image->direct || prefetches_of(image, &closing) == 0);
    image_put(image);
    unlink(path);
}

/* The first small write to a region of 2 MiB splits the folio, and each 256th after it. */
static void small_writes_split_folios(void **state)
{
    static char data[64 * KiB + 1];
    make_file("calls", 8 * MiB);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    for (unsigned at = 0; at < 8 * MiB; at += 64 * KiB)
        CHECK(pwrite(fd, data, 64 * KiB, at) == 64 * KiB); /* the pages are in the cache */
    close(fd);
    plays_ext4 = true;
    struct image *image = open_image(false);
    forget_calls();
    for (int i = 0; i < 256; i++)
        CHECK(image_write(image, data, 100, 10000, false) == 0 && made[COLD] == 1);
    CHECK(image_write(image, data, 100, 10000, false) == 0 && made[COLD] == 2);
    CHECK(image_write(image, data, 64 * KiB + 1, 3 * MiB, false) == 0 && made[COLD] == 2);
    CHECK(image_write(image, data, 64 * KiB, 3 * MiB, false) == 0 && made[COLD] == 3);
    CHECK(image_write(image, data, 100, 5 * MiB, true) == 0 && made[COLD] == 4);
    image_put(image);
    image = open_image(true);
    CHECK(image_write(image, data, 100, 10000, false) == 0);
    CHECK(made[COLD] == (image->direct ? 4 : 5));
    image_put(image);
    plays_ext4 = false;
    unlink(path);
}

/* The next program need not wait until the threads have ended. */
static void locks_are_released_before_threads_end(void **state)
{
    struct flock bytes = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 200};
    struct image *image;
    make_file("calls", MiB);
    watched = open(path, O_RDWR | O_CLOEXEC);
    forget_calls();
    CHECK(try_open_with(&image, (struct image_options){.locking = LOCKING_ON}) == 0);
    CHECK(fcntl(watched, F_OFD_GETLK, &bytes) == 0 && bytes.l_type == F_RDLCK);
    image_put(image);
    CHECK(made[JOIN] > 0);
    close(watched);
    watched = -1;
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_extents_cost_few_calls),
        cmocka_unit_test(beyond_the_end_is_no_hole),
        cmocka_unit_test(hints_are_read_in_pieces),
        cmocka_unit_test(small_writes_split_folios),
        cmocka_unit_test(locks_are_released_before_threads_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
