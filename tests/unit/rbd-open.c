/* SPDX-License-Identifier: BSD-3-Clause */
/* RBD images over a librbd that consists of memory (fake-rbd.h): how one is opened, shared and
 * closed, who else may write, how long the cluster may be silent, what is said of each error, and
 * that each call may fail.
 *
 * The test's threads open and close.
 */
#include "tests/unit/rbd-rig.h"

#include "backends/ceph-api.h"

#define THREADS 4u

/* --- The libraries --- */

static void *load(void *barrier)
{
    char line[256];
    pthread_barrier_wait(barrier);
    CHECK(ceph_api_load(line, sizeof line) == 0);
    return NULL;
}

/* Runs before the other tests. */
static void a_library_may_be_missing_or_old(void **state)
{
    struct disk *d;
    pthread_t threads[THREADS];
    pthread_barrier_t barrier;
    fake_reset(MiB);
    no_library = true;
    CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -ENOSYS && strstr(why, "cannot be loaded: "));
    no_library = false;
    missing_symbol = "rbd_aio_writev";
    CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -ENOSYS);
    CHECK(strstr(why, "is too old: it has no rbd_aio_writev"));
    missing_symbol = NULL;
    CHECK(fake.calls == 0);
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, load, &barrier) == 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&barrier);
}

/* --- Options --- */

static void requests_have_a_limit_until_the_image_is_open(void **state)
{
    static const struct {
        const char *asked, *limit;
    } cases[] = {{NULL, "30"}, {"0", "30"}, {"5", "5"}, {"0.5", "0.5"}, {"30", "30"}, {"60", "30"}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_reset(MiB);
        fake.request_timeout = cases[i].asked;
        CHECK(rbd_disk_check(&image_name, why) == 0 && fake.owed == 0 && !fake.has_lock);
        CHECK(strcmp(fake_option("rados_osd_op_timeout"), cases[i].limit) == 0);
        CHECK(strcmp(fake_option("client_mount_timeout"), "30") == 0);
        CHECK(strcmp(fake_option("rados_mon_op_timeout"), "30") == 0);
        CHECK(strcmp(fake_option("log_to_stderr"), "false") == 0);
        CHECK(strcmp(fake_option("err_to_stderr"), "false") == 0);
        CHECK(strcmp(fake_option("rbd_cache"), "") == 0);
        put(get());
        CHECK(strcmp(fake_option("rados_osd_op_timeout"), cases[i].asked ? cases[i].asked : "0") ==
              0);
    }
}

static void cache_none_is_without_a_cache(void **state)
{
    const struct room_config room = {.max_threads = 1};
    const struct rbd_options options = {
        .room = &room, .uncached = true, .tally = {.find = find_tally}};
    struct disk *d;
    fake_reset(MiB);
    CHECK(rbd_disk_get(&image_name, &options, &d, why) == 0);
    CHECK(strcmp(fake_option("rbd_cache"), "false") == 0);
    put(d);
}

static void an_image_is_known_by_its_id(void **state)
{
    char id[64];
    for (unsigned i = 0; i < 2; i++) {
        fake_reset(MiB);
        fake.broken = i ? "rbd_get_id" : NULL;
        fake.error = -EINVAL;
        struct disk *d = get();
        const struct ceph_image_facts *facts = ceph_image_facts(rbd_of(d)->image);
        snprintf(id, sizeof id, "7/%s%s", i ? "prefix." : "", fake.id);
        CHECK(strcmp(facts->id, id) == 0 && strcmp(facts->cluster, "fsid") == 0);
        put(d);
    }
}

/* --- What an error is called --- */

