/* SPDX-License-Identifier: BSD-3-Clause */
/* RBD images over a librbd that consists of memory (fake-rbd.h): what each request asks of the
 * library, what each error and each silence of it becomes, and that all is given back.
 *
 * The test's threads make the requests.
 */
#include "tests/unit/rbd-rig.h"

/* Disks of other names, and one that is read only, are other disks. */
static void a_name_is_a_disk(void **state)
{
    struct disk *disks[3];
    fake_reset(MiB);
    for (unsigned i = 0; i < 6; i++) {
        image_name.image = i % 3 == 2 ? "other" : "image";
        struct disk *d = get_with(CEPH_LOCK_NONE, i % 3 == 1);
        CHECK(i < 3 || d == disks[i % 3]);
        disks[i % 3] = d;
    }
    CHECK(disks[0] != disks[1] && disks[1] != disks[2] && disks[0] != disks[2]);
    CHECK(disks[1]->readonly && strcmp(disks[2]->name, "rbd/other") == 0);
    image_name.image = "image";
    for (unsigned i = 0; i < 2; i++)
        disks[1]->ops->put(disks[1]);
    struct disk *d = get_with(CEPH_LOCK_NONE, false);
    CHECK(d == disks[0]);
    for (unsigned i = 0; i < 5; i++)
        disks[i < 3 ? 0 : 2]->ops->put(disks[i < 3 ? 0 : 2]);
    CHECK(fake.owed == 0);
}

/* --- Data --- */

static void what_is_written_is_read(void **state)
{
    static const char zeros[1000];
    char data[1000], got[1000];
    fake_reset(8 * MiB);
    struct disk *d = get();
    CHECK(d->ops->size(d) == 8 * MiB && !d->readonly && d->direct);
    CHECK(d->preferred_block == 4 * MiB);
    memset(data, 'x', sizeof data);
    CHECK(d->ops->write(d, data, sizeof data, 77, false) == 0);
    CHECK(fake.request_count == 1);
    CHECK(d->ops->read(d, got, sizeof got, 77) == 0 && memcmp(got, data, sizeof got) == 0);
    CHECK(d->ops->zero(d, 10, 80, ZERO_MAY_TRIM) == 0);
    CHECK(d->ops->read(d, got, 20, 77) == 0 &&
          memcmp(got, "xxx\0\0\0\0\0\0\0\0\0\0xxxxxxx", 20) == 0);
    CHECK(d->ops->trim(d, 1000, 77, 0) == 0);
    CHECK(d->ops->read(d, got, sizeof got, 77) == 0 && memcmp(got, zeros, sizeof got) == 0);
    d->ops->prefetch(d, 1000, 0);
    put(d);
}

static void preferred_blocks_have_bounds(void **state)
{
    static const struct {
        uint64_t object;
        uint32_t block;
    } cases[] = {{256, 512}, {512, 512}, {1024, 1024}, {32 * MiB, 32 * MiB}, {64 * MiB, 32 * MiB}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_reset(MiB);
        fake.object_size = cases[i].object;
        struct disk *d = get();
        CHECK(d->preferred_block == cases[i].block);
        put(d);
    }
}

/* The backend refuses what librbd has not, and says how long librbd took. */
static void the_backend_keeps_its_contract(void **state)
{
    const unsigned histogram = BACKEND_TALLY_TIME + CLIENT_READ * TALLY_HISTOGRAM;
    struct progress progress = {.op = CLIENT_READ};
    char data[512];
    struct iovec iov = {data, sizeof data};
    struct request request = {.op = REQUEST_WRITE, .flags = REQUEST_FUA, .iov = &iov, .iovcnt = 1};
    fake_reset(MiB);
    tally = tally_new(BACKEND_TALLY_END);
    struct disk *d = get();
    CHECK(backend_run(rbd_of(d)->backend, &request) == -EOPNOTSUPP);
    request.op = REQUEST_FALLOCATE;
    CHECK(backend_run(rbd_of(d)->backend, &request) == -EOPNOTSUPP && fake.request_count == 0);
    progress_here = &progress;
    uint64_t began = tally_now();
    CHECK(d->ops->read(d, data, sizeof data, 0) == 0);
    CHECK(tally_read(tally, histogram + TALLY_BUCKETS) - 1 < tally_now() - began);
    progress_here = NULL;
    put(d);
    tally_free(tally);
    tally = NULL;
}

