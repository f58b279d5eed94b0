/* SPDX-License-Identifier: BSD-3-Clause */
/* An intrusive list that many threads push to and one thread takes from.
 *
 * struct stack is the shared half: any thread pushes a link, without a lock.  struct queue is the
 * private half: one thread owns it.  stack_drain takes every pushed link in one atomic exchange and
 * appends the links to the queue, oldest first.  So links leave the queue in the order of the
 * pushes.
 *
 * A pushing thread and the owner synchronise by the stack alone: what the thread wrote before
 * stack_push is visible to the owner after stack_drain.  Nothing here blocks, and no function
 * touches a link that another thread may own.  Zeroed memory is an empty stack.
 */
#ifndef AIODISK_STACK_H
#define AIODISK_STACK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "pool/schedule-point.h"

/* A member of the listed object; container_of leads from the link to the object. */
struct link {
    /* Owned by the pushing thread until stack_push, then by the owner of the queue. */
    struct link *next;
};

struct stack {
    _Atomic(struct link *) newest; /* any thread */
};

struct queue {
    /* The owning thread only. */
    struct link *oldest;
    struct link **end; /* where the pointer to the next pushed link goes */
};

#define container_of(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

static inline void queue_init(struct queue *queue)
{
    queue->oldest = NULL;
    queue->end = &queue->oldest;
}

static inline void queue_push(struct queue *queue, struct link *link)
{
    link->next = NULL;
    *queue->end = link;
    queue->end = &link->next;
}

/* Removes and returns the oldest link, or returns NULL when the queue is empty. */
static inline struct link *queue_pop(struct queue *queue)
{
    struct link *link = queue->oldest;
    if (link) {
        queue->oldest = link->next;
        if (!queue->oldest)
            queue->end = &queue->oldest;
    }
    return link;
}

/* Any thread. */
static inline void stack_push(struct stack *stack, struct link *link)
{
    link->next = atomic_load(&stack->newest);
    SCHEDULE_POINT();
    while (!atomic_compare_exchange_weak(&stack->newest, &link->next, link))
        ;
    SCHEDULE_POINT();
}

/* Any thread.  The load is sequentially consistent, as the push and the drain are: the handshakes
 * between a thread that goes to sleep and a thread that pushes rely on that.
 */
static inline bool stack_is_empty(struct stack *stack)
{
    return !atomic_load(&stack->newest);
}

/* Appends every pushed link to the queue, oldest first.  The queue's owner only. */
static inline void stack_drain(struct stack *stack, struct queue *queue)
{
    struct link *link = atomic_exchange(&stack->newest, NULL);
    struct link *last = link, *oldest = NULL;
    SCHEDULE_POINT();
    while (link) {
        struct link *next = link->next;
        link->next = oldest;
        oldest = link;
        link = next;
    }
    if (oldest) {
        *queue->end = oldest;
        queue->end = &last->next;
    }
}

#endif
