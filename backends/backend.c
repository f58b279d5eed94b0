/* SPDX-License-Identifier: BSD-3-Clause */
/* What all backends have in common: the table of them, choosing one, and "sync is submit + wait".
 *
 * Runs on the submitter's thread and on the loop thread (completions).
 * Knows no ring: each is one file behind struct backend_ops.
 */
#include "backends/backend.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "pool/waiter.h"

/* In the order in which backend=auto tries them.  Threads come first because they measured fastest, and they
 * cannot fail; README.md, "Which backend", has the figures, tests/bench-backend and fio-jobs/compare the commands.
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

/* --- Choosing one --- */

static int open_named(const char *name, const struct backend_config *config,
                      struct backend **backend, char *why, size_t why_size)
{
    for (size_t i = 0; i < BACKENDS; i++) {
        if (strcmp(table[i]->name, name) != 0)
            continue;
        int r = table[i]->open(config, backend);
        if (r < 0)
            snprintf(why, why_size, "backend=%s does not work here: %s", name, strerror(-r));
        else
            snprintf(why, why_size, "backend %s, as named", name);
        return r;
    }
    snprintf(why, why_size, "backend=%s: unknown, or not compiled in", name);
    return -EINVAL;
}

static void append(char *list, size_t size, const char *name, const char *what)
{
    size_t used = strlen(list);

    snprintf(list + used, size - used, "; %s: %s", name, what);
}

/* Opens the first that works.  Those behind it are not tried: to make and end a ring takes long. */
static int open_auto(const struct backend_config *config, struct backend **backend, char *why,
                     size_t why_size)
{
    const char *chosen = NULL;
    char others[256] = "";
    int r = -ENOTSUP;

    for (size_t i = 0; i < BACKENDS; i++) {
        if (chosen) {
            append(others, sizeof others, table[i]->name, "measured slower, not tried");
            continue;
        }
        r = table[i]->open(config, backend);
        if (r == 0)
            chosen = table[i]->name;
        else
            append(others, sizeof others, table[i]->name, strerror(-r));
    }
    if (chosen)
        snprintf(why, why_size,
                 "backend %s, chosen by auto: measured fastest with cache=%s of those that work%s",
                 chosen, config->direct ? "none" : "default", others);
    else
        snprintf(why, why_size, "no backend works here%s", others);
    return r;
}

int backend_open(const char *name, const struct backend_config *config, struct backend **backend,
                 char *why, size_t why_size)
{
    if (strcmp(name, "auto") == 0)
        return open_auto(config, backend, why, why_size);
    return open_named(name, config, backend, why, why_size);
}

void backend_close(struct backend *backend)
{
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

static bool takes(const struct backend *backend, const struct request *request)
{
    if (request->op == REQUEST_CALL)
        return !backend->ops->takes;
    return !backend->ops->takes || backend->ops->takes(backend, request);
}

static void begin(struct backend *backend, struct request *request)
{
    request->pool = backend->config.pool;
    request->waiter = NULL;
    request->given_back = false;
    request->result = 0;
    request->transferred = 0;
}

int backend_submit(struct backend *backend, struct request *request)
{
    begin(backend, request);
    if (!takes(backend, request))
        return request_submit_to_pool(request);
    return backend->ops->submit(backend, request);
}

static int submit_and_wait(struct backend *backend, struct request *request)
{
    struct waiter waiter;

    waiter_init(&waiter);
    request->waiter = &waiter;
    int r = backend->ops->submit(backend, request);
    if (r == 0) {
        waiter_wait(&waiter);
        r = request->result;
    }
    waiter_destroy(&waiter);
    return request->given_back ? request_run_on_pool(request) : r;
}

int backend_run(struct backend *backend, struct request *request)
{
    begin(backend, request);
    if (!takes(backend, request))
        return request_run_on_pool(request);
    if (backend->ops->run)
        return backend->ops->run(backend, request);
    return submit_and_wait(backend, request);
}