static _Atomic unsigned ended;

static void count_end(struct request *request)
{
    CHECK(request->result == (request->op == REQUEST_READ ? 0 : -EIO));
    atomic_fetch_add(&ended, 1);
}

/* Nothing in the plugin submits to Ceph without waiting, but the contract of a backend has it. */
static void requests_may_end_on_the_loop_thread(void **state)
{
    char data[2][512];
    struct iovec iov[2] = {{data[0], 512}, {data[1], 512}};
    struct request requests[3];
    fake_reset(MiB);
    struct disk *d = get();
    CHECK(d->ops->write(d, "abc", 4, 512, false) == 0);
    fake.broken = "flush";
    fake.error = -EIO;
    for (unsigned i = 0; i < 3; i++) {
        requests[i] = (struct request){.op = i < 2 ? REQUEST_READ : REQUEST_FDATASYNC,
                                       .offset = i * 512,
                                       .length = i < 2 ? 512 : 0,
                                       .iov = &iov[i % 2],
                                       .iovcnt = 1,
                                       .done = count_end};
        CHECK(backend_submit(rbd_of(d)->backend, &requests[i]) == 0);
    }
    WAIT_UNTIL(atomic_load(&ended) == 3);
    CHECK(strcmp(data[1], "abc") == 0 && data[0][0] == 0);
    fake.broken = NULL;
    put(d);
}

/* A zero may leave a hole only if it says so, is cut into steps of 1 GiB, and is not fast if zeros
 * must be written.
 */
static void zero_and_trim_come_in_steps(void **state)
{
    fake_reset(4 * GiB);
    struct disk *d = get();
    CHECK(d->ops->zero(d, 4096, 512, 0) == 0);
    CHECK(asked(0, "zero", 512, 4096, RBD_WRITE_ZEROES_FLAG_THICK_PROVISION));
    CHECK(d->ops->zero(d, 4096, 512, ZERO_FAST) == -EOPNOTSUPP && fake.request_count == 1);
    CHECK(d->ops->zero(d, 2 * GiB + 5, 512, ZERO_MAY_TRIM | ZERO_FAST) == 0);
    CHECK(asked(2, "zero", 512, GiB, 0) && asked(1, "zero", 512 + GiB, GiB, 0));
    CHECK(asked(0, "zero", 512 + 2 * GiB, 5, 0) && fake.request_count == 4);
    CHECK(d->ops->trim(d, 2 * GiB, 512, 0) == 0);
    CHECK(asked(1, "discard", 512, GiB, 0) && asked(0, "discard", 512 + GiB, GiB, 0));
    CHECK(d->ops->trim(d, GiB + 1, 512, ZERO_FUA) == 0);
    CHECK(asked(2, "discard", 512, GiB, 0) && asked(1, "discard", 512 + GiB, 1, 0));
    CHECK(asked(0, "flush", 0, 0, 0));
    CHECK(d->ops->zero(d, 512, 0, ZERO_FUA) == 0);
    CHECK(asked(1, "zero", 0, 512, RBD_WRITE_ZEROES_FLAG_THICK_PROVISION));
    CHECK(asked(0, "flush", 0, 0, 0));
    unsigned before = fake.request_count;
    fake.broken = "zero";
    fake.error = -EIO;
    CHECK(d->ops->zero(d, 2 * GiB, 0, 0) == -EIO && fake.request_count == before + 1);
    fake.error = -EOPNOTSUPP;
    CHECK(d->ops->zero(d, 512, 0, 0) == -EIO);
    fake.broken = "discard";
    fake.error = -EIO;
    CHECK(d->ops->trim(d, 2 * GiB, 0, ZERO_FUA) == -EIO && fake.request_count == before + 3);
    fake.broken = NULL;
    put(d);
}

/* --- Durable --- */

