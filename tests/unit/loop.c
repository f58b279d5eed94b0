/* SPDX-License-Identifier: BSD-3-Clause */
/* The event loop keeps the promises of loop.h.
 *
 * A bottom half runs once however often it was scheduled.  No wake-up is lost, and spurious ones do
 * no harm.  An eventfd at its maximum wakes the loop.  A timer fires once and not early.  Watches
 * and bottom halves can be deleted from inside their callbacks.  A callback may poll the loop.
 */
#include "tests/lib/pool-test.h"

#include <dirent.h>
#include <semaphore.h>
#include <sys/eventfd.h>

static struct loop *loop;

static int set_up(void **state)
{
    CHECK(loop_new(&loop) == 0);
    return 0;
}

static int tear_down(void **state)
{
    loop_free(loop);
    return 0;
}

/* --wrap=write: with fill_first set, the write is interrupted, or finds the eventfd full. */
ssize_t __real_write(int fd, const void *buf, size_t count);
ssize_t __wrap_write(int fd, const void *buf, size_t count);
static atomic_bool fill_first;
static _Atomic unsigned found_full, writes;

ssize_t __wrap_write(int fd, const void *buf, size_t count)
{
    if (atomic_load(&fill_first) && count == sizeof(uint64_t)) {
        uint64_t maximum = UINT64_MAX - 1;
        errno = EINTR;
        if (atomic_fetch_add(&writes, 1) % 2 == 0)
            return -1;
        if (__real_write(fd, &maximum, sizeof maximum) < 0 || __real_write(fd, buf, count) < 0) {
            atomic_fetch_add(&found_full, 1);
            errno = EAGAIN;
            return -1;
        }
        return count;
    }
    return __real_write(fd, buf, count);
}

/* --wrap=pthread_create: with store_late set, the new thread runs for a while before its creator
 * gets its id, as POSIX allows.
 */
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *arg);
static bool store_late;

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *arg)
{
    pthread_t created;
    int error = __real_pthread_create(&created, attr, fn, arg);
    if (store_late)
        sleep_us(20000);
    if (!error)
        *thread = created;
    return error;
}

static void loop_thread_knows_itself_before_its_creator_does(void **state)
{
    store_late = true;
    CHECK(loop_new(&loop) == 0);
    store_late = false;
    CHECK(!loop_is_current(loop));
    loop_free(loop);
}

static void post(void *opaque)
{
    sem_post(opaque);
}

static void wait_sem(sem_t *sem)
{
    while (sem_wait(sem) < 0)
        CHECK(errno == EINTR);
}

struct counted {
    _Atomic unsigned runs;
    sem_t entered, go_on; /* of `hold`, which keeps the loop thread busy in between */
};

static void count_run(void *opaque)
{
    struct counted *c = opaque;
    atomic_fetch_add(&c->runs, 1);
}

static void hold(void *opaque)
{
    struct counted *c = opaque;
    sem_post(&c->entered);
    wait_sem(&c->go_on);
}

static void nothing(void *opaque)
{
}

static void bottom_half_runs_once_however_often_scheduled(void **state)
{
    struct counted c = {.runs = 0};
    sem_init(&c.entered, 0, 0);
    sem_init(&c.go_on, 0, 0);
    struct bh *holder = bh_new(loop, hold, &c), *bh = bh_new(loop, count_run, &c);

    bh_schedule(holder);
    wait_sem(&c.entered);
    for (int i = 0; i < 1000; i++)
        bh_schedule(bh);
    sem_post(&c.go_on);
    loop_call(loop, nothing, NULL);
    loop_call(loop, nothing, NULL);
    CHECK(atomic_load(&c.runs) == 1);

    bh_schedule(holder);
    wait_sem(&c.entered);
    bh_schedule(bh);
    bh_cancel(bh);
    sem_post(&c.go_on);
    loop_call(loop, nothing, NULL);
    loop_call(loop, nothing, NULL);
    CHECK(atomic_load(&c.runs) == 1);
    bh_delete(bh);
    bh_delete(holder);
}

struct self {
    struct bh *bh;
    sem_t ran;
};

static void delete_self(void *opaque)
{
    struct self *self = opaque;
    bh_delete(self->bh);
    sem_post(&self->ran);
}

static void bottom_half_can_be_deleted_from_inside_itself(void **state)
{
    struct self self;
    sem_init(&self.ran, 0, 0);
    for (int i = 0; i < ROUNDS(10000); i++) {
        self.bh = bh_new(loop, delete_self, &self);
        bh_schedule(self.bh);
        wait_sem(&self.ran);
    }
}

#define PINGERS 4

static void *ping(void *opaque)
{
    sem_t answered;
    sem_init(&answered, 0, 0);
    struct bh *bh = bh_new(loop, post, &answered);
    for (int i = 0; i < ROUNDS(150000); i++) {
        bh_schedule(bh);
        wait_sem(&answered);
    }
    bh_delete(bh);
    return NULL;
}

