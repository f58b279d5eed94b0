/* SPDX-License-Identifier: BSD-3-Clause */
/* A bounce buffer holds bytes of earlier requests.  No client reads them, and none reach the disk,
 * whatever the offset and the length of a request are, and however a read of whole blocks fails.
 *
 * The wrapped bounce_get fills each buffer with POISON, which the disk and the clients never use.
 * The wrapped ends of a read (the blocking call, and the completion of a ring) shorten the read or
 * let it fail, and put POISON back where such a read would not have stored anything.
 *
 * stale [all]: all classes of requests, or a part of them.
 */
#include "tests/lib/pool-test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "backends/ring.h"
#include "plugin/disk/image-table.h"
#include "plugin/disk/image.h"
#include "tests/lib/silent-log.h"

#define POISON 0xfdu /* in a bounce buffer nobody has filled */
#define CLIENT 0xfcu /* in a client's buffer nobody has filled */
#define VALUES 251u  /* all other bytes are smaller */

#define DIRECT_BYTES 20480u             /* what goes through O_DIRECT */
#define SIZE (DIRECT_BYTES + 700u)      /* and a tail */
#define LONG_BYTES (2 * BOUNCE_MAX + 5) /* a request of three pieces */

static char path[256];
/* One of so many requests is run: a prime, so each offset, length and fault has its turn. */
static unsigned every = 53;

/* --- The faults of reads --- */

enum fault_kind { NONE, ERROR, END, FIRST, ALL_BUT, EACH_FIRST };

/* What becomes of the read with this number (0: the first one of the request). */
struct fault {
    enum fault_kind kind;
    unsigned number;
    int64_t bytes; /* FIRST, EACH_FIRST: so many bytes are read; ALL_BUT: so many are missing */
};

static const struct fault faults[] = {
    {NONE},          {ERROR, 0},           {ERROR, 1},        {END, 0},
    {END, 1},        {FIRST, 0, 1},        {FIRST, 0, 511},   {FIRST, 0, 512},
    {FIRST, 0, 513}, {FIRST, 0, 4095},     {FIRST, 0, 4096},  {FIRST, 0, 4097},
    {FIRST, 1, 512}, {ALL_BUT, 0, 1},      {ALL_BUT, 0, 511}, {ALL_BUT, 0, 512},
    {ALL_BUT, 1, 1}, {EACH_FIRST, 0, 512},
};
#define FAULTS (sizeof faults / sizeof faults[0])

/* Set by the test's thread while no request is in flight, read by the thread that reads. */
static const struct fault *fault = &faults[0];
static char *bounce_start, *bounce_end;

static _Atomic unsigned reads, disturbed; /* of the request */
static unsigned buffers;                  /* how often bounce_get was called */

int __real_bounce_get(struct bounce_share *share, struct bounce *bounce, size_t size);
int __wrap_bounce_get(struct bounce_share *share, struct bounce *bounce, size_t size);
int __wrap_bounce_get(struct bounce_share *share, struct bounce *bounce, size_t size)
{
    int r = __real_bounce_get(share, bounce, size);
    if (r == 0) {
        bounce_start = bounce->memory;
        bounce_end = bounce_start + ((size_t)4096 << 2 * bounce->bucket);
        memset(bounce_start, POISON, (size_t)(bounce_end - bounce_start));
        buffers++;
    }
    return r;
}

/* Undoes what a read has stored behind its first `kept` bytes. */
static void forget(const struct iovec *iov, int count, int64_t kept)
{
    for (int i = 0; i < count; i++) {
        int64_t length = (int64_t)iov[i].iov_len, stay = kept < length ? kept : length;
        char *start = iov[i].iov_base;
        bool is_bounce = start >= bounce_start && start < bounce_end;
        memset(start + stay, is_bounce ? POISON : CLIENT, (size_t)(length - stay));
        kept -= stay;
    }
}

/* Returns what the read is to return in place of `result`. */
static int64_t disturb(const struct iovec *iov, int count, int64_t result)
{
    unsigned number = atomic_fetch_add(&reads, 1);
    int64_t kept = result;
    if (result <= 0 || fault->kind == NONE ||
        (number != fault->number && fault->kind != EACH_FIRST))
        return result;
    if (fault->kind == ERROR || fault->kind == END)
        kept = 0;
    else if (fault->kind == ALL_BUT)
        kept = fault->bytes < result ? result - fault->bytes : result;
    else
        kept = fault->bytes < result ? fault->bytes : result;
    if (kept == result)
        return result;
    atomic_fetch_add(&disturbed, 1);
    forget(iov, count, kept);
    return fault->kind == ERROR ? -EIO : kept;
}