static void what_is_dirty_is_flushed(void **state)
{
    fake_reset(MiB);
    struct disk *d = get();
    put(d);
    CHECK(fake.request_count == 0);
    for (unsigned i = 0; i < 3; i++) {
        d = get();
        CHECK((i == 0   ? d->ops->write(d, "x", 1, 0, false)
               : i == 1 ? d->ops->zero(d, 1, 0, 0)
                        : d->ops->trim(d, 1, 0, 0)) == 0);
        put(d);
        CHECK(fake.request_count == 2 * (i + 1) && asked(0, "flush", 0, 0, 0));
    }
    d = get();
    CHECK(d->ops->write(d, "x", 1, 0, true) == 0);
    CHECK(asked(1, "write", 0, 1, 0) && asked(0, "flush", 0, 0, 0));
    CHECK(d->ops->flush(d) == 0 && asked(1, "flush", 0, 0, 0) && fake.request_count == 9);
    put(d);
    CHECK(fake.request_count == 9);
    d = get_with(CEPH_LOCK_AUTO, true);
    CHECK(d->readonly && d->ops->flush(d) == 0 && fake.request_count == 9);
    put(d);
}

static struct disk *flushed;

static void *flush(void *progress)
{
    progress_here = progress;
    CHECK(flushed->ops->flush(flushed) == 0);
    return NULL;
}

/* Two that come while a flush runs share the next one. */
static void flushes_wait_for_the_next_one(void **state)
{
    static struct progress progress[3];
    pthread_t threads[3];
    fake_reset(MiB);
    flushed = get();
    fake_hold("flush");
    for (unsigned i = 0; i < 3; i++) {
        CHECK(pthread_create(&threads[i], NULL, flush, &progress[i]) == 0);
        WAIT_UNTIL(progress[i].place == (i == 0 ? PLACE_STORAGE : PLACE_FLUSH_JOIN));
    }
    WAIT_UNTIL(fake_held() == 1);
    CHECK(fake.request_count == 1);
    fake_go_on();
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK(fake.request_count == 2);
    put(flushed);
}

static void a_failed_flush_fails_the_disk(void **state)
{
    fake_reset(MiB);
    struct disk *d = get();
    CHECK(d->ops->health(d) == 0);
    CHECK(d->ops->write(d, "x", 1, 0, false) == 0);
    fake.broken = "flush";
    fake.error = -EIO;
    CHECK(d->ops->flush(d) == -EIO && d->ops->health(d) == -EIO);
    fake.broken = NULL;
    unsigned before = fake.request_count;
    CHECK(d->ops->flush(d) == -EIO);
    CHECK(d->ops->write(d, "x", 1, 0, true) == -EIO);
    CHECK(d->ops->zero(d, 1, 0, ZERO_FUA) == -EIO);
    CHECK(d->ops->trim(d, 1, 0, ZERO_FUA) == -EIO);
    CHECK(fake.request_count == before);
    CHECK(d->ops->write(d, "x", 1, 0, false) == 0);
    put(d); /* without a flush */
    CHECK(asked(0, "write", 0, 1, 0));
    d = get();
    CHECK(d->ops->health(d) == -EIO);
    put(d);
    fake.id = "another";
    d = get();
    CHECK(d->ops->health(d) == 0);
    put(d);
}

/* ESHUTDOWN: another client has broken the lock, and what librbd has acknowledged is lost. */
static void a_client_that_was_shut_out_has_failed(void **state)
{
    for (unsigned i = 0; i < 3; i++) {
        char data[1];
        fake_reset(MiB);
        struct disk *d = get();
        fake.broken = i == 0 ? "read" : i == 1 ? "write" : "rbd_diff_iterate2";
        fake.error = -ESHUTDOWN;
        CHECK((i == 0   ? d->ops->read(d, data, 1, 0)
               : i == 1 ? d->ops->write(d, "x", 1, 0, false)
                        : d->ops->extents(d, 1, 0, false, add_extent, NULL)) == -ESHUTDOWN);
        CHECK(d->ops->health(d) == -ESHUTDOWN);
        fake.broken = NULL;
        put(d);
    }
}

/* --- Sizes --- */