static void an_error_has_a_line(void **state)
{
    static const struct {
        const char *broken;
        int error;
        const char *space, *snapshot;
        const char *line;
    } cases[] = {
        {"rados_create", -ENOMEM, "", NULL, "rbd rbd/image: librados does not start: "},
        {"rados_conf_read_file", -ENOENT, "", NULL, "the usual ceph.conf cannot be read: "},
        {"rados_conf_set", -EINVAL, "", NULL, "an option of Ceph cannot be set: "},
        {"rados_conf_get", -ENOENT, "", NULL, "an option of Ceph cannot be set: "},
        {"rados_connect", -ETIMEDOUT, "", NULL, "no monitor answered in 30 s"},
        {"rados_connect", -ENOENT, "", NULL, "no key for client.admin"},
        {"rados_connect", -ENOTSUP, "", NULL, "no key for client.admin"},
        {"rados_connect", -EACCES, "", NULL, "the monitors refuse client.admin"},
        {"rados_connect", -EPERM, "", NULL, "the monitors refuse client.admin"},
        {"rados_connect", -EIO, "", NULL, "cannot be used: "},
        {"rados_ioctx_create", -ENOENT, "", NULL, "rbd rbd/image: no pool rbd: "},
        {"rados_ioctx_create", -EPERM, "", NULL, "rbd rbd/image: pool rbd: "},
        {"rbd_open", -ENOENT, "", NULL, "rbd rbd/image: no image of this name: "},
        {"rbd_open", -ENOENT, "s", NULL, "rbd rbd/s/image: no namespace of this name: "},
        {"rbd_open", -EIO, "s", NULL, "the image cannot be opened: "},
        {"rbd_open_read_only", -ENOENT, "", "first", "no image or no snapshot of this name: "},
        {"rbd_open_read_only", -EPERM, "", "first", "cannot be opened by client.admin: "},
        {"rbd_open_read_only", -EACCES, "", "first", "cannot be opened by client.admin: "},
        {"rbd_stat", -ETIMEDOUT, "", NULL, "an OSD did not answer in 30 s"},
        {"rbd_get_features", -EIO, "", NULL, "the image cannot be opened: "},
        {"rbd_get_size", -EIO, "", NULL, "its size cannot be read"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct disk *d;
        fake_reset(MiB);
        fake.broken = cases[i].broken;
        fake.error = cases[i].error;
        image_name.space = cases[i].space;
        image_name.snapshot = cases[i].snapshot;
        CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == cases[i].error);
        CHECK(strstr(why, cases[i].line) && fake.owed == 0);
        if (!strstr("rbd_open rbd_get_size", cases[i].broken)) /* a check goes without these */
            CHECK(rbd_disk_check(&image_name, why) == cases[i].error && strstr(why, cases[i].line));
        image_name.conf = "/my.conf"; /* a line about the connection names it */
        if (strcmp(cases[i].broken, "rados_connect") == 0)
            CHECK(rbd_disk_check(&image_name, why) < 0 && strstr(why, "/my.conf"));
        image_name.conf = NULL;
        fake.has_namespace = true;
        if (strcmp(cases[i].space, "s") == 0 && cases[i].error == -ENOENT)
            CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -ENOENT && strstr(why, "no image of this"));
    }
    image_name.space = "";
    image_name.snapshot = NULL;
}

static unsigned listed;
static int add_name(void *opaque, const char *name)
{
    char expected[8];
    snprintf(expected, sizeof expected, "i%u", listed);
    CHECK(strcmp(name, expected) == 0);
    return opaque && listed == 2 ? -ENOBUFS : (listed++, 0);
}

