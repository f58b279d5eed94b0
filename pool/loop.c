/* SPDX-License-Identifier: BSD-3-Clause */
/* The event loop.  See loop.h for what each function promises.
 *
 * Scheduling a bottom half takes no lock: bh_schedule pushes the bottom half to a stack, and the
 * loop drains the whole stack at once, so bottom halves run in the order in which they were
 * scheduled.  The eventfd is written only when the loop sleeps or is about to sleep; loop_notify
 * explains why no wake-up is lost.
 *
 * Everything here runs on the loop thread, except the functions for which loop.h says "any thread".
 * The loop calls the pool through callbacks only, and makes no blocking call but epoll_wait(2).
 */
#include "pool/loop.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "pool/schedule-point.h"
#include "pool/stack.h"
#include "pool/waiter.h"

#define NS_PER_MS 1000000u
#define NS_PER_S 1000000000u
#define TIMER_MAX_NS ((uint64_t)INT64_MAX / 2) /* 146 years, so that no deadline overflows */

enum bh_flags {
    BH_PENDING = 1 << 0,   /* linked: in `scheduled` or in `ready` */
    BH_SCHEDULED = 1 << 1, /* the callback is to run */
    BH_DELETED = 1 << 2,   /* the bottom half is to be freed */
};

struct bh {
    /* Set once by bh_new. */
    struct loop *loop;
    loop_fn *fn;
    void *opaque;

    _Atomic unsigned flags; /* any thread */
    struct link link;       /* the thread that set BH_PENDING; once pushed, the loop thread */
};

struct loop_timer {
    /* Set once by loop_timer_new. */
    struct loop *loop;
    loop_fn *fn;
    void *opaque;

    /* Loop thread only. */
    bool armed; /* in the loop's list of timers */
    uint64_t deadline_ns;
    struct loop_timer *next;
};

struct loop_watch {
    /* Loop thread only. */
    struct loop *loop;
    loop_fn *fn;
    void *opaque;
    int fd;
};

struct loop {
    /* Set once by loop_new, and used by loop_new and loop_free only.  pthread_create(3) may store
     * `thread` after the loop thread has started.
     */
    pthread_t thread;

    /* Set once by loop_new, before the thread exists. */
    int epoll_fd;
    int event_fd;

    /* The loop thread's id, which that thread stores before anything else; any thread reads it.
     * Zero, which is no thread's id, until then.
     */
    _Atomic pthread_t self;

    /* Any thread. */
    struct stack scheduled;
    _Atomic bool asleep;   /* the loop is in epoll_wait(2), or about to call it */
    _Atomic bool stopping; /* loop_free began */

    /* Loop thread only. */
    struct queue ready; /* drained from `scheduled` */