static void the_end_of_a_smaller_image_is_an_error(void **state)
{
    char data[1024];
    memset(data, 'x', sizeof data);
    fake_reset(MiB);
    struct disk *d = get();
    fake.size = 4096;
    CHECK(d->ops->size(d) == MiB);
    CHECK(d->ops->read(d, data, 1024, 3072) == 0);
    CHECK(d->ops->read(d, data, 1024, 3073) == -EIO);
    CHECK(d->ops->read(d, data, 1024, 8192) == -EIO);
    CHECK(d->ops->write(d, data, 1024, 3072, false) == 0);
    CHECK(d->ops->write(d, data, 1024, 3073, false) == -ENOSPC);
    CHECK(d->ops->write(d, data, 1024, 8192, false) == -ENOSPC);
    CHECK(d->ops->zero(d, 1024, 3072, 0) == 0);
    CHECK(d->ops->zero(d, 1024, 3073, 0) == -ENOSPC);
    CHECK(d->ops->zero(d, 1024, 8192, ZERO_FUA) == -ENOSPC);
    CHECK(d->ops->trim(d, 1024, 8192, 0) == 0);
    CHECK(d->ops->health(d) == 0);
    fake.broken = "write";
    fake.error = -EIO;
    CHECK(d->ops->write(d, data, 1024, 3073, false) == -EIO);
    fake.error = -EINVAL;
    CHECK(d->ops->write(d, data, 1024, 3072, false) == -EINVAL);
    fake.broken = "rbd_get_size";
    fake.error = -EIO;
    CHECK(d->ops->write(d, data, 1024, 0, false) == -EIO);
    fake.broken = NULL;
    struct disk *later = get();
    CHECK(later == d && d->ops->size(d) == 4096);
    put(later);
    put(d);
}

/* --- Extents --- */

static const struct fake_range pieces[] = {{MiB, MiB}, {2 * MiB, 4096}, {6 * MiB, MiB}};

static int refuse_first(void *opaque, const struct extent *extent)
{
    unsigned *n = opaque;
    return (*n)++ == 0 ? -ENOMEM : 0;
}

static void extents_are_cut_to_what_was_asked(void **state)
{
    fake_reset(64 * MiB);
    fake.data = pieces;
    fake.data_count = 3;
    struct disk *d = get();
    extents_of(d, 8 * MiB, 0, false);
    CHECK(extent_count == 5);
    CHECK(found(0, 0, MiB, true) && found(1, MiB, MiB + 4096, false));
    CHECK(found(2, 2 * MiB + 4096, 4 * MiB - 4096, true));
    CHECK(found(3, 6 * MiB, MiB, false) && found(4, 7 * MiB, MiB, true));
    CHECK(fake.walk_offset == 0 && fake.walk_length == 8 * MiB && fake.walk_whole);
    CHECK(fake.walk_parent);
    /* From within data to within data, and within one piece; from the start of an object. */
    extents_of(d, 5 * MiB, MiB + 4096, false);
    CHECK(extent_count == 3 && found(0, MiB + 4096, MiB, false));
    CHECK(found(2, 6 * MiB, 4096, false) && fake.walk_offset == 0);
    extents_of(d, 100, 6 * MiB + 100, false);
    CHECK(extent_count == 1 && found(0, 6 * MiB + 100, 100, false));
    CHECK(fake.walk_offset == 4 * MiB && fake.walk_length == 2 * MiB + 200);
    extents_of(d, 8 * MiB, 0, true);
    CHECK(extent_count == 1 && found(0, 0, MiB, true));
    extents_of(d, 7 * MiB, MiB, true);
    CHECK(extent_count == 1 && found(0, MiB, MiB + 4096, false));
    extents_of(d, MiB, 8 * MiB, false);
    CHECK(extent_count == 1 && found(0, 8 * MiB, MiB, true));
    /* Data of the same object that end where the question begins are no part of the answer. */
    extents_of(d, MiB, 2 * MiB + 4096, true);
    CHECK(extent_count == 1 && found(0, 2 * MiB + 4096, MiB, true));
    unsigned refused = 0;
    CHECK(d->ops->extents(d, 8 * MiB, 0, false, refuse_first, &refused) == -ENOMEM);
    put(d);
}

static struct fake_range many[600];

