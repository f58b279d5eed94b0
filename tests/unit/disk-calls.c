/* SPDX-License-Identifier: BSD-3-Clause */
/* Which calls of the kernel a write, zero, trim or flush makes: how many, on which range, and how
 * many at once.  Each is a promise about speed, space or other requests, and no client sees it in
 * the bytes.
 */
#include "tests/unit/counted-writes.h"

#include "tests/lib/silent-log.h"

/* --- The functions that the program wraps --- */

static _Atomic int error; /* of fallocate(2), or 0 */

/* Another request is refused while one is. */
static struct image *_Atomic refused_too;

int __real_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length)
{
    count_range(FALLOCATE, (uint64_t)offset, (uint64_t)length);
    struct image *image = atomic_load(&refused_too);
    if (image) {
        atomic_store(&image->zero.punch.pause, 1);
        atomic_store(&image->zero.punch.skips, 1);
    }
    errno = atomic_load(&error);
    return errno ? -1 : __real_fallocate64(fd, mode, offset, length);
}

/* --- The tests --- */

/* The kernel lets one fallocate(2) at a time into a file, and two writes are enough to keep its
 * page cache busy: further requests wait in the plugin.
 */
static void few_calls_wait_in_the_kernel(void **state)
{
    static const struct {
        enum op op;
        enum call call;
        unsigned at_once;
    } cases[] = {{OP_ZERO, FALLOCATE, 1}, {OP_WRITE, WRITE, 2}};
    struct client clients[4];
    struct gate g;
    for (unsigned i = 0; i < 2; i++) {
        make_file("calls", MiB);
        struct image *image = open_image(false);
        forget_calls();
        close_gate(&g, cases[i].call);
        start_clients(clients, 4, image, cases[i].op);
        gate_wait_for(&g, cases[i].at_once);
        sleep_us(20000); /* time for a further call, if the plugin made it */
        CHECK(arrived(&g) == cases[i].at_once);
        gate_open(&g);
        join_clients(clients, 4);
        end_gate(&g);
        CHECK(made[cases[i].call] == 4);
        image_put(image);
        unlink(path);
    }
}

static bool all_descriptors_used(struct flush_set *set)
{
    pthread_mutex_lock(&set->lock);
    bool used = set->free == 0;
    pthread_mutex_unlock(&set->lock);
    return used;
}

static bool a_flush_waits(struct flush_set *set)
{
    pthread_mutex_lock(&set->lock);
    bool waits = set->first != NULL;
    pthread_mutex_unlock(&set->lock);
    return waits;
}

/* Flushes that find no free descriptor share a sync that begins after them, and every descriptor
 * comes back.
 */
static void flushes_share_syncs(void **state)
{
    struct client first[FLUSH_DESCRIPTORS], more[8];
    struct gate g;
    make_file("calls", MiB);
    struct image *image = open_image(false);
    struct flush_set *set = &image->flush;
    for (int round = 0; round < 3; round++) {
        forget_calls();
        close_gate(&g, SYNC);
        start_clients(first, set->count, image, OP_FLUSH);
        WAIT_UNTIL(all_descriptors_used(set));
        start_clients(more, 8, image, OP_FLUSH);
        WAIT_UNTIL(a_flush_waits(set));
        gate_open(&g);
        join_clients(first, set->count);
        join_clients(more, 8);
        end_gate(&g);
        CHECK(made[SYNC] > set->count && made[SYNC] <= set->count + 8);
        CHECK(set->free == (1u << set->count) - 1 && !set->first && set->last == &set->first);
    }
    image_put(image);
    unlink(path);
}

/* A flush, and FUA, make one sync.  The end of an image makes one if something was written since
 * the last flush.
 */
static void syncs_are_made_when_they_must(void **state)
{
    static const struct {
        bool zeros;
        unsigned flags, now;
    } cases[] = {{true, ZERO_MAY_TRIM, 0},
                 {true, ZERO_FUA | ZERO_MAY_TRIM, 1},
                 {false, 0, 0},
                 {false, ZERO_FUA, 1}};
    static char data[4096];
    for (unsigned i = 0; i < 4; i++) {
        make_file("calls", MiB);
        struct image *image = open_image(false);
        forget_calls();
        CHECK((cases[i].zeros ? image_zero : image_trim)(image, 8192, 4096, cases[i].flags) == 0);
        CHECK(made[FALLOCATE] == 1 && made[SYNC] == cases[i].now);
        image_put(image);
        CHECK(made[SYNC] == 1);
        image = open_image(false);
        forget_calls();
        CHECK(image_read(image, data, sizeof data, 0) == 0);
        image_put(image);
        CHECK(made[SYNC] == 0);
        image = open_image(false);
        CHECK(image_write(image, data, sizeof data, 0, false) == 0 && made[SYNC] == 0);
        if (i % 2)
            CHECK(image_flush(image) == 0 && made[SYNC] == 1);
        image_put(image);
        CHECK(made[SYNC] == 1);
        unlink(path);
    }
}

