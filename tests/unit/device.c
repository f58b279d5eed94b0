/* SPDX-License-Identifier: BSD-3-Clause */
/* Block devices that no machine of ours has: their units, which calls zero and trim them, and what
 * happens when they become smaller.
 *
 * The wrapped calls of libc play the device; its bytes are a file.
 */
#include "tests/unit/counted-writes.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ _IOR(0x12, 128, uint64_t)
#endif

/* --- The device --- */

/* Set while no request is in flight. */
static struct {
    unsigned sector, physical, optimal; /* bytes */
    const char *rotational;             /* the file of sysfs, or NULL */
    uint64_t size, sequence;            /* sequence 0: the kernel does not tell it */
    bool readonly, has_vanished;
    int fallocate_errno, discard_errno, zeroout_errno;
} device;

int __real_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx)
{
    int r = __real_statx(fd, name, flags, mask, stx);
    stx->stx_mode = S_IFBLK | 0600;
    stx->stx_rdev_major = 259;
    stx->stx_rdev_minor = 999999;
#ifdef STATX_DIOALIGN
    stx->stx_mask &= ~(unsigned)STATX_DIOALIGN;
#endif
    return r;
}

int __wrap_ioctl(int fd, unsigned long command, void *p);
int __wrap_ioctl(int fd, unsigned long command, void *p)
{
    const uint64_t *range = p;
    switch (command) {
    case BLKGETDISKSEQ:
        *(uint64_t *)p = device.sequence;
        return answer(device.sequence ? 0 : ENOTTY);
    case BLKGETSIZE64:
        *(uint64_t *)p = device.size;
        return answer(device.has_vanished ? EIO : 0);
    case BLKROGET:
        *(int *)p = device.readonly;
        return 0;
    case BLKSSZGET:
        *(int *)p = (int)device.sector;
        return 0;
    case BLKPBSZGET:
        *(unsigned *)p = device.physical;
        return 0;
    case BLKIOOPT:
        *(unsigned *)p = device.optimal;
        return 0;
    case BLKDISCARD:
        count_range(DISCARD, range[0], range[1]);
        return answer(device.discard_errno);
    case BLKZEROOUT:
        count_range(ZEROOUT, range[0], range[1]);
        return answer(device.zeroout_errno);
    default:
        return answer(ENOTTY);
    }
}

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length)
{
    count_range(FALLOCATE, (uint64_t)offset, (uint64_t)length);
    return answer(device.fallocate_errno);
}

FILE *__real_fopen64(const char *name, const char *mode);
FILE *__wrap_fopen64(const char *name, const char *mode);
FILE *__wrap_fopen64(const char *name, const char *mode)
{
    if (!strstr(name, "rotational") || !device.rotational)
        return NULL;
    return fmemopen((void *)device.rotational, strlen(device.rotational), "r");
}

void log_warning(const char *format, ...)
{
    count(WARNING);
}

void log_debug(const char *format, ...)
{
}

static void make_device(uint64_t size)
{
    memset(&device, 0, sizeof device);
    device.sector = device.physical = 512;
    device.size = size;
    device.sequence = 1;
    make_file("device", MiB);
    forget_calls();
}

/* --- The tests --- */

