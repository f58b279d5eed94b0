/* SPDX-License-Identifier: BSD-3-Clause */
/* The unit of direct I/O where statx(2) does not tell it: found by trial reads.  Each trial reads
 * at an odd multiple of its unit, in data and not in a hole.  Where no read can prove a unit, the
 * block of the disk below counts.  Where nothing works, the page cache is used.
 *
 * The wrapped calls of libc play a filesystem that looks at the offset of a direct read only.
 */
#include "tests/lib/pool-test.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "plugin/disk/image-table.h"
#include "plugin/disk/image.h"
#include "tests/lib/silent-log.h"

#define KiB 1024u
#define SIZE (512 * KiB)

/* What the filesystem is like; set while no image is opened. */
static struct {
    unsigned needs;            /* the unit of an offset; 0: no direct read works */
    const off_t (*extents)[2]; /* start and end of data, ended by {0, 0} */
    const char *below;         /* the file logical_block_size of sysfs, or NULL */
    int first_errno;           /* of the first read, or 0 */
    bool sparse;               /* the file has holes, whatever `extents` says */
} fake;

static unsigned reads; /* trial reads */

int __real_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx)
{
    int r = __real_statx(fd, name, flags, mask, stx);
#ifdef STATX_DIOALIGN
    stx->stx_mask &= ~(unsigned)STATX_DIOALIGN;
#endif
    return r;
}

/* XFS_IOC_DIOINFO. */
int __wrap_ioctl(int fd, unsigned long command, void *p);
int __wrap_ioctl(int fd, unsigned long command, void *p)
{
    errno = ENOTTY;
    return -1;
}

off_t __wrap_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence)
{
    const off_t(*extent)[2] = fake.extents;
    while ((*extent)[1] && (*extent)[1] <= offset)
        extent++;
    if (whence == SEEK_HOLE)
        return (*extent)[1] && (*extent)[0] <= offset ? (*extent)[1] : offset;
    if ((*extent)[1])
        return (*extent)[0] > offset ? (*extent)[0] : offset;
    errno = ENXIO;
    return -1;
}

ssize_t __wrap_pread64(int fd, void *p, size_t n, off_t offset);
ssize_t __wrap_pread64(int fd, void *p, size_t n, off_t offset)
{
    CHECK(offset % (off_t)n == 0 && offset / (off_t)n % 2 == 1); /* an odd multiple of the unit */
    errno = reads++ == 0 ? fake.first_errno : 0;
    if (!errno && (!fake.needs || offset % fake.needs != 0))
        errno = EINVAL;
    return errno ? -1 : (ssize_t)n;
}

/* The same, as _FORTIFY_SOURCE calls it. */
ssize_t __wrap___pread64_chk(int fd, void *p, size_t n, off_t offset, size_t room);
ssize_t __wrap___pread64_chk(int fd, void *p, size_t n, off_t offset, size_t room)
{
    CHECK(n <= room);
    return __wrap_pread64(fd, p, n, offset);
}

FILE *__real_fopen64(const char *name, const char *mode);
FILE *__wrap_fopen64(const char *name, const char *mode);
FILE *__wrap_fopen64(const char *name, const char *mode)
{
    if (!strstr(name, "logical_block_size"))
        return __real_fopen64(name, mode);
    return fake.below ? fmemopen((void *)fake.below, strlen(fake.below), "r") : NULL;
}

/* Returns the unit that an image on this filesystem gets, or 0 if it uses the page cache. */
static unsigned unit_found(void)
{
    const struct room_config room = {.backend = "threads", .max_threads = 4, .helping = true};
    const struct image_options options = {.room = &room, .direct = true, .locking = LOCKING_OFF};
    const char *directory = getenv("TMPDIR");
    char path[256], why[LOG_LINE_SIZE];
    struct image *image;
    snprintf(path, sizeof path, "%s/aiodisk-units-%d", directory ? directory : "/var/tmp",
             (int)getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
    CHECK(fake.sparse || posix_fallocate(fd, 0, SIZE) == 0);
    reads = 0;
    CHECK(image_get(fd, path, &options, &image, why) == 0);
    unsigned found = image->direct ? image->geometry.align : 0;
    CHECK(!found || image->geometry.mem_align >= found);
    CHECK(image->geometry.preferred_block >= found);
    image_put(image);
    close(fd);
    unlink(path);
    return found;
}

static const off_t everything[][2] = {{0, SIZE}, {0, 0}};
static const off_t nothing[][2] = {{0, 0}};

static void trial_reads_prove_the_unit(void **state)
{
    fake.extents = everything;
    for (unsigned needs = 512; needs <= 64 * KiB; needs *= 2) {
        fake.needs = needs;
        CHECK(unit_found() == needs && reads > 0);
    }
}

/* Data of 512 bytes at an offset that any unit divides prove nothing about 512. */
static void an_even_multiple_proves_nothing(void **state)
{
    static const off_t small[][2] = {{8192, 8192 + 512}, {65536, 65536 + 512}, {0, 0}};
    static const off_t two[][2] = {{8192, 8192 + 512}, {16384, 16384 + 1024}, {0, 0}};
    static off_t many[21][2];
    static const off_t late[][2] = {{8192 + 100, 8192 + 1024}, {0, 0}};
    fake.needs = 4096;
    fake.extents = small;
    CHECK(unit_found() == 4096 && reads == 1);
    fake.needs = 512;
    fake.extents = two; /* 16384 + 512 is a proof */
    CHECK(unit_found() == 512 && reads == 1);
    fake.extents = late; /* so is 8192 + 512 */
    CHECK(unit_found() == 512 && reads == 1);
    /* Only the first 16 extents are looked at. */
    for (int i = 0; i < 20; i++) {
        many[i][0] = (i + 1) * 8192;
        many[i][1] = many[i][0] + (i < 16 ? 512 : 4096);
    }
    fake.extents = many;
    CHECK(unit_found() == 4096 && reads == 1);
}

/* Where all is a hole, nothing is proved: the block of the disk below counts, or 4096. */
static void a_hole_proves_nothing(void **state)
{
    static const struct {
        const char *below;
        unsigned unit;
    } cases[] = {{NULL, 4096},    {"512\n", 4096},  {"8192\n", 8192}, {"65536\n", 65536},
                 {"words", 4096}, {"9000\n", 4096}, {"0\n", 4096},    {"131072\n", 4096}};
    fake.extents = nothing;
    fake.needs = 512;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake.below = cases[i].below;
        CHECK(unit_found() == cases[i].unit);
    }
    fake.below = NULL;
    fake.extents = everything; /* a filesystem without SEEK_HOLE */
    fake.sparse = true;
    CHECK(unit_found() == 4096);
    fake.sparse = false;
}

/* A bad sector says nothing against the unit; an interrupted read is made again; where no read
 * works, the page cache is used.
 */
static void errors_of_trial_reads(void **state)
{
    fake.extents = everything;
    fake.needs = 4096;
    fake.first_errno = EIO;
    CHECK(unit_found() == 512);
    fake.first_errno = EINTR;
    CHECK(unit_found() == 4096);
    fake.first_errno = 0;
    fake.needs = 0;
    CHECK(unit_found() == 0 && reads >= 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trial_reads_prove_the_unit),
        cmocka_unit_test(an_even_multiple_proves_nothing),
        cmocka_unit_test(a_hole_proves_nothing),
        cmocka_unit_test(errors_of_trial_reads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