/* One call reports 512 parts, and leaves the rest to the next. */
static void many_extents_come_in_parts(void **state)
{
    for (unsigned i = 0; i < 600; i++)
        many[i] = (struct fake_range){i * 8192, 4096};
    fake_reset(64 * MiB);
    fake.data = many;
    for (unsigned count = 511; count <= 514; count++) {
        fake.data_count = count;
        struct disk *d = get();
        extents_of(d, 600 * 8192, 0, false);
        CHECK(extent_count == (count <= 512 ? 2 * count : 1024));
        CHECK(found(1022, 511 * 8192, count > 511 ? 4096 : 0, false) || count == 511);
        CHECK(found(1023, 511 * 8192 + 4096, count > 512 ? 4096 : 600 * 8192 - 511 * 8192 - 4096,
                    true) ||
              count == 511);
        put(d);
    }
}

/* Without an object map that can be trusted each object is asked, 64 objects at a time. */
static void without_an_object_map_extents_are_exact(void **state)
{
    for (unsigned i = 0; i < 9; i++) {
        fake_reset(2 * GiB);
        struct disk *d;
        if (i == 1)
            fake.features &= ~(uint64_t)RBD_FEATURE_FAST_DIFF;
        else if (i == 2)
            fake.flags = RBD_FLAG_FAST_DIFF_INVALID;
        else if (i == 3)
            fake.flags = RBD_FLAG_OBJECT_MAP_INVALID;
        else if (i == 4)
            fake.overlap = MiB;
        else if (i == 5)
            fake.stripes = 2;
        d = get();
        fake.broken = i == 6   ? "rbd_get_flags"
                      : i == 7 ? "rbd_get_overlap"
                      : i == 8 ? "rbd_get_stripe_count"
                               : NULL;
        fake.error = -EIO;
        extents_of(d, GiB, 5 * MiB, false);
        CHECK(fake.walk_whole == (i == 0) && fake.walk_offset == 4 * MiB);
        CHECK(fake.walk_length == (i == 0 ? GiB + MiB : 256 * MiB));
        CHECK(extent_count == 1 && found(0, 5 * MiB, i == 0 ? GiB : 255 * MiB, true));
        extents_of(d, 255 * MiB, 5 * MiB, false);
        CHECK(extent_count == 1 && found(0, 5 * MiB, 255 * MiB, true));
        put(d);
    }
}

static void extents_that_are_unknown_may_be_data(void **state)
{
    static const int errors[] = {-EINVAL, -EOPNOTSUPP, -EIO, -ETIMEDOUT};
    for (unsigned i = 0; i < 4; i++) {
        fake_reset(MiB);
        struct disk *d = get();
        fake.broken = "rbd_diff_iterate2";
        fake.error = errors[i];
        extent_count = 0;
        int r = d->ops->extents(d, 4096, 512, false, add_extent, NULL);
        CHECK(r == (i < 2 ? 0 : errors[i]));
        CHECK(i < 2 ? extent_count == 1 && found(0, 512, 4096, false) : extent_count == 0);
        fake.broken = NULL;
        CHECK(d->ops->extents(d, 4096, 512, false, refuse_extent, NULL) == -ENOMEM);
        CHECK(d->ops->extents(d, 4096, 512, true, refuse_extent, NULL) == -ENOMEM);
        put(d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_name_is_a_disk),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(preferred_blocks_have_bounds),
        cmocka_unit_test(the_backend_keeps_its_contract),
        cmocka_unit_test(requests_may_end_on_the_loop_thread),
        cmocka_unit_test(zero_and_trim_come_in_steps),
        cmocka_unit_test(what_is_dirty_is_flushed),
        cmocka_unit_test(flushes_wait_for_the_next_one),
        cmocka_unit_test(a_failed_flush_fails_the_disk),
        cmocka_unit_test(a_client_that_was_shut_out_has_failed),
        cmocka_unit_test(the_end_of_a_smaller_image_is_an_error),
        cmocka_unit_test(extents_are_cut_to_what_was_asked),
        cmocka_unit_test(many_extents_come_in_parts),
        cmocka_unit_test(without_an_object_map_extents_are_exact),
        cmocka_unit_test(extents_that_are_unknown_may_be_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