    /* The armed timers, in no order.  A plain list is enough: each pool has one timer, and arms the
     * timer only after a failed thread creation.
     */
    struct loop_timer *timers;
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* Wakes the loop if the loop sleeps.  The caller has pushed to `scheduled`; the loop sets `asleep`
 * and then checks `scheduled` a last time before it sleeps.  All four operations are sequentially
 * consistent.  So no wake-up is lost: either this load sees `asleep`, or the loop's check sees the
 * push.  The exchange makes one of several concurrent callers write to the eventfd.
 */
static void loop_notify(struct loop *loop)
{
    if (!atomic_load(&loop->asleep) || !atomic_exchange(&loop->asleep, false))
        return;
    SCHEDULE_POINT();
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(loop->event_fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
    /* EAGAIN: the counter is at its maximum, so the eventfd is readable anyway (eventfd(2)). */
    assert(n == sizeof one || errno == EAGAIN);
    SCHEDULE_POINT();
}

static void bh_enqueue(struct bh *bh, unsigned flags)
{
    /* Read before the flags are set: from then on the loop may run and free the bottom half. */
    struct loop *loop = bh->loop;
    if (!(atomic_fetch_or(&bh->flags, flags | BH_PENDING) & BH_PENDING)) {
        SCHEDULE_POINT();
        stack_push(&loop->scheduled, &bh->link);
    }
    SCHEDULE_POINT();
    loop_notify(loop);
}

struct bh *bh_new(struct loop *loop, loop_fn *fn, void *opaque)
{
    struct bh *bh = calloc(1, sizeof *bh);
    if (bh) {
        bh->loop = loop;
        bh->fn = fn;
        bh->opaque = opaque;
    }
    return bh;
}

void bh_schedule(struct bh *bh)
{
    bh_enqueue(bh, BH_SCHEDULED);
}

void bh_cancel(struct bh *bh)
{
    SCHEDULE_POINT();
    atomic_fetch_and(&bh->flags, ~(unsigned)BH_SCHEDULED);
}

void bh_delete(struct bh *bh)
{
    bh_enqueue(bh, BH_DELETED);
}

static struct bh *pop_ready(struct loop *loop)
{
    struct link *link = queue_pop(&loop->ready);
    return link ? container_of(link, struct bh, link) : NULL;
}

/* Runs the bottom halves that are scheduled now; those scheduled meanwhile wait for the next call.
 * Each bottom half is unlinked and its flags are cleared before its callback is called, and no
 * member is touched after the call.  So the callback may schedule its bottom half again, delete it,
 * or poll the loop: the nested call goes on with the rest of this batch and may free the bottom
 * half.
 */
static bool run_bottom_halves(struct loop *loop)
{
    bool ran = false;
    struct bh *bh;
    stack_drain(&loop->scheduled, &loop->ready);
    while ((bh = pop_ready(loop))) {
        SCHEDULE_POINT();
        unsigned flags = atomic_fetch_and(&bh->flags, ~(unsigned)(BH_PENDING | BH_SCHEDULED));
        SCHEDULE_POINT();
        if (flags & BH_DELETED) {
            free(bh);
        } else if (flags & BH_SCHEDULED) {
            bh->fn(bh->opaque);
            ran = true;
        }
    }
    return ran;
}

struct loop_timer *loop_timer_new(struct loop *loop, loop_fn *fn, void *opaque)
{
    struct loop_timer *timer = calloc(1, sizeof *timer);
    if (timer) {
        timer->loop = loop;
        timer->fn = fn;
        timer->opaque = opaque;
    }
    return timer;
}

static void timer_disarm(struct loop_timer *timer)
{
    if (!timer->armed)
        return;
    struct loop_timer **link = &timer->loop->timers;
    while (*link != timer)
        link = &(*link)->next;
    *link = timer->next;
    timer->armed = false;
}

void loop_timer_arm(struct loop_timer *timer, uint64_t ns)
{
    assert(loop_is_current(timer->loop));
    timer_disarm(timer);
    timer->deadline_ns = now_ns() + (ns < TIMER_MAX_NS ? ns : TIMER_MAX_NS);
    timer->armed = true;
    timer->next = timer->loop->timers;
    timer->loop->timers = timer;
}

void loop_timer_delete(struct loop_timer *timer)
{
    assert(loop_is_current(timer->loop));
    timer_disarm(timer);
    free(timer);
}

/* Runs the timers that are due.  The search starts over after each callback, which may have armed
 * or deleted any timer.  `now` is read once, so a timer that its callback arms again waits for the
 * next call, even with 0 ns.
 */
static bool run_timers(struct loop *loop)
{
    if (!loop->timers)
        return false;
    bool ran = false;
    uint64_t now = now_ns();
    for (struct loop_timer *timer = loop->timers; timer;) {
        if (timer->deadline_ns > now) {
            timer = timer->next;
            continue;
        }
        timer_disarm(timer);
        timer->fn(timer->opaque);
        ran = true;
        timer = loop->timers;
    }
    return ran;
}

/* Milliseconds to the next deadline, or -1 without one, as epoll_wait(2) takes them.  Rounded up,
 * so that the loop does not spin during the last millisecond.
 */
static int timers_timeout_ms(const struct loop *loop)
{
    if (!loop->timers)
        return -1;
    uint64_t nearest = UINT64_MAX;
    for (const struct loop_timer *timer = loop->timers; timer; timer = timer->next)
        if (timer->deadline_ns < nearest)
            nearest = timer->deadline_ns;
    uint64_t now = now_ns();
    uint64_t ms = nearest <= now ? 0 : (nearest - now + NS_PER_MS - 1) / NS_PER_MS;
    return ms > INT32_MAX ? INT32_MAX : (int)ms;
}

int loop_watch_new(struct loop *loop, int fd, loop_fn *fn, void *opaque, struct loop_watch **watch)
{
    assert(loop_is_current(loop));
    struct loop_watch *w = calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    *w = (struct loop_watch){.loop = loop, .fn = fn, .opaque = opaque, .fd = fd};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = w};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        int error = errno;
        free(w);
        return -error;
    }
    *watch = w;
    return 0;
}