ssize_t __real_preadv64(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_preadv64(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_preadv64(int fd, const struct iovec *iov, int count, off_t offset)
{
    int64_t n = disturb(iov, count, __real_preadv64(fd, iov, count, offset));
    if (n >= 0)
        return n;
    errno = n == -EIO ? EIO : errno;
    return -1;
}

void __real_ring_completed(struct ring *ring, struct request *request, int64_t result);
void __wrap_ring_completed(struct ring *ring, struct request *request, int64_t result);
void __wrap_ring_completed(struct ring *ring, struct request *request, int64_t result)
{
    if (request->op == REQUEST_READ)
        result = disturb(request->iov, request->iovcnt, result);
    __real_ring_completed(ring, request, result);
}

/* statx(2) says that direct I/O needs this unit. */
static unsigned unit;
int __real_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx)
{
    int r = __real_statx(fd, name, flags, mask, stx);
#ifdef STATX_DIOALIGN
    if (r == 0 && mask & STATX_DIOALIGN && stx->stx_dio_offset_align <= unit) {
        stx->stx_mask |= STATX_DIOALIGN;
        stx->stx_dio_offset_align = unit;
        stx->stx_dio_mem_align = unit;
    }
#endif
    return r;
}

/* --- The disk, and what it must contain --- */

static unsigned char model[LONG_BYTES + 4096], on_disk[sizeof model], buffer[sizeof model];

static int plain; /* the file through the page cache */

static void make_disk(uint64_t size)
{
    const char *directory = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/aiodisk-stale-%d", directory ? directory : "/var/tmp",
             (int)getpid());
    plain = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(plain >= 0);
    for (uint64_t i = 0; i < size; i++)
        model[i] = (unsigned char)(i * 7 % VALUES);
    CHECK(pwrite(plain, model, size, 0) == (ssize_t)size && fsync(plain) == 0);
}

static void remove_disk(void)
{
    close(plain);
    unlink(path);
}

/* Returns NULL where the backend or O_DIRECT does not work. */
static struct image *open_disk(const char *backend, unsigned wanted_unit)
{
    const struct room_config room = {
        .backend = backend, .max_threads = 4, .queue_depth = 4, .helping = true};
    const struct image_options options = {.room = &room, .direct = true, .locking = LOCKING_OFF};
    char why[LOG_LINE_SIZE];
    struct image *image;
    int fd = open(path, O_PATH | O_CLOEXEC);
    CHECK(fd >= 0);
    unit = wanted_unit;
    int r = image_get(fd, path, &options, &image, why);
    close(fd);
    if (r == 0 && image->direct && image->geometry.align == wanted_unit &&
        strcmp(image->room.backend->ops->name, backend) == 0)
        return image;
    if (r == 0)
        image_put(image);
    return NULL;
}

/* The disk contains the old or the new byte everywhere, and the new one if the write succeeded. */
static void check_disk(uint64_t size, uint64_t length, uint64_t offset, bool succeeded)
{
    CHECK(pread(plain, on_disk, sizeof on_disk, 0) == (ssize_t)size);
    CHECK(!memchr(on_disk, POISON, size));
    CHECK(memcmp(on_disk, model, offset) == 0);
    for (uint64_t i = offset; i < offset + length; i++)
        CHECK(on_disk[i] == buffer[i - offset] || (!succeeded && on_disk[i] == model[i]));
    uint64_t end = offset + length;
    CHECK(memcmp(on_disk + end, model + end, size - end) == 0);
    memcpy(model + offset, on_disk + offset, length);
}

/* --- Requests --- */

enum op { READ, WRITE, WRITE_FUA, ZERO, OPS };

static void run_one(struct image *image, enum op op, uint64_t length, uint64_t offset,
                    uint64_t size)
{
    static unsigned round;
    round++;
    atomic_store(&reads, 0);
    atomic_store(&disturbed, 0);
    int r;
    if (op == READ) {
        memset(buffer, CLIENT, length);
        r = image_read(image, buffer, length, offset);
        CHECK(!memchr(buffer, POISON, length));
        CHECK(r < 0 || memcmp(buffer, model + offset, length) == 0);
    } else {
        for (uint64_t i = 0; i < length; i++)
            buffer[i] = op == ZERO ? 0 : (unsigned char)((i + round) * 13 % VALUES);
        r = op == ZERO ? image_zero(image, length, offset, 0)
                       : image_write(image, buffer, length, offset, op == WRITE_FUA);
        check_disk(size, length, offset, r == 0);
    }
    CHECK(fault->kind != NONE || r == 0);
    /* A read that failed before it read anything is never taken for one that worked. */
    if ((fault->kind == ERROR || fault->kind == END) && atomic_load(&disturbed) > 0)
        CHECK(r < 0);
    /* A read that is always continued works. */
    CHECK(fault->kind != EACH_FIRST || unit != 512 || r == 0);
}

