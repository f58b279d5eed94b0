/* SPDX-License-Identifier: BSD-3-Clause */
/* The scheduling policy of nbdkit's threads while they carry requests: SCHED_BATCH or SCHED_OTHER
 * (sched(7)).
 *
 * A SCHED_OTHER thread that wakes up preempts the running thread.  nbdkit's threads and the client
 * wake each other several times for each request, so they interrupt each other often.  A
 * SCHED_BATCH thread does not preempt, so requests and replies gather and are handled several at a
 * time.
 */
#ifndef AIODISK_THREAD_POLICY_H
#define AIODISK_THREAD_POLICY_H

enum thread_load {
    LOAD_DIRECT,       /* any request on an image with O_DIRECT */
    LOAD_CACHED_WRITE, /* a write through the page cache */
    LOAD_CACHED,       /* any other request through the page cache */
};

/* Call at the start of each request, on the thread that carries the request.  Sets the policy of
 * that thread, unless somebody else has set another policy.  Never fails: if the kernel refuses a
 * policy, the thread keeps the old one and does not ask again until the wanted policy changes.
 */
void thread_policy_enter(enum thread_load load);

/* Call at the end of the same request, on the same thread. */
void thread_policy_leave(void);

#endif