void loop_watch_delete(struct loop_watch *watch)
{
    assert(loop_is_current(watch->loop));
    epoll_ctl(watch->loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    free(watch);
}

/* Takes one event, or returns false if there is none; sleeps for at most the time-out, as
 * epoll_wait(2) does.  *watch is the watch that the event belongs to, or NULL for the loop's own
 * eventfd, which is made unreadable again.
 *
 * More events at a time would need care: a callback may delete the watch that a later event of the
 * same epoll_wait(2) points to.  The kernel moves a reported descriptor to the end of its ready
 * list, so no watch starves.
 */
static bool next_event(struct loop *loop, int timeout_ms, struct loop_watch **watch)
{
    struct epoll_event event;
    int n = epoll_wait(loop->epoll_fd, &event, 1, timeout_ms);
    assert(n >= 0 || errno == EINTR);
    if (n <= 0)
        return false;
    *watch = event.data.ptr;
    if (!*watch) {
        uint64_t count;
        SCHEDULE_POINT();
        /* An empty counter would be a spurious wake-up, which does no harm. */
        ssize_t got = read(loop->event_fd, &count, sizeof count);
        assert(got == sizeof count || errno == EAGAIN || errno == EINTR);
    }
    return true;
}

/* Runs the callback of one watch that is ready; with `wait`, sleeps until a descriptor is ready or
 * the next timer is due.  Returns whether a callback ran.  Without `wait`, the loop's own eventfd
 * does not hide a watch that is ready behind it.  With `wait` it may, because loop_poll comes back
 * if no callback has run.
 */
static bool poll_descriptors(struct loop *loop, bool wait)
{
    int timeout_ms = 0;
    if (wait) {
        SCHEDULE_POINT();
        atomic_store(&loop->asleep, true);
        SCHEDULE_POINT();
        if (stack_is_empty(&loop->scheduled))
            timeout_ms = timers_timeout_ms(loop);
        SCHEDULE_POINT();
    }
    struct loop_watch *watch = NULL;
    bool found = next_event(loop, timeout_ms, &watch);
    SCHEDULE_POINT();
    atomic_store(&loop->asleep, false);
    SCHEDULE_POINT();
    if (found && !watch && !wait)
        found = next_event(loop, 0, &watch);
    if (!found || !watch)
        return false;
    watch->fn(watch->opaque);
    return true;
}

bool loop_poll(struct loop *loop, bool wait)
{
    assert(loop_is_current(loop));
    bool ran = run_bottom_halves(loop);
    do {
        ran |= poll_descriptors(loop, wait && !ran);
        ran |= run_timers(loop);
        ran |= run_bottom_halves(loop);
    } while (wait && !ran && !atomic_load(&loop->stopping));
    return ran;
}

/* The loop thread is born in start_thread below. */
static void *loop_main(void *opaque)
{
    struct loop *loop = opaque;
    SCHEDULE_POINT();
    atomic_store_explicit(&loop->self, pthread_self(), memory_order_relaxed);
    while (!atomic_load(&loop->stopping))
        loop_poll(loop, true);
    return NULL;
}

bool loop_is_current(const struct loop *loop)
{
    return pthread_equal(pthread_self(), atomic_load_explicit(&loop->self, memory_order_relaxed));
}

/* A loop_call in progress, on the caller's stack. */
struct call {
    loop_fn *fn;
    void *opaque;
    struct waiter waiter;
};

static void call_run(void *opaque)
{
    struct call *call = opaque;
    call->fn(call->opaque);
    waiter_wake(&call->waiter); /* the last touch of the call and of its bottom half */
}

void loop_call(struct loop *loop, loop_fn *fn, void *opaque)
{
    assert(!loop_is_current(loop));
    struct call call = {.fn = fn, .opaque = opaque};
    struct bh bh = {.loop = loop, .fn = call_run, .opaque = &call};
    waiter_init(&call.waiter);
    bh_schedule(&bh);
    waiter_wait(&call.waiter);
    waiter_destroy(&call.waiter);
}

/* Starts the loop thread with every signal blocked, so that no signal handler of the program runs
 * on the loop thread or on a thread that a callback creates.
 */
static int start_thread(struct loop *loop)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&loop->thread, NULL, loop_main, loop);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!error)
        pthread_setname_np(loop->thread, "aiodisk-loop");
    return -error;
}

static void close_descriptors(struct loop *loop)
{
    if (loop->event_fd >= 0)
        close(loop->event_fd);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
}

int loop_new(struct loop **out)
{
    struct loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return -ENOMEM;
    queue_init(&loop->ready);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    int error = 0;
    if (loop->epoll_fd < 0 || loop->event_fd < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->event_fd, &event) < 0)
        error = -errno;
    if (!error)
        error = start_thread(loop);
    if (error) {
        close_descriptors(loop);
        free(loop);
        return error;
    }
    *out = loop;
    return 0;
}

static void stop(void *opaque)
{
    struct loop *loop = opaque;
    SCHEDULE_POINT();
    atomic_store(&loop->stopping, true);
    SCHEDULE_POINT();
}

void loop_free(struct loop *loop)
{
    loop_call(loop, stop, loop);
    pthread_join(loop->thread, NULL);
    assert(!loop->timers);
    struct bh *bh;
    stack_drain(&loop->scheduled, &loop->ready);
    while ((bh = pop_ready(loop)))
        if (atomic_load(&bh->flags) & BH_DELETED)
            free(bh);
    close_descriptors(loop);
    free(loop);
}