static void run_pingers(void)
{
    pthread_t threads[PINGERS];
    for (int i = 0; i < PINGERS; i++)
        CHECK(pthread_create(&threads[i], NULL, ping, NULL) == 0);
    for (int i = 0; i < PINGERS; i++)
        pthread_join(threads[i], NULL);
}

/* Each pinger schedules again as soon as it has its answer.  The loop has nothing else to do, so it
 * is about to sleep at that moment.  A lost wake-up hangs the test.
 */
static void invariant_17_no_wake_up_is_lost(void **state)
{
    run_pingers();
}

static int find_eventfd(void)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    int found = -1;
    while ((entry = readdir(dir))) {
        char target[64] = "";
        if (readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1) > 0 &&
            strstr(target, "[eventfd]"))
            found = atoi(entry->d_name);
    }
    closedir(dir);
    CHECK(found >= 0);
    return found;
}

struct disturber {
    int fd;
    atomic_bool stop;
};

static void *disturb(void *opaque)
{
    struct disturber *d = opaque;
    uint64_t one = 1;
    while (!atomic_load(&d->stop)) {
        CHECK(__real_write(d->fd, &one, sizeof one) == sizeof one);
        sleep_us(20);
    }
    return NULL;
}

static void invariant_14_spurious_wake_ups_of_the_eventfd(void **state)
{
    struct disturber d = {.fd = find_eventfd()};
    struct counted c = {.runs = 0};
    struct bh *bh = bh_new(loop, count_run, &c);
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, disturb, &d) == 0);
    for (unsigned i = 1; i <= ROUNDS(20000u); i++) {
        bh_schedule(bh);
        loop_call(loop, nothing, NULL);
        CHECK(atomic_load(&c.runs) == i);
    }
    atomic_store(&d.stop, true);
    pthread_join(thread, NULL);
    bh_delete(bh);
}

static void invariant_16_eventfd_at_its_maximum(void **state)
{
    sem_t answered;
    sem_init(&answered, 0, 0);
    struct bh *bh = bh_new(loop, post, &answered);

    atomic_store(&fill_first, true);
    while (atomic_load(&found_full) < 100) {
        bh_schedule(bh);
        wait_sem(&answered);
        sleep_us(50); /* the loop usually goes to sleep meanwhile */
    }
    atomic_store(&fill_first, false);
    bh_delete(bh);
}

/* --- Timers, watches, nested polls: on the loop thread, through loop_call --- */

struct timed {
    struct loop_timer *timer;
    unsigned fired;
    uint64_t armed_at, fired_at;
    sem_t done;
};

static uint64_t monotonic_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void fire(void *opaque)
{
    struct timed *t = opaque;
    t->fired++;
    t->fired_at = monotonic_ns();
    loop_timer_delete(t->timer);
    sem_post(&t->done);
}

static void arm(void *opaque)
{
    struct timed *t = opaque;
    t->timer = loop_timer_new(loop, fire, t);
    loop_timer_arm(t->timer, 3600000000000u);
    t->armed_at = monotonic_ns();
    loop_timer_arm(t->timer, 5000000); /* moves the deadline */
}

static void timer_fires_once_and_not_early(void **state)
{
    struct timed t = {.fired = 0};
    sem_init(&t.done, 0, 0);
    loop_call(loop, arm, &t);
    wait_sem(&t.done);
    loop_call(loop, nothing, NULL);
    CHECK(t.fired == 1);
    CHECK(t.fired_at - t.armed_at >= 5000000);
}

/* Of three timers the one with this number is near, the others are seconds away. */
struct several {
    struct loop_timer *timers[3];
    unsigned near;
    sem_t done;
};

static void fire_near(void *opaque)
{
    sem_post(&((struct several *)opaque)->done);
}

static void arm_several(void *opaque)
{
    struct several *s = opaque;
    for (unsigned i = 0; i < 3; i++) {
        s->timers[i] = loop_timer_new(loop, fire_near, s);
        loop_timer_arm(s->timers[i], i == s->near ? 5000000u : 5000000000u + i);
    }
}

static void disarm_several(void *opaque)
{
    struct several *s = opaque;
    for (unsigned i = 0; i < 3; i++)
        loop_timer_delete(s->timers[(i + s->near) % 3]);
}

/* The loop sleeps until the nearest of its timers, in whatever order they were armed. */
static void the_nearest_timer_wakes_the_loop(void **state)
{
    struct several s = {.near = 0};
    sem_init(&s.done, 0, 0);
    uint64_t start = monotonic_ns();
    for (; s.near < 3; s.near++) {
        loop_call(loop, arm_several, &s);
        wait_sem(&s.done);
        loop_call(loop, disarm_several, &s);
    }
    CHECK(monotonic_ns() - start < 5000000000u);
}