static const unsigned starts[] = {0, 1, 511, 512, 513, 3584, 4095, 8191, DIRECT_BYTES - 1};
static const unsigned lengths[] = {1, 511, 512, 513, 1024, 3585, 4095, 4096, 4097, 8192, 12289};
#define STARTS (sizeof starts / sizeof starts[0])
#define LENGTHS (sizeof lengths / sizeof lengths[0])

/* Every class of offset and length, modulo 512 and modulo 4096, with every fault. */
static void every_class_of_requests(void **state)
{
    unsigned runs = 0, classes = 0, got = buffers;
    make_disk(SIZE);
    for (unsigned i = 0; backend_name(i); i++)
        for (unsigned wanted = 512; wanted <= 4096; wanted *= 8) {
            struct image *image = open_disk(backend_name(i), wanted);
            if (!image)
                continue;
            for (unsigned n = 0; n < STARTS * LENGTHS * FAULTS * OPS; n++) {
                uint64_t offset = starts[n / OPS / FAULTS % STARTS];
                uint64_t length = lengths[n / OPS / FAULTS / STARTS];
                if (classes++ % every != 0)
                    continue;
                runs++;
                fault = &faults[n / OPS % FAULTS];
                if (offset + length > SIZE)
                    length = SIZE - offset;
                run_one(image, n % OPS, length, offset, SIZE);
            }
            fault = &faults[0];
            image_put(image);
        }
    print_message("%u requests, %u bounce buffers\n", runs, buffers - got);
    CHECK(runs == 0 || buffers - got > runs / 4);
    remove_disk();
}

/* Requests of several pieces. */
static void long_requests(void **state)
{
    const uint64_t size = sizeof model - 100;
    make_disk(size);
    for (unsigned i = 0; backend_name(i); i++) {
        struct image *image = open_disk(backend_name(i), 512);
        if (!image)
            continue;
        for (unsigned n = 0; n < FAULTS * OPS; n++) {
            fault = &faults[n / OPS];
            if (fault->kind != EACH_FIRST && n % (every / 4 + 1) == 0)
                run_one(image, n % OPS, LONG_BYTES, 3, size);
        }
        fault = &faults[0];
        image_put(image);
    }
    remove_disk();
}

/* Reads and writes a file that now ends at `cut`. */
static void use_the_rest(struct image *image, uint64_t cut)
{
    for (unsigned n = 0; n < STARTS * LENGTHS; n++) {
        uint64_t offset = starts[n % STARTS], length = lengths[n / STARTS];
        bool exists = offset + length <= cut;
        if (offset + length > SIZE)
            continue;
        memset(buffer, CLIENT, length);
        int r = image_read(image, buffer, length, offset);
        CHECK(!memchr(buffer, POISON, length));
        CHECK((r == 0) == exists);
        CHECK(r < 0 || memcmp(buffer, model + offset, length) == 0);
        memset(buffer, 7, length);
        r = image_write(image, buffer, length, offset, false);
        CHECK(r < 0 || exists);
        check_disk(cut, exists ? length : 0, exists ? offset : 0, r == 0);
    }
}

/* The file becomes shorter while it is served: the kernel itself returns short reads, and 0. */
static void a_file_that_was_cut_short(void **state)
{
    unsigned round = 0;
    make_disk(SIZE);
    for (unsigned i = 0; backend_name(i); i++)
        for (unsigned wanted = 512; wanted <= 4096; wanted *= 8)
            for (unsigned cut = 8191; cut <= 12289; cut += cut % 512 == 1 ? 510 : 1) {
                struct image *image =
                    round++ % (every / 3 + 1) == 0 ? open_disk(backend_name(i), wanted) : NULL;
                if (!image)
                    continue;
                CHECK(ftruncate(plain, cut) == 0);
                use_the_rest(image, cut);
                CHECK(ftruncate(plain, SIZE) == 0);
                memset(model + cut, 0, SIZE - cut);
                image_put(image);
            }
    remove_disk();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_class_of_requests),
        cmocka_unit_test(long_requests),
        cmocka_unit_test(a_file_that_was_cut_short),
    };
    if (argc > 1)
        every = 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
