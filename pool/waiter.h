/* SPDX-License-Identifier: BSD-3-Clause */
/* One thread that waits for one event, in a variable on its own stack.
 *
 * waiter_wake is the waking thread's last touch of the waiter and of all else on that stack: as
 * soon as the semaphore is posted, the waiting thread may return, and its stack, with the waiter
 * and usually the request, is gone.  So the waking thread writes everything that the waiting thread
 * is to see before waiter_wake.
 */
#ifndef AIODISK_WAITER_H
#define AIODISK_WAITER_H

#include <assert.h>
#include <errno.h>
#include <semaphore.h>

struct waiter {
    sem_t wake; /* posted once, by any thread */
};

static inline void waiter_init(struct waiter *waiter)
{
    sem_init(&waiter->wake, 0, 0);
}

/* Ends the wait.  Called once, by any thread, which touches nothing of the waiter afterwards. */
static inline void waiter_wake(struct waiter *waiter)
{
    sem_post(&waiter->wake);
}

/* Blocks until waiter_wake.  A signal does not end the wait.  The waiting thread only. */
static inline void waiter_wait(struct waiter *waiter)
{
    while (sem_wait(&waiter->wake) < 0)
        assert(errno == EINTR);
}

/* Called after waiter_wait, or when no thread will call waiter_wake. */
static inline void waiter_destroy(struct waiter *waiter)
{
    sem_destroy(&waiter->wake);
}

#endif