static void arm_too_far(void *opaque)
{
    struct timed *t = opaque;
    t->timer = loop_timer_new(loop, fire, t);
    loop_timer_arm(t->timer, UINT64_MAX - t->fired_at);
}

static void disarm(void *opaque)
{
    struct timed *t = opaque;
    loop_timer_delete(t->timer);
}

static void timer_too_far_for_the_clock_does_not_fire(void **state)
{
    for (uint64_t i = 0; i < 3; i++) {
        struct timed t = {.fired_at = i * 1000000000u};
        sem_init(&t.done, 0, 0);
        loop_call(loop, arm_too_far, &t);
        sleep_us(5000);
        loop_call(loop, nothing, NULL);
        CHECK(t.fired == 0);
        loop_call(loop, disarm, &t);
    }
}

struct watched {
    struct loop_watch *watch;
    int fd;
    unsigned runs;
    sem_t done;
};

static void on_readable(void *opaque)
{
    struct watched *w = opaque;
    uint64_t count;
    CHECK(read(w->fd, &count, sizeof count) == sizeof count);
    if (++w->runs == 3)
        loop_watch_delete(w->watch);
    sem_post(&w->done);
}

static void watch(void *opaque)
{
    struct watched *w = opaque;
    CHECK(loop_watch_new(loop, w->fd, on_readable, w, &w->watch) == 0);
}

static void watch_reports_each_time_until_deleted_from_inside(void **state)
{
    struct watched w = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    uint64_t one = 1;
    sem_init(&w.done, 0, 0);
    loop_call(loop, watch, &w);
    for (int i = 0; i < 3; i++) {
        CHECK(__real_write(w.fd, &one, sizeof one) == sizeof one);
        wait_sem(&w.done);
    }
    CHECK(__real_write(w.fd, &one, sizeof one) == sizeof one);
    loop_call(loop, nothing, NULL);
    loop_call(loop, nothing, NULL);
    CHECK(w.runs == 3);
    close(w.fd);
}

struct hidden {
    struct watched watched;
    int loop_fd;
    bool found;
};

static void poll_once(void *opaque)
{
    struct hidden *h = opaque;
    uint64_t one = 1;
    CHECK(__real_write(h->loop_fd, &one, sizeof one) == sizeof one);
    CHECK(__real_write(h->watched.fd, &one, sizeof one) == sizeof one);
    h->found = loop_poll(loop, false);
}

/* The loop's own eventfd is readable first.  One turn that does not wait still runs the watch. */
static void watch_is_not_hidden_by_the_eventfd(void **state)
{
    struct hidden h = {.loop_fd = find_eventfd()};
    h.watched.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sem_init(&h.watched.done, 0, 0);
    loop_call(loop, watch, &h.watched);
    for (unsigned i = 1; i <= 3; i++) {
        loop_call(loop, poll_once, &h);
        CHECK(h.found && h.watched.runs == i);
    }
    close(h.watched.fd);
}

struct nested {
    struct bh *inner;
    unsigned inner_runs;
    bool in_outer;
};

static void inner(void *opaque)
{
    struct nested *n = opaque;
    CHECK(n->in_outer);
    n->inner_runs++;
}

static void outer(void *opaque)
{
    struct nested *n = opaque;
    n->in_outer = true;
    bh_schedule(n->inner);
    while (n->inner_runs == 0)
        loop_poll(loop, true);
    n->in_outer = false;
}

static void invariant_9_nested_poll_runs_other_callbacks(void **state)
{
    struct nested n = {.inner_runs = 0};
    n.inner = bh_new(loop, inner, &n);
    loop_call(loop, outer, &n);
    CHECK(n.inner_runs == 1);
    bh_delete(n.inner);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(bottom_half_runs_once_however_often_scheduled, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(bottom_half_can_be_deleted_from_inside_itself, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(invariant_17_no_wake_up_is_lost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(invariant_14_spurious_wake_ups_of_the_eventfd, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(invariant_16_eventfd_at_its_maximum, set_up, tear_down),
        cmocka_unit_test_setup_teardown(timer_fires_once_and_not_early, set_up, tear_down),
        cmocka_unit_test_setup_teardown(watch_reports_each_time_until_deleted_from_inside, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(timer_too_far_for_the_clock_does_not_fire, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(the_nearest_timer_wakes_the_loop, set_up, tear_down),
        cmocka_unit_test_setup_teardown(watch_is_not_hidden_by_the_eventfd, set_up, tear_down),
        cmocka_unit_test(loop_thread_knows_itself_before_its_creator_does),
        cmocka_unit_test_setup_teardown(invariant_9_nested_poll_runs_other_callbacks, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