static void units_of_devices(void **state)
{
    static const struct {
        unsigned sector, physical, optimal;
        const char *rotational;
        unsigned served_sector, preferred;
    } cases[] = {
        {512, 4096, 0, "1\n", 512, 4096},
        {512, 512, 0, "0\n", 512, 512},
        {4096, 4096, 65536, NULL, 4096, 65536},
        {8192, 8192, 0, NULL, 8192, 8192},
        {512, 4096, 64 * MiB, NULL, 512, 32 * MiB}, /* the NBD protocol's maximum */
        {512, 4096, 32 * MiB, NULL, 512, 32 * MiB},
        {512, 0, 0, NULL, 512, 512},
        {512, 3000, 5000, NULL, 512, 512}, /* no powers of two */
        {512, 256, 0, NULL, 512, 512},
        {4096, 512, 0, NULL, 4096, 512},
        {3000, 0, 0, NULL, 4096, 4096},
    };
    const unsigned page = (unsigned)sysconf(_SC_PAGESIZE);
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int direct = 0; direct < 2; direct++) {
            make_device(MiB);
            device.sector = cases[i].sector;
            device.physical = cases[i].physical;
            device.optimal = cases[i].optimal;
            device.rotational = cases[i].rotational;
            struct image *image = open_image(direct);
            const struct geometry *g = &image->geometry;
            unsigned sector = cases[i].served_sector;
            CHECK(g->sector == sector && image->key.block && image->key.inode == 0);
            CHECK(g->rotational == (cases[i].rotational && cases[i].rotational[0] == '1'));
            if (image->direct && sector == cases[i].sector) {
                CHECK(g->align == sector && g->mem_align == (sector > 4096 ? sector : 4096));
                CHECK(g->granule == (sector == 512 ? 512 : sector > page ? sector : page));
            } else if (!image->direct) {
                CHECK(g->align == 1 && g->granule == (sector > page ? sector : page));
            }
            CHECK(g->preferred_block ==
                  (g->align > cases[i].preferred ? g->align : cases[i].preferred));
            CHECK(image->disk.preferred_block == g->preferred_block);
            image_put(image);
            unlink(path);
        }
}

/* The methods to zero are tried from the best to the worst, and each refusal is remembered. */
static void zeros_go_down_the_ladder(void **state)
{
    make_device(MiB);
    struct image *image = open_image(false);
    device.fallocate_errno = EOPNOTSUPP;
    CHECK(image_zero(image, 65536, 65536, ZERO_FAST) == -EOPNOTSUPP && made[FALLOCATE] == 0);
    CHECK(image_zero(image, 65536, 65536, 0) == 0); /* ZERO_RANGE is refused */
    CHECK(made[FALLOCATE] == 1 && made[ZEROOUT] == 1 && made[SYNC] == 0);
    CHECK(ranges[0][0] == 65536 && ranges[0][1] == 65536);
    CHECK(image_zero(image, 65536, 65536, ZERO_MAY_TRIM) == 0); /* so is PUNCH_HOLE */
    CHECK(made[FALLOCATE] == 2 && made[ZEROOUT] == 2 && made[SYNC] == 1);
    CHECK(image_zero(image, 65536, 65536, ZERO_MAY_TRIM) == 0);
    CHECK(made[FALLOCATE] == 2 && made[ZEROOUT] == 3 && made[SYNC] == 1 && made[WRITE] == 0);
    device.zeroout_errno = EINVAL; /* it has worked, so this is no refusal for good */
    CHECK(image_zero(image, 65536, 65536, 0) == 0 && made[ZEROOUT] == 4 && made[WRITE] == 1);
    device.zeroout_errno = ENOTTY;
    for (int i = 0; i < 3; i++)
        CHECK(image_zero(image, 65536, 65536, 0) == 0);
    CHECK(made[ZEROOUT] == 5 && made[WRITE] == 4);
    image_put(image);

    image = open_image(false);
    device.fallocate_errno = 0;
    forget_calls();
    for (int i = 0; i < 3; i++)
        CHECK(image_zero(image, 65536, 65536, ZERO_MAY_TRIM | ZERO_FAST) == 0);
    CHECK(made[FALLOCATE] == 3 && made[SYNC] == 1 && made[ZEROOUT] == 0);
    device.fallocate_errno = EIO; /* an error of the disk is no reason to write zeros */
    CHECK(image_zero(image, 65536, 65536, 0) == -EIO && made[ZEROOUT] == 0 && made[WRITE] == 0);
    image_put(image);
    unlink(path);
}

