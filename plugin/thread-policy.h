/* SPDX-License-Identifier: BSD-3-Clause */
/* Which scheduling policy the threads that carry requests have (sched(7)).
 *
 * An ordinary thread that wakes up preempts whoever runs, and nbdkit's threads and the client wake each other several times for
 * each request.  A SCHED_BATCH one waits its turn, so requests and replies gather.
 */
#ifndef AIODISK_THREAD_POLICY_H
#define AIODISK_THREAD_POLICY_H

enum thread_load {
    LOAD_DIRECT, /* any request on an image with O_DIRECT */
    LOAD_CACHED_WRITE,
    LOAD_CACHED, /* any other */
};

/* At the start of each request, on its thread.  Sets the thread's policy, unless somebody has given it one of his own.
 * Never fails: a policy that is refused is not asked for again until another is wanted.
 */
void thread_policy_enter(enum thread_load load);

/* At its end.  Any thread. */
void thread_policy_leave(void);

#endif