static void every_image_is_listed(void **state)
{
    static const char *const names[] = {"i0",  "i1",  "i2",  "i3",  "i4",  "i5",  "i6",
                                        "i7",  "i8",  "i9",  "i10", "i11", "i12", "i13",
                                        "i14", "i15", "i16", "i17", "i18", NULL};
    for (unsigned from = 0; from < 2; from++) {
        fake_reset(MiB);
        fake.images = from ? names + 19 : names;
        listed = 0;
        CHECK(ceph_image_list(&image_name, add_name, NULL, why, sizeof why) == 0);
        CHECK(listed == (from ? 0 : 19) && fake.owed == 0);
    }
    fake.images = names;
    listed = 0;
    CHECK(ceph_image_list(&image_name, add_name, &listed, why, sizeof why) == -ENOBUFS);
    CHECK(listed == 2 && fake.owed == 0);
    fake.broken = "rbd_list2";
    fake.error = -EIO;
    CHECK(ceph_image_list(&image_name, add_name, NULL, why, sizeof why) == -EIO);
    CHECK(strstr(why, "the images of pool rbd cannot be listed: ") && fake.owed == 0);
    fake.broken = "rados_connect";
    CHECK(ceph_image_list(&image_name, add_name, NULL, why, sizeof why) == -EIO);
    struct ceph_name pool = image_name;
    pool.image = NULL;
    CHECK(rbd_disk_check(&pool, why) == -EIO && strstr(why, "rbd rbd: "));
    fake.broken = NULL;
    CHECK(rbd_disk_check(&pool, why) == 0 && fake.owed == 0);
}

/* --- One writer --- */

static void reset_with_other(bool answers, bool owns, unsigned watches, bool feature)
{
    fake_reset(MiB);
    fake.other = 5;
    fake.other_answers = answers;
    fake.other_owns = owns;
    fake.other_watches = watches;
    if (!feature)
        fake.features = 0;
    pauses = 0;
}

static void the_exclusive_lock_is_taken(void **state)
{
    struct disk *d;
    fake_reset(MiB);
    for (int lock = CEPH_LOCK_NONE; lock <= CEPH_LOCK_NEEDED; lock++) {
        d = get_with(lock, false);
        CHECK(fake.has_lock == (lock != CEPH_LOCK_NONE) && fake.watches && !d->readonly);
        put(d);
    }
    d = get_with(CEPH_LOCK_NEEDED, true);
    CHECK(!fake.has_lock && fake.watches && d->readonly);
    put(d);
    reset_with_other(true, true, 99, true);
    CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -EBUSY && fake.alive_questions == 1);
    CHECK(strstr(why, "client.5 at " FAKE_ADDRESS " has the exclusive lock") && fake.owed == 0);
    put(get_with(CEPH_LOCK_NONE, false));
    /* The owner is dead, although another client is alive; or its watch has ended already. */
    reset_with_other(false, true, 99, true);
    fake.someone_else_answers = true;
    d = get();
    CHECK(fake.has_lock && fake.alive_questions == 1);
    put(d);
    reset_with_other(true, true, 0, true);
    d = get();
    CHECK(fake.has_lock && fake.alive_questions == 0);
    put(d);
    /* The answers about the owner fail, and so does the lock. */
    static const char *const questions[] = {"rados_notify2", "rados_decode_notify_response",
                                            "rbd_watchers_list", "rbd_lock_get_owners"};
    for (unsigned i = 0; i < 4; i++) {
        reset_with_other(true, true, 99, true);
        fake.broken = questions[i];
        fake.error = -EIO;
        d = get();
        CHECK(fake.has_lock);
        put(d);
    }
    reset_with_other(false, true, 99, true);
    fake.broken = "rbd_lock_acquire";
    fake.error = -EROFS;
    CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -EBUSY && strstr(why, "client.5 at "));
    fake.other_owns = false;
    CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -EROFS);
    CHECK(strstr(why, "the exclusive lock cannot be taken by client.admin: Read-only"));
    fake.error = -EIO;
    fake.other_owns = true;
    CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -EIO && fake.owed == 0);
}

static void without_the_lock_others_are_looked_for(void **state)
{
    struct disk *d;
    fake_reset(MiB);
    fake.features = 0;
    put(get());
    CHECK(fake.alive_questions == 0);
    CHECK(try_get(&d, CEPH_LOCK_NEEDED, false) == -EOPNOTSUPP && strstr(why, "no exclusive lock"));
    reset_with_other(true, false, 999, false);
    CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -EBUSY && fake.owed == 0);
    CHECK(strstr(why, "client.5 at " FAKE_ADDRESS " has the image open too") && pauses == 0);
    put(get_with(CEPH_LOCK_NONE, false));
    put(get_with(CEPH_LOCK_AUTO, true));
    /* One that does not answer is waited for: 45 s at most. */
    reset_with_other(false, false, 3, false);
    put(get());
    CHECK(pauses == 3);
    reset_with_other(false, false, 999, false);
    CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -EBUSY && pauses == 90);
}

