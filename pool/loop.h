/* SPDX-License-Identifier: BSD-3-Clause */
/* The event loop: one thread that sleeps in epoll until there is something to do.
 *
 * Three things make it run a callback, and every callback runs on the loop thread, one at a time:
 *   - a bottom half (bh): a callback that any thread can schedule; an eventfd wakes the loop;
 *   - a timer: one shot, CLOCK_MONOTONIC;
 *   - a watch: a file descriptor that became readable (a ring's completion eventfd).
 *
 * A callback must not block: while it runs, nothing else on the loop does.  It may poll the loop
 * itself (loop_poll), which runs whatever else is ready from inside the callback.
 * The loop knows nothing of workers, requests or disks.
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

/* Creates the loop and starts its thread with all signals blocked, so that workers started from it
 * block them too.  Returns 0; -EMFILE, -ENFILE, -ENOMEM (epoll_create1(2), eventfd(2)) or -EAGAIN
 * (pthread_create(3)).  Any thread.
 */
int loop_new(struct loop **loop);

/* Stops the thread, joins it and frees the loop.  What was scheduled and not yet run does not run.
 * Every timer and watch must have been deleted; deleted bottom halves are freed here at the latest.
 * Blocks until the callback that is running has returned.  Any thread but the loop's.
 */
void loop_free(struct loop *loop);

/* True on the loop's own thread.  Any thread. */
bool loop_is_current(const struct loop *loop);

/* Runs fn(opaque) on the loop thread and returns when it has returned.  Whatever callback was
 * running before has then returned too, so an object deleted inside fn is not in use any more.
 * Any thread but the loop's.
 */
void loop_call(struct loop *loop, loop_fn *fn, void *opaque);

/* One turn of the loop from inside a callback: runs the bottom halves, timers and watches that are
 * ready; with wait, sleeps until there is one.  Returns whether anything ran.  Loop thread only.
 */
bool loop_poll(struct loop *loop, bool wait);

/* A bottom half, not scheduled.  Returns NULL when there is no memory.  Any thread. */
struct bh *bh_new(struct loop *loop, loop_fn *fn, void *opaque);

/* Makes the callback run once, soon.  Idempotent until it runs: scheduled a thousand times before
 * that, it runs once; scheduled again while it runs, it runs once more.  What the caller wrote
 * before is visible to the callback.  Any thread; does not block; calls write(2) on the eventfd only
 * when the loop sleeps.
 */
void bh_schedule(struct bh *bh);

/* Undoes bh_schedule if the callback has not started.  A caller on another thread does not know
 * whether it has; loop_call tells.  Any thread.
 */
void bh_cancel(struct bh *bh);

/* Frees the bottom half at the loop's next turn; its callback does not start again.  Nobody may use
 * it from now on.  Any thread, also from inside its own callback.
 */
void bh_delete(struct bh *bh);

/* A timer, not armed.  Returns NULL when there is no memory.  Any thread. */
struct loop_timer *loop_timer_new(struct loop *loop, loop_fn *fn, void *opaque);

/* Makes the callback run once, at least `ns` nanoseconds from now (rounded up to a millisecond,
 * epoll_wait(2)).  Arming an armed timer moves it.  Loop thread only.
 */
void loop_timer_arm(struct loop_timer *timer, uint64_t ns);

/* Loop thread only (loop_call reaches it), also from inside its own callback. */
void loop_timer_delete(struct loop_timer *timer);

/* Calls fn each time the loop finds fd readable (level triggered: fn must consume what made it so).
 * The caller keeps fd open until loop_watch_delete.  Returns 0, -ENOMEM, or -errno of epoll_ctl(2).
 * Loop thread only.
 */
int loop_watch_new(struct loop *loop, int fd, loop_fn *fn, void *opaque, struct loop_watch **watch);

/* Loop thread only, also from inside its own callback. */
void loop_watch_delete(struct loop_watch *watch);

#endif
