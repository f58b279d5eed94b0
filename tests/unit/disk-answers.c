/* SPDX-License-Identifier: BSD-3-Clause */
/* What an image makes of answers that the kernel of this machine does not give: those of an older
 * kernel, of a ring that lacks operations or returns wrong bytes, of a filesystem or device with
 * unusual units, and refusals of locks, advice, descriptors and threads.
 */
#include "tests/unit/disk-answers.h"

#include <linux/magic.h>

#include "plugin/disk/fd.h"

/* --- Images --- */

static _Atomic unsigned warnings;
static char warning[LOG_LINE_SIZE]; /* the last one */

void log_warning(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(warning, sizeof warning, format, args);
    va_end(args);
    atomic_fetch_add(&warnings, 1);
}

void log_debug(const char *format, ...)
{
}

/* Returns an image of the file on this backend, or on threads if the ring cannot be used. */
static struct image *open_on(const char *backend)
{
    const struct room_config room = {
        .backend = backend, .max_threads = 4, .queue_depth = 4, .helping = true};
    struct image *image;
    CHECK(try_open_with(&image, (struct image_options){
                                    .room = &room, .direct = true, .locking = LOCKING_OFF}) == 0);
    return image;
}

static bool carried_by(const struct image *image, const char *backend)
{
    return strcmp(image->room.backend->ops->name, backend) == 0;
}

static bool has_backend(const char *backend)
{
    struct image *image = open_on(backend);
    bool has = carried_by(image, backend);
    image_put(image);
    return has;
}

static void use(struct image *image)
{
    char data[4096], found[4096];
    memset(data, 5, sizeof data);
    CHECK(image_write(image, data, sizeof data, 4096, false) == 0 && image_flush(image) == 0);
    CHECK(image_zero(image, 4096, 8192, 0) == 0);
    CHECK(image_read(image, found, sizeof found, 4096) == 0);
    CHECK(memcmp(data, found, sizeof data) == 0);
    image_put(image);
}

static int setup(void **state)
{
    memset(&fake, 0, sizeof fake);
    memset(&file, 0, sizeof file);
    make_file("disk-answers", SIZE);
    return 0;
}

static int teardown(void **state)
{
    unlink(path);
    return 0;
}

/* --- Rings --- */

/* Without reads or writes a ring is not used; the pool does what else is missing. */
static void a_ring_without_an_operation(void **state)
{
    static const struct {
        int op;
        bool is_used;
    } cases[] = {{IORING_OP_READ, false},
                 {IORING_OP_WRITE, false},
                 {IORING_OP_FSYNC, true},
                 {IORING_OP_FALLOCATE, true}};
    for (unsigned i = 0; i < 4 && has_backend("io_uring"); i++) {
        fake.missing_op = 1 + cases[i].op;
        struct image *image = open_on("io_uring");
        CHECK(carried_by(image, "io_uring") == cases[i].is_used);
        use(image);
        fake.missing_op = 0;
    }
    if (has_backend("libaio")) {
        fake.no_fdsync = fake.interrupted = true;
        struct image *image = open_on("libaio");
        CHECK(carried_by(image, "libaio") && !fake.interrupted);
        use(image);
    }
}

/* A ring that reads wrong bytes, or refuses every request, is not used. */
static void a_ring_that_does_not_work(void **state)
{
    static const char *const rings[] = {"io_uring", "libaio"};
    static const int errors[] = {-EAGAIN, -512, -ENOMEM}; /* the ring's own two, and the disk's */
    for (unsigned i = 0; i < 2; i++) {
        if (!has_backend(rings[i]))
            continue;
        fake.wrong_bytes = true;
        use(open_on(rings[i]));
        CHECK(strstr(warning, rings[i]) && strstr(warning, strerror(EIO)));
        fake.wrong_bytes = false;
        for (unsigned e = 0; e < 3; e++) {
            fake.ring_error = errors[e];
            use(open_on(rings[i]));
            CHECK(strstr(warning, rings[i]) && strstr(warning, strerror(-errors[e])));
        }
        fake.ring_error = 0;
        /* A ring that fails later gives its requests to the pool. */
        for (unsigned e = 0; e < 2; e++) {
            struct image *image = open_on(rings[i]);
            fake.ring_error = errors[e];
            use(image);
            fake.ring_error = 0;
        }
    }
}

/* --- Units --- */

static void preferred_blocks_are_those_of_nbd(void **state)
{
    static const unsigned cases[][2] = {
        {256, 512}, {3000, 4096}, {65536, 65536}, {64 * MiB, 32 * MiB}};
    for (unsigned i = 0; i < 4; i++) {
        file.preferred = cases[i][0];
        struct image *image = open_image(false);
        CHECK(image->geometry.preferred_block == cases[i][1]);
        image_put(image);
    }
}

