/* SPDX-License-Identifier: BSD-3-Clause */
/* What an image becomes when it is opened: on each kind of filesystem, with each kernel, and after
 * each error.
 *
 * The wrapped calls of libc play the filesystem and the kernel, or fail.
 */
#include "tests/unit/fake-file.h"

#include <linux/magic.h>
#include <sys/utsname.h>

#include "plugin/disk/fd.h"

#define BTRFS_MAGIC 0x9123683e

/* --- The functions that the program wraps --- */

static const char *release; /* of uname(2); NULL: the kernel's own answer */

int __real_uname(struct utsname *name);
int __wrap_uname(struct utsname *name);
int __wrap_uname(struct utsname *name)
{
    int r = __real_uname(name);
    if (release)
        snprintf(name->release, sizeof name->release, "%s", release);
    return release && !release[0] ? -1 : r;
}

void log_warning(const char *format, ...)
{
    count(WARNING);
}

void log_debug(const char *format, ...)
{
}

static void play_nothing(void)
{
    memset(&file, 0, sizeof file);
    release = NULL;
}

/* --- The tests --- */

/* What is only readable is served read-only; any other error is one. */
static void errors_of_opens_for_writing(void **state)
{
    static const int errors[] = {EROFS, EACCES, EPERM, EMFILE, EIO, ENXIO};
    make_file("open", MiB);
    for (unsigned i = 0; i < 6; i++) {
        struct image *image;
        unsigned before = descriptors();
        file.open_flags = O_RDWR;
        file.open_errno = errors[i];
        int r = try_open_with(&image, (struct image_options){.locking = LOCKING_OFF});
        CHECK(r == (i < 3 ? 0 : -errors[i]));
        if (r == 0) {
            CHECK(image->readonly && image->why_readonly && image->flush.count == 0);
            image_put(image);
        }
        CHECK(descriptors() == before);
        play_nothing();
    }
    unlink(path);
}

/* The page cache takes the place of O_DIRECT where the filesystem has none, or where the user's own
 * descriptor is all that may be used.  For a filesystem one warning is enough.
 */
static void errors_of_direct_opens(void **state)
{
    static const struct {
        int err;
        bool works, works_inherited;
    } cases[] = {{EINVAL, true, true},  {EACCES, false, true},  {EPERM, false, true},
                 {ENOENT, false, true}, {EMFILE, false, false}, {ENOMEM, false, false}};
    forget_calls();
    make_file("open", MiB);
    for (unsigned i = 0; i < 6; i++)
        for (int inherited = 0; inherited < 2; inherited++) {
            struct image *image;
            unsigned before = descriptors();
            file.open_flags = O_DIRECT;
            file.open_errno = cases[i].err;
            int r = try_open_with(&image, (struct image_options){.direct = true,
                                                                 .inherited = inherited,
                                                                 .locking = LOCKING_OFF});
            CHECK((r == 0) == (inherited ? cases[i].works_inherited : cases[i].works));
            CHECK(r == 0 || r == -cases[i].err);
            if (r == 0) {
                CHECK(!image->direct && image->fd == image->buffered_fd);
                image_put(image);
            }
            CHECK(descriptors() == before && made[WARNING] == 1);
            play_nothing();
        }
    unlink(path);
}

/* A disk whose attributes cannot be read leaves no descriptor behind. */
static void errors_of_attributes(void **state)
{
    struct image *image;
    struct statx stx;
    make_file("open", MiB);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    unsigned before = descriptors();
    for (int i = 0; i < 3; i++) {
        file.fstat_errno = i > 0 ? EIO : 0;
        file.statx_errno = i == 0 ? EIO : i == 2 ? EPERM : 0; /* EPERM: fstat(2) is tried */
        CHECK(try_open_with(&image, (struct image_options){.locking = LOCKING_OFF}) == -EIO);
        CHECK(descriptors() == before);
        CHECK(i == 1 || fd_statx(fd, STATX_SIZE, &stx) == -EIO);
        play_nothing();
    }
    close(fd);
    unlink(path);
}

static int add_extent(void *opaque, const struct extent *extent)
{
    return 1;
}

/* Extents of a file whose size cannot be read. */
static void extents_without_a_size(void **state)
{
    make_file("open", MiB);
    struct image *image = open_image(false);
    for (int maps = 0; maps < 2; maps++) {
        image->extents.maps = maps;
        file.fstat_errno = EIO;
        CHECK(image_extents(image, MiB, 0, false, add_extent, NULL) == -EIO);
        play_nothing();
        CHECK(image_extents(image, MiB, 0, false, add_extent, NULL) == 1);
    }
    image_put(image);
    unlink(path);
}

/* FIEMAP is used on ext4 since Linux 5.8. */
static void kernels_that_map_alike(void **state)
{
    static const struct {
        const char *release;
        long type;
        bool maps;
    } cases[] = {
        {"5.7.19", EXT4_SUPER_MAGIC, false}, {"5.8.0-1", EXT4_SUPER_MAGIC, true},
        {"5.10.1", EXT4_SUPER_MAGIC, true},  {"6.0.0", EXT4_SUPER_MAGIC, true},
        {"6.12.1", EXT4_SUPER_MAGIC, true},  {"4.19.0", EXT4_SUPER_MAGIC, false},
        {"words", EXT4_SUPER_MAGIC, false},  {"", EXT4_SUPER_MAGIC, false},
        {"6.12.1", XFS_SUPER_MAGIC, false},  {"6.12.1", TMPFS_MAGIC, false},
    };
    make_file("open", MiB);
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        release = cases[i].release;
        file.fs_type = cases[i].type;
        struct image *image = open_image(false);
        CHECK(image->extents.maps == cases[i].maps);
        CHECK(image->folio.splits == (cases[i].type == EXT4_SUPER_MAGIC));
        image_put(image);
    }
    play_nothing();
    unlink(path);
}

