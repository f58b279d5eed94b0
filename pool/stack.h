/* SPDX-License-Identifier: BSD-3-Clause */
/* An intrusive list that many threads push to and one thread takes from.
 *
 * struct stack is the shared half: any thread pushes a link, without a lock.  struct queue is the
 * private half: one thread owns it.  stack_drain moves everything that was pushed to the end of the
 * queue in one atomic exchange, oldest first, so what was pushed leaves in FIFO order.
 *
 * The pushing threads and the owner synchronise by the stack alone: what a thread wrote before
 * stack_push is visible to the owner after stack_drain.  Nothing here blocks, and no function here
 * touches a link after another thread may own it.
 */
#ifndef AIODISK_STACK_H
#define AIODISK_STACK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* Lies inside the object that is listed; container_of finds the object again. */
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
    struct link **end; /* where the next link goes */
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

/* The oldest link, which leaves the queue, or NULL. */
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
    while (!atomic_compare_exchange_weak(&stack->newest, &link->next, link))
        ;
}

/* Any thread.  Sequentially consistent, so the sleep and wake-up handshakes may rely on it. */
static inline bool stack_is_empty(struct stack *stack)
{
    return !atomic_load(&stack->newest);
}

/* The queue's owner: moves what was pushed to the end of the queue, oldest first. */
static inline void stack_drain(struct stack *stack, struct queue *queue)
{
    struct link *link = atomic_exchange(&stack->newest, NULL);
    struct link *last = link, *oldest = NULL;
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