/* Before Linux 6.1 xfs says its units by an ioctl, and a device its sector. */
static void units_without_statx(void **state)
{
    static const uint32_t xfs[][3] = {
        {512, 512, 512}, {4096, 512, 4096}, {3, 512, 0}, {512, 3, 0}, {131072, 512, 0}};
    static const int sectors[][2] = {{4096, 4096}, {520, 0}, {-1, 0}};
    file.no_dioalign = true;
    for (unsigned i = 0; i < 5; i++) {
        fake.xfs_unit = xfs[i][0];
        fake.xfs_memory = xfs[i][1];
        struct image *image = open_image(true);
        if (image->direct && xfs[i][2])
            CHECK(image->geometry.align == xfs[i][2] && image->geometry.mem_align == xfs[i][1]);
        else if (image->direct)
            CHECK(image->geometry.align <= 4096); /* found by trial */
        use(image);
    }
    file.block = true;
    for (unsigned i = 0; i < 3; i++) {
        fake.sector = sectors[i][0];
        struct image *image = open_image(true);
        if (image->direct && sectors[i][1])
            CHECK(image->geometry.align == (uint32_t)sectors[i][1]);
        CHECK(!image->direct || image->geometry.align >= 512);
        image_put(image);
    }
}

static void a_file_without_direct_io(void **state)
{
    file.no_direct = true;
    struct image *image = open_image(true);
    CHECK(!image->direct && strstr(warning, "the page cache is used"));
    use(image);
}

/* MADV_POPULATE_READ is of Linux 5.14.  Without it the write goes on. */
static void a_folio_that_is_not_split(void **state)
{
    char data[512] = {0};
    file.fs_type = EXT4_SUPER_MAGIC;
    for (int refused = 0; refused < 2; refused++) {
        fake.populate = refused ? EINVAL : 0;
        forget_calls();
        struct image *image = open_image(false);
        CHECK(image_read(image, data, sizeof data, 0) == 0);
        CHECK(image_write(image, data, sizeof data, 0, false) == 0);
        CHECK(atomic_load(&made[COLD]) == (refused ? 0 : 1));
        image_put(image);
    }
}

static int add_extent(void *opaque, const struct extent *extent)
{
    uint64_t *end = opaque;
    CHECK(extent->offset == *end && !extent->hole);
    *end += extent->length;
    return 0;
}

/* The file is cut short or punched after lseek(2) has found data, so SEEK_HOLE finds no end of the
 * data: what was data stays data, and the search goes on.
 */
static void data_that_vanish_are_no_hole(void **state)
{
    char data[2048];
    memset(data, 1, sizeof data);
    CHECK(truncate(path, sizeof data) == 0);
    struct image *image = open_image(false);
    CHECK(image_write(image, data, sizeof data, 0, false) == 0);
    image->extents.maps = false;
    for (int cut = 0; cut < 2; cut++) {
        uint64_t end = 0;
        *(cut ? &fake.cut : &fake.punched) = true;
        CHECK(image_extents(image, sizeof data, 0, false, add_extent, &end) == 0);
        CHECK(end == sizeof data);
        fake.cut = fake.punched = false;
    }
    image_put(image);
}

/* --- Refusals --- */

/* Filesystems without locks: locking=auto goes on without. */
static void locks_that_are_not_supported(void **state)
{
    struct image *image;
    fake.lock = ENOLCK;
    CHECK(try_open_with(&image, (struct image_options){.locking = LOCKING_ON}) == -ENOLCK);
    CHECK(try_open_with(&image, (struct image_options){.locking = LOCKING_AUTO}) == 0);
    use(image);
}

/* A program that lets nobody read keeps a reader out too. */
static void a_reader_may_be_locked_out(void **state)
{
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 200, .l_len = 1};
    const struct image_options options = {.locking = LOCKING_AUTO, .readonly = true};
    struct image *image;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && fcntl(fd, F_OFD_SETLK, &byte) == 0);
    CHECK(try_open_with(&image, options) == -EBUSY);
    close(fd);
    CHECK(try_open_with(&image, options) == 0);
    image_put(image);
}

static void advice_that_is_refused(void **state)
{
    const struct image_options options = {.locking = LOCKING_OFF, .advice = POSIX_FADV_RANDOM};
    struct image *image;
    fake.advice = EOPNOTSUPP;
    CHECK(try_open_with(&image, options) == 0 && strstr(warning, "fadvise= has no effect"));
    image_put(image);
}