/* FUA relies on RWF_DSYNC only where the filesystem is known to obey. */
static void filesystems_that_obey_dsync(void **state)
{
    static const struct {
        long type;
        bool obeys, obeys_rings;
    } cases[] = {{EXT4_SUPER_MAGIC, true, true}, {XFS_SUPER_MAGIC, true, true},
                 {TMPFS_MAGIC, true, true},      {FUSE_SUPER_MAGIC, false, false},
                 {BTRFS_MAGIC, true, false},     {NFS_SUPER_MAGIC, true, false},
                 {V9FS_MAGIC, false, false},     {SMB2_SUPER_MAGIC, false, false}};
    make_file("open", MiB);
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (unsigned b = 0; backend_name(b); b++)
            for (int direct = 0; direct < 2; direct++) {
                const struct room_config room = {
                    .backend = backend_name(b), .max_threads = 4, .queue_depth = 4};
                struct image *image;
                file.fs_type = cases[i].type;
                CHECK(try_open_with(&image, (struct image_options){.room = &room,
                                                                   .direct = direct,
                                                                   .locking = LOCKING_OFF}) == 0);
                bool ring = strcmp(image->room.backend->ops->name, "threads") != 0;
                CHECK(image->flush.no_dsync ==
                      !(ring && image->direct ? cases[i].obeys_rings : cases[i].obeys));
                image_put(image);
            }
    play_nothing();
    unlink(path);
}

/* Direct zeros and tails go in whole blocks of the filesystem, up to 1 MiB. */
static void granules_of_filesystems(void **state)
{
    static const struct {
        long block;
        unsigned granule;
    } cases[] = {{512, 0}, {65536, 65536}, {1 << 20, 1 << 20}, {4 << 20, 1 << 20}, {70000, 131072}};
    const unsigned page = (unsigned)sysconf(_SC_PAGESIZE);
    make_file("open", MiB);
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int direct = 0; direct < 2; direct++) {
            file.fs_block = cases[i].block;
            struct image *image = open_image(direct);
            const struct geometry *g = &image->geometry;
            unsigned least = g->align > page ? g->align : page;
            CHECK(g->sector == 512 && g->preferred_block >= 512);
            CHECK(g->granule == (!image->direct             ? 1
                                 : cases[i].granule > least ? cases[i].granule
                                                            : least));
            image_put(image);
        }
    play_nothing();
    unlink(path);
}

/* An empty file has direct I/O if others have, and memory may need no alignment at all. */
static void direct_io_of_odd_files(void **state)
{
    make_file("open", MiB);
    struct image *image = open_image(true);
    bool direct = image->direct;
    unsigned align = image->geometry.align;
    image_put(image);
#ifdef STATX_DIOALIGN
    for (unsigned mem = 1; direct && mem <= 4096; mem *= 2) {
        file.dio_offset = align;
        file.dio_mem = mem;
        image = open_image(true);
        CHECK(image->geometry.align == align);
        CHECK(align >= 4096 || image->geometry.mem_align == mem);
        image_put(image);
        play_nothing();
    }
    /* Memory that bounce buffers do not promise is not believed: the unit is found by trial. */
    file.dio_offset = 512;
    file.dio_mem = 8192;
    image = open_image(true);
    CHECK(!image->direct || image->geometry.mem_align <= 4096);
    image_put(image);
    play_nothing();
#endif
    unlink(path);
    make_file("open", 0);
    image = open_image(true);
    CHECK(image->direct == direct && image->size == 0);
    image_put(image);
    unlink(path);
}

/* Clients of one disk share one image, among other images too; readers have one of their own. */
static void images_are_shared(void **state)
{
    const struct image_options reader = {.readonly = true, .locking = LOCKING_OFF};
    struct image *images[4], *again[4];
    struct statx stx;
    char paths[2][sizeof path];
    for (unsigned i = 0; i < 2; i++) {
        make_file(i ? "open-b" : "open-a", MiB);
        memcpy(paths[i], path, sizeof path);
    }
    for (int round = 0; round < 2; round++)
        for (unsigned i = 0; i < 4; i++) {
            struct image **image = round ? &again[i] : &images[i];
            memcpy(path, paths[i % 2], sizeof path);
            if (i < 2)
                *image = open_image(false);
            else
                CHECK(try_open_with(image, reader) == 0);
            CHECK((*image)->readonly == (i >= 2) && !(*image)->why_readonly);
        }
    for (unsigned i = 0; i < 4; i++) {
        CHECK(images[i] == again[i] && images[i] != images[(i + 1) % 4]);
        CHECK(images[i] != images[(i + 2) % 4]);
        int fd = images[i]->fd;
        if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &stx) == 0 && stx.stx_mask & STATX_BTIME)
            CHECK(images[i]->key.birth / 1000000000 == (uint64_t)stx.stx_btime.tv_sec);
    }
    for (unsigned i = 0; i < 4; i++) {
        image_put(images[i]);
        image_put(again[i]);
    }
    unlink(paths[0]);
    unlink(paths[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_of_opens_for_writing),
        cmocka_unit_test(errors_of_direct_opens),
        cmocka_unit_test(errors_of_attributes),
        cmocka_unit_test(extents_without_a_size),
        cmocka_unit_test(kernels_that_map_alike),
        cmocka_unit_test(filesystems_that_obey_dsync),
        cmocka_unit_test(granules_of_filesystems),
        cmocka_unit_test(direct_io_of_odd_files),
        cmocka_unit_test(images_are_shared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
