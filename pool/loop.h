/* SPDX-License-Identifier: BSD-3-Clause */
/* The event loop: one thread that sleeps in epoll_wait(2) until there is a callback to run.
 *
 * Three kinds of objects have a callback, and every callback runs on the loop thread, one at a
 * time:
 *   - a bottom half (bh): any thread can schedule its callback; an eventfd wakes the loop;
 *   - a timer: one shot, CLOCK_MONOTONIC;
 *   - a watch: its callback runs when a file descriptor is readable (a ring's completion eventfd).
 *
 * A callback must not block: while one callback runs, the loop runs no other.  A callback may call
 * loop_poll, which runs other callbacks that are ready from inside the first one.  The loop knows
 * nothing of workers, requests or disks.
 */
#ifndef AIODISK_LOOP_H
#define AIODISK_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct bh;
struct loop_timer;
struct loop_watch;

typedef void loop_fn(void *opaque);

/* Creates the loop and starts its thread with all signals blocked.  Threads that a callback creates
 * inherit that mask, so workers block all signals too.  Returns 0; -EMFILE, -ENFILE, -ENOMEM or
 * -ENOSPC (epoll_create1(2), eventfd(2), epoll_ctl(2)); or -EAGAIN (pthread_create(3)).  Any
 * thread.
 */
int loop_new(struct loop **loop);

/* Stops the thread, joins it and frees the loop.  A bottom half that is scheduled may or may not
 * run any more.  The caller has deleted every timer and watch.  Deleted bottom halves are freed
 * here at the latest; others leak.  Blocks until the callback that is running has returned.  Any
 * thread but the loop's.  No other thread may be inside a function of the loop, not even at the end
 * of a bh_schedule whose callback has run already.
 */
void loop_free(struct loop *loop);

/* Whether the calling thread is the loop thread.  Any thread. */
bool loop_is_current(const struct loop *loop);

/* Runs fn(opaque) on the loop thread and returns after fn has returned.  A callback that was
 * running before has then returned too, unless that callback calls loop_poll: then fn may run
 * inside it.  So when fn deletes an object, callbacks that do not poll no longer use the object.  A
 * callback that polls needs a count of its own that its owner waits for first, as pool_free waits
 * for `undelivered`.  Blocks.  Any thread but the loop's.
 */
void loop_call(struct loop *loop, loop_fn *fn, void *opaque);

/* One turn of the loop from inside a callback: runs the bottom halves and timers that are ready and
 * one of the watches that are ready; these take turns, so no watch starves.  With `wait`, sleeps
 * until there is a callback to run, or returns because the loop is being stopped.  Returns whether
 * a callback ran; without `wait`, false means that nothing was ready.  Loop thread only.
 */
bool loop_poll(struct loop *loop, bool wait);

/* A bottom half, not scheduled.  Returns NULL when there is no memory.  Any thread. */
struct bh *bh_new(struct loop *loop, loop_fn *fn, void *opaque);

/* Makes the callback run once, soon.  Scheduling a scheduled bottom half changes nothing: a
 * thousand calls before the callback starts lead to one run.  A call while the callback runs leads
 * to one more run.  What the caller wrote before is visible to the callback.  Any thread.  Does not
 * block; calls write(2) on the eventfd only when the loop sleeps or is about to sleep.
 */
void bh_schedule(struct bh *bh);

/* Undoes bh_schedule if the callback has not started.  Only the loop thread knows whether the
 * callback has started; another thread can find out with loop_call.  Any thread.
 */
void bh_cancel(struct bh *bh);

/* Frees the bottom half in a later turn of the loop; a callback that has not started does not
 * start.  Only the loop thread knows whether the callback has started, as with bh_cancel.  Nobody
 * may use the bottom half from now on.  Any thread, also from inside its own callback.
 */
void bh_delete(struct bh *bh);

/* A timer, not armed.  Returns NULL when there is no memory.  Any thread. */
struct loop_timer *loop_timer_new(struct loop *loop, loop_fn *fn, void *opaque);

/* Makes the callback run once, at least `ns` nanoseconds from now (epoll_wait(2) counts in
 * milliseconds; the loop rounds up).  More than 146 years means 146 years.  Arming an armed timer
 * moves its deadline.  Loop thread only.
 */
void loop_timer_arm(struct loop_timer *timer, uint64_t ns);

/* Frees the timer, armed or not.  Loop thread only (other threads use loop_call), also from inside
 * its own callback.
 */
void loop_timer_delete(struct loop_timer *timer);

/* Calls fn each time the loop finds fd readable.  The watch is level triggered: fn must consume
 * what makes fd readable.  The caller keeps fd open until loop_watch_delete.  Returns 0, -ENOMEM,
 * or -errno of epoll_ctl(2).  Loop thread only.
 */
int loop_watch_new(struct loop *loop, int fd, loop_fn *fn, void *opaque, struct loop_watch **watch);

/* Frees the watch.  Loop thread only, also from inside its own callback. */
void loop_watch_delete(struct loop_watch *watch);

#endif
