/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of backends, opening one, and the two ways in: backend_submit and backend_run.
 *
 * Every function runs on its caller's thread.  backend_run sleeps in submit_and_wait until the loop
 * thread has finished the request.  This file decides whether the backend or the pool carries a
 * request (can_carry).  It never makes the call itself (request.c) and knows no kernel interface
 * (each is one file behind struct backend_ops).
 */
#include "backends/backend.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "pool/schedule-point.h"

/* The first is the default.  Threads come first because they measured fastest in most cases and
 * because nothing that a container, a seccomp filter or a limit forbids can stop them.
 * fio-jobs/README.md has the figures; tests/bench/backend.py and fio-jobs/compare measure them
 * again.
 */
static const struct backend_ops *const table[] = {
    &threads_ops,
#ifdef HAVE_LIBURING
    &uring_ops,
#endif
#ifdef HAVE_LIBAIO
    &laio_ops,
#endif
};

#define BACKENDS (sizeof table / sizeof table[0])

const char *backend_name(size_t i)
{
    return i < BACKENDS ? table[i]->name : NULL;
}

/* --- Opening and closing --- */

int backend_open(const char *name, const struct backend_config *config, struct backend **backend,
                 char *why, size_t why_size)
{
    for (size_t i = 0; i < BACKENDS; i++) {
        if (strcmp(table[i]->name, name) != 0)
            continue;
        int r = table[i]->open(config, backend);
        if (r < 0)
            snprintf(why, why_size, "backend=%s does not work here: %s", name, strerror(-r));
        return r;
    }
    snprintf(why, why_size, "backend=%s: unknown, or not compiled in", name);
    return -EINVAL;
}

void backend_init(struct backend *backend, const struct backend_ops *ops,
                  const struct backend_config *config)
{
    backend->ops = ops;
    backend->config = *config;
    atomic_init(&backend->users, 1);
    waiter_init(&backend->unused);
}

static void enter(struct backend *backend, unsigned users)
{
    atomic_fetch_add_explicit(&backend->users, users, memory_order_relaxed);
}

void backend_leave(struct backend *backend)
{
    SCHEDULE_POINT();
    if (atomic_fetch_sub_explicit(&backend->users, 1, memory_order_acq_rel) == 1)
        waiter_wake(&backend->unused);
}

void backend_close(struct backend *backend)
{
    backend_leave(backend);
    waiter_wait(&backend->unused);
    waiter_destroy(&backend->unused);
    SCHEDULE_POINT();
    backend->ops->close(backend);
}

unsigned backend_max_blocking_calls(const struct backend *backend)
{
    struct pool_counters counters;

    pool_read_counters(backend->config.pool, &counters);
    return counters.max_threads;
}

bool backend_callers_perform(const struct backend *backend)
{
    return backend->ops->run;
}

/* --- The two ways in --- */

static void prepare(struct backend *backend, struct request *request)
{
    request->backend = backend;
    request->waiter = NULL;
    request->progress = NULL;
    request->client_op = progress_op();
    request->submitted_ns = 0;
    request->given_back = false;
    request->result = 0;
    request->transferred = 0;
}

static bool can_carry(const struct backend *backend, const struct request *request)
{
    return !backend->ops->takes || backend->ops->takes(backend, request);
}

int backend_submit(struct backend *backend, struct request *request)
{
    int r;

    /* One for the request and one for this call, which may still touch the backend when the
     * request has ended already.
     */
    enter(backend, 2);
    prepare(backend, request);
    SCHEDULE_POINT();
    if (can_carry(backend, request))
        r = backend->ops->submit(backend, request);
    else
        r = request_submit_to_pool(request);
    SCHEDULE_POINT();
    if (r < 0)
        backend_leave(backend);
    backend_leave(backend);
    return r;
}

static int submit_and_wait(struct backend *backend, struct request *request)
{
    struct waiter waiter;

    waiter_init(&waiter);
    request->waiter = &waiter;
    progress_set(request->progress, PLACE_QUEUE);
    int r = backend->ops->submit(backend, request);
    SCHEDULE_POINT();
    if (r == 0) {
        waiter_wait(&waiter);
        r = request->result;
    }
    waiter_destroy(&waiter);
    return request->given_back ? request_run_on_pool(request) : r;
}

int backend_run(struct backend *backend, struct request *request)
{
    int r;

    enter(backend, 1);
    prepare(backend, request);
    request->progress = progress_here;
    if (!can_carry(backend, request))
        r = request_run_on_pool(request);
    else if (backend->ops->run)
        r = backend->ops->run(backend, request);
    else
        r = submit_and_wait(backend, request);
    progress_set(request->progress, PLACE_PLUGIN);
    backend_leave(backend);
    return r;
}
