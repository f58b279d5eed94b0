/* SPDX-License-Identifier: BSD-3-Clause */
/* The event loop: see loop.h for what it promises.
 *
 * Scheduling a bottom half is lock-free: it is pushed to a stack that the loop takes over whole, so what
 * was scheduled runs in that order, a batch at a time.  The eventfd is written only when
 * the loop sleeps or is about to; the handshake that makes this safe is told at loop_notify.
 *
 * Everything here runs on the loop thread, but for the functions whose comment in loop.h says "any
 * thread".  It never calls into the pool but through a callback, and never runs a blocking call.
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

#include "pool/stack.h"
#include "pool/waiter.h"

#define NS_PER_MS 1000000u
#define NS_PER_S 1000000000u

enum bh_flags {
    BH_PENDING = 1 << 0,   /* linked: on the stack or on the ready list */
    BH_SCHEDULED = 1 << 1, /* is to run */
    BH_DELETED = 1 << 2,   /* is to be freed */
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
    /* Set once by loop_timer_new; below, loop thread only. */
    struct loop *loop;
    loop_fn *fn;
    void *opaque;

    bool armed;
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
    /* Set once by loop_new. */
    pthread_t thread;
    int epoll_fd;
    int event_fd;

    /* Any thread. */
    struct stack scheduled;
    _Atomic bool asleep; /* in epoll_wait, or about to be */
    _Atomic bool stopping;

    /* Loop thread only. */
    struct queue ready;        /* drained from `scheduled` */
    struct loop_timer *timers; /* the armed ones, in no order: there is one for each pool */
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* Wakes the loop if it sleeps.  No wake-up is lost: all operations here are sequentially consistent, so either
 * this load sees `asleep`, which the loop stored before it looked at the stack a last time, or that
 * look sees what the caller has just pushed.  The exchange lets one of many callers pay for the write.
 */
static void loop_notify(struct loop *loop)
{
    if (!atomic_load(&loop->asleep) || !atomic_exchange(&loop->asleep, false))
        return;
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(loop->event_fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
    /* EAGAIN: the counter is at its maximum, so the loop is being woken already (eventfd(2)). */
    assert(n == sizeof one || errno == EAGAIN);
}

static void bh_enqueue(struct bh *bh, unsigned flags)
{
    /* Once the flags are set another thread's bh_delete may lead to `bh` being freed. */
    struct loop *loop = bh->loop;
    if (!(atomic_fetch_or(&bh->flags, flags | BH_PENDING) & BH_PENDING))
        stack_push(&loop->scheduled, &bh->link);
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

/* Runs what was scheduled when it began.  Each bottom half is unlinked and its flags are cleared before
 * its callback is called, and nothing of it is touched after that: the callback may schedule it again,
 * delete it, or poll the loop, which goes on with the rest of this batch and may free it.
 */
static bool run_bottom_halves(struct loop *loop)
{
    bool ran = false;
    struct bh *bh;
    stack_drain(&loop->scheduled, &loop->ready);
    while ((bh = pop_ready(loop))) {
        unsigned flags = atomic_fetch_and(&bh->flags, ~(unsigned)(BH_PENDING | BH_SCHEDULED));
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
    timer->deadline_ns = now_ns() + ns;
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

/* Starts over after each callback, which may have armed or deleted any timer.  `now` is read once, so
 * that a timer armed again with 0 ns waits for the next turn.
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

/* Milliseconds to the next deadline, rounded up so that the loop does not spin before it; -1: none. */
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

/* Waits for one event and runs its callback.  One event at a time, because a callback may delete
 * the watch that a second event of the same call would point to; epoll rotates its ready list, so
 * none starves.
 */
static bool poll_descriptors(struct loop *loop, bool wait)
{
    int timeout_ms = 0;
    if (wait) {
        atomic_store(&loop->asleep, true);
        if (stack_is_empty(&loop->scheduled))
            timeout_ms = timers_timeout_ms(loop);
    }
    struct epoll_event event;
    int n = epoll_wait(loop->epoll_fd, &event, 1, timeout_ms);
    assert(n >= 0 || errno == EINTR);
    atomic_store(&loop->asleep, false);
    if (n <= 0)
        return false;
    struct loop_watch *watch = event.data.ptr;
    if (!watch) {
        uint64_t count;
        /* EAGAIN: someone else has read it; a spurious wake-up is no more than that. */
        ssize_t got = read(loop->event_fd, &count, sizeof count);
        assert(got == sizeof count || errno == EAGAIN || errno == EINTR);
        return false;
    }
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

static void *loop_main(void *opaque)
{
    struct loop *loop = opaque;
    while (!atomic_load(&loop->stopping))
        loop_poll(loop, true);
    return NULL;
}

bool loop_is_current(const struct loop *loop)
{
    return pthread_equal(pthread_self(), loop->thread);
}

struct call {
    loop_fn *fn;
    void *opaque;
    struct waiter waiter;
};

static void call_run(void *opaque)
{
    struct call *call = opaque;
    call->fn(call->opaque);
    waiter_wake(&call->waiter);
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

/* Starts the thread with every signal blocked: a handler of the program's must not run on it. */
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
    atomic_store(&loop->stopping, true);
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