/* A trim is a hint: what the device refuses stays, and what it does not support is asked once. */
static void trims_are_hints(void **state)
{
    make_device(MiB);
    struct image *image = open_image(false);
    CHECK(image_trim(image, 65536 + 100, 65536 - 50, 0) == 0 && made[DISCARD] == 1);
    CHECK(ranges[0][0] == 65536 && ranges[0][1] == 65536);
    device.discard_errno = EIO;
    CHECK(image_trim(image, 65536, 65536, 0) == -EIO);
    device.discard_errno = EOPNOTSUPP;
    for (int i = 0; i < 3; i++)
        CHECK(image_trim(image, 65536, 65536, 0) == 0);
    CHECK(made[DISCARD] == 3 && made[FALLOCATE] == 0 && made[SYNC] == 0);
    image_put(image);
    unlink(path);
}

/* The kernel does what it can beyond the end of a device that became smaller, and reports success.
 */
static void a_smaller_device_refuses_zeros(void **state)
{
    make_device(MiB);
    struct image *image = open_image(false);
    for (device.size = MiB / 2;; device.size = 0) {
        forget_calls();
        CHECK(image_zero(image, MiB / 2, MiB / 4, 0) == -ENOSPC && made[FALLOCATE] == 0);
        CHECK(image_trim(image, MiB / 2, MiB / 4, 0) == 0);
        CHECK(made[DISCARD] == (device.size ? 1 : 0));
        CHECK(!device.size || (ranges[0][0] == MiB / 4 && ranges[0][1] == MiB / 4));
        if (!device.size)
            break;
        CHECK(image_zero(image, MiB / 4, MiB / 4, 0) == 0 && made[FALLOCATE] == 1);
    }
    device.has_vanished = true;
    CHECK(image_zero(image, MiB / 2, MiB / 4, 0) == -EIO);
    CHECK(image_trim(image, MiB / 2, MiB / 4, 0) == -EIO);
    image_put(image);
    unlink(path);
}

/* Another disk behind the same device node is another image.  Without sequence numbers (before
 * Linux 5.15) it is the same one.
 */
static void sequence_numbers_tell_devices_apart(void **state)
{
    make_device(MiB);
    struct image *first = open_image(false), *again = open_image(false);
    CHECK(first == again && first->key.birth == 1);
    device.sequence = 2;
    struct image *second = open_image(false);
    CHECK(second != first && second->key.birth == 2);
    device.sequence = 0;
    struct image *third = open_image(false), *fourth = open_image(false);
    CHECK(third == fourth && third->key.birth == 0 && third != first && third != second);
    struct image *images[] = {first, again, second, third, fourth};
    for (unsigned i = 0; i < 5; i++)
        image_put(images[i]);
    device.readonly = true;
    first = open_image(false);
    CHECK(first->readonly && first->why_readonly && first->disk.readonly);
    image_put(first);
    unlink(path);
}

/* A part of a sector at the end is served if it can be read.  If not, one warning is enough. */
static void an_end_that_cannot_be_read_is_left_out(void **state)
{
    static const struct {
        uint64_t size, served;
        unsigned warnings;
    } cases[] = {{MiB, MiB, 0},       {MiB - 512, MiB - 512, 0}, {MiB + 512, MiB, 1},
                 {MiB + 512, MiB, 1}, {MiB + 1024, MiB, 2},      {MiB + 512, MiB, 3}};
    make_device(MiB);
    device.sector = 4096;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        device.size = cases[i].size;
        struct image *image = open_image(false);
        CHECK(image->size == cases[i].served && image->disk.ops->size(&image->disk) == image->size);
        CHECK(made[WARNING] == cases[i].warnings);
        image_put(image);
    }
    device.sector = 512; /* and the size is followed while clients come */
    device.size = MiB;
    struct image *image = open_image(false);
    device.size = 2 * MiB;
    CHECK(open_image(false) == image && image->size == 2 * MiB);
    image_put(image);
    image_put(image);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(units_of_devices),
        cmocka_unit_test(zeros_go_down_the_ladder),
        cmocka_unit_test(trims_are_hints),
        cmocka_unit_test(a_smaller_device_refuses_zeros),
        cmocka_unit_test(sequence_numbers_tell_devices_apart),
        cmocka_unit_test(an_end_that_cannot_be_read_is_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