static void who_may_not_write_reads(void **state)
{
    static const int errors[] = {-EPERM, -EACCES, -EROFS};
    struct disk *d;
    for (unsigned i = 0; i < 3; i++) {
        fake_reset(MiB);
        fake.broken = "rbd_open";
        fake.error = errors[i];
        d = get();
        CHECK(d->readonly && !fake.watches && !fake.has_lock);
        CHECK(ceph_image_facts(rbd_of(d)->image)->why_readonly);
        put(d);
    }
    fake_reset(MiB);
    image_name.snapshot = "first";
    d = get();
    CHECK(d->readonly && !fake.watches && strcmp(d->name, "rbd/image@first") == 0);
    CHECK(!ceph_image_facts(rbd_of(d)->image)->why_readonly);
    put(d);
    image_name.snapshot = NULL;
}

/* --- Clients that come and go --- */

struct client {
    pthread_t thread;
    struct disk *disk;
    int result;
};

static void *come(void *opaque)
{
    struct client *client = opaque;
    client->result = try_get(&client->disk, CEPH_LOCK_AUTO, false);
    return NULL;
}

static void *leave(void *opaque)
{
    struct disk *d = opaque;
    d->ops->put(d);
    return NULL;
}

/* While the cluster is silent in the call that is held, a client without patience is told so;
 * another one waits, and gets the image when the cluster goes on.
 */
static void come_while_silent(struct client *patient, const char *what, pthread_t *held)
{
    struct disk *d;
    image_name.timeout_s = 0;
    CHECK(try_get(&d, CEPH_LOCK_AUTO, false) == -ETIMEDOUT && strstr(why, what));
    image_name.timeout_s = 30;
    CHECK(pthread_create(&patient->thread, NULL, come, patient) == 0);
    sleep_us(5000);
    fake_go_on();
    if (held)
        pthread_join(*held, NULL);
    pthread_join(patient->thread, NULL);
    CHECK(patient->result == 0);
}

/* The cluster is silent while an image is opened, closed, or its new size is read. */
static void a_silent_cluster_is_waited_for(void **state)
{
    struct client first, second;
    fake_reset(MiB);
    fake_hold("rbd_open");
    CHECK(pthread_create(&first.thread, NULL, come, &first) == 0);
    WAIT_UNTIL(fake_held() == 1);
    come_while_silent(&second, "open or close", &first.thread);
    CHECK(first.result == 0 && first.disk == second.disk);
    put(second.disk);

    fake_hold("rbd_get_size");
    fake.size = 2 * MiB;
    come_while_silent(&second, "its new size", NULL);
    CHECK(second.disk->ops->size(second.disk) == 2 * MiB);
    put(second.disk);

    fake_hold("rbd_close");
    CHECK(pthread_create(&first.thread, NULL, leave, first.disk) == 0);
    WAIT_UNTIL(fake_held() == 1);
    come_while_silent(&second, "open or close", &first.thread);
    put(second.disk);
}

/* A client that waited for another one's open tries it itself when that has failed. */
static void a_failed_open_is_tried_again(void **state)
{
    struct client first, second;
    fake_reset(MiB);
    fake.broken = "rbd_stat";
    fake.error = -EIO;
    fake_hold("rbd_stat");
    CHECK(pthread_create(&first.thread, NULL, come, &first) == 0);
    WAIT_UNTIL(fake_held() == 1);
    CHECK(pthread_create(&second.thread, NULL, come, &second) == 0);
    sleep_us(5000);
    fake.broken = NULL;
    fake_go_on();
    pthread_join(first.thread, NULL);
    pthread_join(second.thread, NULL);
    CHECK(first.result == -EIO && second.result == 0);
    put(second.disk);
}

