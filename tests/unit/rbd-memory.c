/* SPDX-License-Identifier: BSD-3-Clause */
/* An RBD disk when there is no memory, no descriptor or no thread: the open fails with one line and
 * leaves nothing behind, and the disk opens when the machine has recovered.  Over a librbd that
 * consists of memory (fake-rbd.h), which allocates nothing while an image is opened.
 */
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "plugin/disk/health.h"
#include "tests/lib/wrap.h"
#include "tests/unit/rbd-rig.h"

/* --- The functions that the program wraps --- */

static _Atomic int calls_left = -1; /* so many of the wrapped calls work, and the next one fails */
static _Atomic bool no_threads;

static bool fails(void)
{
    if (atomic_load(&calls_left) < 0 || atomic_fetch_sub(&calls_left, 1) > 0)
        return false;
    errno = ENOMEM;
    return true;
}

WRAP_IF(fails(), void *, calloc, NULL, (size_t n, size_t size), (n, size))
WRAP_IF(fails(), char *, strdup, NULL, (const char *s), (s))
WRAP_IF(fails(), int, epoll_create1, -1, (int flags), (flags))
WRAP_IF(fails(), int, eventfd, -1, (unsigned n, int flags), (n, flags))
WRAP_PTHREAD_CREATE_IF(atomic_load(&no_threads) || fails())

/* --- The tests --- */

static void an_open_without_memory_leaves_nothing(void **state)
{
    struct disk *d;
    unsigned number = 0;
    fake_reset(MiB);
    put(get()); /* loads the libraries */
    unsigned before = descriptors();
    for (bool failed = true; failed; number++) {
        atomic_store(&calls_left, (int)number);
        int r = try_get(&d, CEPH_LOCK_AUTO, false);
        failed = atomic_load(&calls_left) < 0;
        atomic_store(&calls_left, -1);
        CHECK(failed == (r < 0));
        if (failed)
            CHECK(r == -ENOMEM ? strstr(why, "out of memory") || strstr(why, strerror(ENOMEM))
                               : r == -EAGAIN && strstr(why, strerror(EAGAIN)));
        else
            put(d);
        CHECK(fake.owed == 0 && descriptors() == before);
        health_forget_all();
    }
    CHECK(number > 10);
}

static int add_name(void *opaque, const char *name)
{
    return 0;
}

static void a_list_without_memory(void **state)
{
    static const char *const names[] = {"a", NULL};
    fake_reset(MiB);
    fake.images = names;
    atomic_store(&calls_left, 0);
    CHECK(ceph_image_list(&image_name, add_name, NULL, why, sizeof why) == -ENOMEM);
    CHECK(atomic_load(&calls_left) == -1 && fake.owed == 0 && strstr(why, "cannot be listed"));
    CHECK(ceph_image_list(&image_name, add_name, NULL, why, sizeof why) == 0);
}

/* The size for a further client is read by a worker.  Without one the client is refused, or gets
 * the size that is known, and the disk works on for the clients that it has.
 */
static void a_further_client_without_threads(void **state)
{
    struct pool_counters counters;
    struct disk *again;
    char byte = 1;
    fake_reset(MiB);
    struct disk *d = get();
    atomic_store(&no_threads, true);
    int r;
    while ((r = try_get(&again, CEPH_LOCK_AUTO, false)) == 0)
        put(again);
    CHECK(r == -EAGAIN && strstr(why, "rbd rbd/image: ") && strstr(why, strerror(EAGAIN)));
    d->ops->read_pool(d, &counters);
    CHECK(counters.max_threads == 2 && counters.threads == 0 && counters.spawn_failures > 0);
    CHECK(d->ops->write(d, &byte, 1, 0, true) == 0);
    atomic_store(&no_threads, false);
    fake.size = 2 * MiB;
    WAIT_UNTIL(try_get(&again, CEPH_LOCK_AUTO, false) == 0);
    CHECK(again == d);
    put(again);
    put(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_open_without_memory_leaves_nothing),
        cmocka_unit_test(a_list_without_memory),
        cmocka_unit_test(a_further_client_without_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
