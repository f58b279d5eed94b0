/* SPDX-License-Identifier: BSD-3-Clause */
/* One thread that waits for one event, on its own stack.
 *
 * waiter_wake is the waking thread's last touch: as soon as it has posted, the waiting thread may
 * return and its stack, with the waiter and usually the request, is gone.  Everything that the
 * waiting thread is to see must be written before waiter_wake.
 */
#ifndef AIODISK_WAITER_H
#define AIODISK_WAITER_H

#include <assert.h>
#include <errno.h>
#include <semaphore.h>

struct waiter {
    sem_t wake; /* posted once */
};

static inline void waiter_init(struct waiter *waiter)
{
    sem_init(&waiter->wake, 0, 0);
}

/* Any thread, once.  Nothing of the waiter may be touched afterwards. */
static inline void waiter_wake(struct waiter *waiter)
{
    sem_post(&waiter->wake);
}

/* Blocks until waiter_wake.  A signal does not end the wait. */
static inline void waiter_wait(struct waiter *waiter)
{
    while (sem_wait(&waiter->wake) < 0)
        assert(errno == EINTR);
}

/* After waiter_wait, or when nobody will call waiter_wake. */
static inline void waiter_destroy(struct waiter *waiter)
{
    sem_destroy(&waiter->wake);
}

#endif