/* A descriptor of the user that cannot be opened again is used as far as it goes. */
static void which_descriptors_stand_for_others(void **state)
{
    static const struct {
        int own, wanted;
        bool works;
    } cases[] = {{O_RDWR, O_RDWR, true},
                 {O_RDWR, O_RDONLY, true},
                 {O_RDONLY, O_RDONLY, true},
                 {O_RDONLY, O_RDWR, false},
                 {O_WRONLY, O_RDWR, false},
                 {O_RDWR, O_RDWR | O_DIRECT, false},
                 {O_RDWR | O_DIRECT, O_RDWR, false},
                 {O_RDWR | O_APPEND, O_RDWR, false},
                 {O_RDWR | O_APPEND, O_RDONLY, true}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int fd = open(path, cases[i].own | O_CLOEXEC);
        if (fd < 0 && cases[i].own & O_DIRECT)
            continue; /* no O_DIRECT on this filesystem */
        file.open_errno = EACCES;
        int other = fd_reopen_or_duplicate(fd, cases[i].wanted);
        file.open_errno = 0;
        CHECK(cases[i].works ? other >= 0 : other == -EACCES);
        if (other >= 0)
            close(other);
        close(fd);
    }
}

/* The warning that a disk is read-only comes once, and again after the disk was writable. */
static void one_warning_for_a_readonly_disk(void **state)
{
    static const struct {
        int own; /* of the descriptor, or -1: a user who wants no more than reading */
        unsigned warnings;
    } opens[] = {{O_RDONLY, 1}, {O_RDONLY, 1}, {-1, 1},      {O_RDONLY, 1},
                 {O_RDWR, 1},   {O_RDWR, 1},   {O_RDONLY, 2}};
    const struct room_config room = {.backend = "threads", .max_threads = 4, .helping = true};
    char why[LOG_LINE_SIZE];
    atomic_store(&warnings, 0);
    for (unsigned i = 0; i < sizeof opens / sizeof opens[0]; i++) {
        const struct image_options options = {
            .room = &room, .inherited = true, .readonly = opens[i].own < 0};
        struct image *image;
        int fd = open(path, (opens[i].own < 0 ? O_RDWR : opens[i].own) | O_CLOEXEC);
        CHECK(fd >= 0 && image_get(fd, path, &options, &image, why) == 0);
        CHECK(image->readonly == (opens[i].own != O_RDWR));
        image_put(image);
        close(fd);
        CHECK(atomic_load(&warnings) == opens[i].warnings);
    }
}

/* A write that the kernel answers with 0 bytes ends. */
static void a_write_of_nothing_is_no_space(void **state)
{
    char data[512] = {0};
    struct image *image = open_image(false);
    fake.writes_nothing = true;
    CHECK(image_write(image, data, sizeof data, 0, false) == -ENOSPC);
    atomic_store(&image->flush.no_dsync, true);
    CHECK(image_write(image, data, sizeof data, 0, true) == -ENOSPC);
    fake.writes_nothing = false;
    CHECK(image_write(image, data, sizeof data, 0, true) == 0); /* no sync has failed */
    image_put(image);
}

static unsigned prefetches(struct image *image)
{
    pthread_mutex_lock(&image->prefetch.lock);
    unsigned n = image->prefetch.in_flight;
    pthread_mutex_unlock(&image->prefetch.lock);
    return n;
}

/* Hints to read ahead are dropped while there is no thread for them, and the image closes. */
static void hints_without_threads_are_dropped(void **state)
{
    struct image *image = open_image(false);
    atomic_store(&no_threads, true);
    for (int i = 0; i < 100; i++) {
        image_prefetch(image, SIZE, 0);
        WAIT_UNTIL(prefetches(image) == 0);
    }
    struct pool_counters c = counters_of(image->room.pool);
    CHECK(c.threads == 0 && c.worker_runs == 0 && c.spawn_failures > 0);
    CHECK(c.submitted < 100); /* the rest was refused at once */
    atomic_store(&no_threads, false);
    use(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_ring_without_an_operation, setup, teardown),
        cmocka_unit_test_setup_teardown(a_ring_that_does_not_work, setup, teardown),
        cmocka_unit_test_setup_teardown(preferred_blocks_are_those_of_nbd, setup, teardown),
        cmocka_unit_test_setup_teardown(units_without_statx, setup, teardown),
        cmocka_unit_test_setup_teardown(a_file_without_direct_io, setup, teardown),
        cmocka_unit_test_setup_teardown(a_folio_that_is_not_split, setup, teardown),
        cmocka_unit_test_setup_teardown(data_that_vanish_are_no_hole, setup, teardown),
        cmocka_unit_test_setup_teardown(locks_that_are_not_supported, setup, teardown),
        cmocka_unit_test_setup_teardown(a_reader_may_be_locked_out, setup, teardown),
        cmocka_unit_test_setup_teardown(advice_that_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(which_descriptors_stand_for_others, setup, teardown),
        cmocka_unit_test_setup_teardown(one_warning_for_a_readonly_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(a_write_of_nothing_is_no_space, setup, teardown),
        cmocka_unit_test_setup_teardown(hints_without_threads_are_dropped, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