static void *come_and_go(void *barrier)
{
    struct client client;
    char data[16];
    for (int round = 0; round < ROUNDS(100); round++) {
        pthread_barrier_wait(barrier);
        come(&client);
        CHECK(client.result == 0);
        struct disk *d = client.disk;
        CHECK(d->ops->write(d, "x", 1, 0, round % 2) == 0);
        CHECK(d->ops->read(d, data, sizeof data, 0) == 0);
        d->ops->put(d);
    }
    return NULL;
}

static void clients_come_and_go(void **state)
{
    pthread_barrier_t barrier;
    pthread_t threads[THREADS];
    fake_reset(MiB);
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, come_and_go, &barrier) == 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(fake.owed == 0 && asked(0, "flush", 0, 0, 0) + asked(0, "read", 0, 16, 0) == 1);
    pthread_barrier_destroy(&barrier);
}

/* --- Each call fails in turn --- */

#define MAY_FAIL \
    "rbd_get_id rados_cluster_fsid rbd_watchers_list rbd_lock_get_owners rbd_get_flags " \
    "rbd_get_overlap rbd_get_stripe_count rbd_close rados_notify2 rados_decode_notify_response"
/* The check opens read-only when it may not watch; a new client takes the size of the last. */
#define SOMETIMES "rbd_open rbd_get_size"

/* Returns whether everything went well.  Each step succeeds or fails as the call does. */
static bool session(void)
{
    static const char *const names[] = {"i0", NULL};
    struct disk *d, *again;
    char data[4096] = "";
    int r[10] = {0};

    fake.images = names;
    listed = 0;
    r[0] = rbd_disk_check(&image_name, why);
    r[1] = ceph_image_list(&image_name, add_name, NULL, why, sizeof why);
    r[2] = try_get(&d, CEPH_LOCK_AUTO, false);
    if (r[2] == 0) {
        r[3] = d->ops->write(d, data, sizeof data, 0, false);
        r[4] = d->ops->read(d, data, sizeof data, 0);
        r[5] = d->ops->zero(d, 4096, 0, ZERO_FUA);
        r[6] = d->ops->trim(d, 4096, 0, 0);
        extent_count = 0;
        r[7] = d->ops->extents(d, 4096, 0, false, add_extent, NULL);
        r[8] = try_get(&again, CEPH_LOCK_AUTO, false);
        if (r[8] == 0)
            again->ops->put(again);
        r[9] = d->ops->flush(d);
        d->ops->put(d);
    }
    bool well = true;
    for (unsigned i = 0; i < 10; i++) {
        CHECK(r[i] == 0 || r[i] == fake.error);
        well = well && r[i] == 0;
    }
    return well;
}

static void each_call_may_fail(void **state)
{
    for (unsigned n = 1;; n++) {
        reset_with_other(false, true, 99, true);
        fake.fail_at = n;
        fake.error = -EIO;
        bool well = session();
        CHECK(fake.owed == 0);
        if (!fake.failed)
            break;
        CHECK(well == !!strstr(MAY_FAIL, fake.failed) || strstr(SOMETIMES, fake.failed));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_library_may_be_missing_or_old),
        cmocka_unit_test(requests_have_a_limit_until_the_image_is_open),
        cmocka_unit_test(cache_none_is_without_a_cache),
        cmocka_unit_test(an_image_is_known_by_its_id),
        cmocka_unit_test(an_error_has_a_line),
        cmocka_unit_test(every_image_is_listed),
        cmocka_unit_test(the_exclusive_lock_is_taken),
        cmocka_unit_test(without_the_lock_others_are_looked_for),
        cmocka_unit_test(who_may_not_write_reads),
        cmocka_unit_test(a_silent_cluster_is_waited_for),
        cmocka_unit_test(a_failed_open_is_tried_again),
        cmocka_unit_test(clients_come_and_go),
        cmocka_unit_test(each_call_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