/* Long zeros and trims go to the kernel in pieces, which cover the range and no byte beyond.  The
 * end of a file that became shorter is the end of a trim.
 */
static void long_ranges_go_in_pieces(void **state)
{
    const uint64_t size = 600 * (uint64_t)MiB;
    make_file("calls", size);
    for (int direct = 0; direct < 2; direct++) {
        struct image *image = open_image(direct);
        for (int trims = 0; trims < 2; trims++) {
            uint64_t at = 4 * MiB, end = at + 300 * (uint64_t)MiB;
            forget_calls();
            CHECK(trims ? image_trim(image, end - at, at, 0) == 0
                        : image_zero(image, end - at, at, ZERO_MAY_TRIM) == 0);
            CHECK(made[FALLOCATE] == 3);
            for (unsigned i = 0; i < 3; i++) {
                CHECK(ranges[i][0] == at && ranges[i][1] <= 128 * MiB);
                at += ranges[i][1];
            }
            CHECK(at == end);
        }
        CHECK(truncate(path, 8 * MiB) == 0);
        forget_calls();
        CHECK(image_trim(image, size - 4 * MiB, 4 * MiB, 0) == 0 && made[FALLOCATE] == 1);
        CHECK(ranges[0][0] == 4 * MiB && ranges[0][1] == 4 * MiB);
        CHECK(truncate(path, (off_t)size) == 0);
        image_put(image);
    }
    unlink(path);
}

/* With O_DIRECT a fast zero whose ends are no whole blocks writes nothing. */
static void a_fast_zero_writes_no_ends(void **state)
{
    static const uint64_t cases[][2] = {{0, 8192 + 100}, {100, 65536 - 100}, {100, 100}};
    make_file("calls", MiB);
    struct image *image = open_image(true);
    forget_calls();
    for (unsigned i = 0; image->direct && i < 3; i++)
        CHECK(image_zero(image, cases[i][1], cases[i][0], ZERO_FAST | ZERO_MAY_TRIM) ==
              -EOPNOTSUPP);
    CHECK(made[FALLOCATE] == 0 && made[WRITE] == 0);
    image_put(image);
    unlink(path);
}

/* Trims that the storage refuses with EINVAL: 1, 3, 7 and so on up to 1023 requests make no call
 * after each refusal.  What is not supported is never called again; where it has worked, each
 * request makes its call.
 */
static void refusals_cost_few_calls(void **state)
{
    make_file("calls", MiB);
    struct image *image = open_image(false);
    forget_calls();
    atomic_store(&error, EINVAL);
    for (int i = 0; i < 5000; i++)
        CHECK(image_trim(image, 4096, 0, 0) == 0);
    CHECK(made[FALLOCATE] == 13);
    /* Of two requests that are refused at once, one counts. */
    atomic_store(&image->zero.punch.skips, 0);
    atomic_store(&refused_too, image);
    CHECK(image_trim(image, 4096, 0, 0) == 0);
    atomic_store(&refused_too, NULL);
    CHECK(atomic_load(&image->zero.punch.skips) == 1 && atomic_load(&image->zero.punch.pause) == 1);
    forget_calls();
    atomic_store(&error, 0);
    for (int i = 0; i < 3; i++)
        CHECK(image_trim(image, 4096, 0, 0) == 0);
    CHECK(made[FALLOCATE] == 2); /* one was passed by */
    atomic_store(&error, EBUSY);
    for (int i = 0; i < 100; i++)
        CHECK(image_trim(image, 4096, 0, 0) == 0);
    CHECK(made[FALLOCATE] == 102);
    image_put(image);
    image = open_image(false);
    forget_calls();
    atomic_store(&error, EOPNOTSUPP);
    for (int i = 0; i < 100; i++)
        CHECK(image_trim(image, 4096, 0, 0) == 0);
    CHECK(made[FALLOCATE] == 1);
    atomic_store(&error, 0);
    image_put(image);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(few_calls_wait_in_the_kernel),  cmocka_unit_test(flushes_share_syncs),
        cmocka_unit_test(syncs_are_made_when_they_must), cmocka_unit_test(long_ranges_go_in_pieces),
        cmocka_unit_test(a_fast_zero_writes_no_ends),    cmocka_unit_test(refusals_cost_few_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
