/* SPDX-License-Identifier: BSD-3-Clause */
/* Starts and stops loop, pool and backend in the right order.  See runtime.h.
 *
 * The pool delivers completions on the loop, and the backend hands requests to both.  So the loop
 * is started first and stopped last.
 *
 * Runs on nbdkit's main thread: runtime_try before nbdkit forks, runtime_start after the fork.  A
 * thread does not survive a fork, so runtime_try never leaves one behind.
 */
#include <stdio.h>
#include <string.h>

#include "plugin/runtime.h"

int runtime_start(struct runtime *runtime, const struct config *cfg, const char *backend,
                  char why[RUNTIME_WHY_SIZE])
{
    struct pool_config pool = {
        .max_threads = cfg->max_threads,
        .min_threads = cfg->min_threads,
        .helping = cfg->dispatch == DISPATCH_AUTO,
    };

    memset(runtime, 0, sizeof *runtime);
    int r = loop_new(&runtime->loop);
    if (r < 0) {
        snprintf(why, RUNTIME_WHY_SIZE, "the loop thread cannot be started: %s", strerror(-r));
        return r;
    }
    r = pool_new(runtime->loop, &pool, &runtime->pool);
    if (r < 0) {
        snprintf(why, RUNTIME_WHY_SIZE, "the worker pool cannot be made: %s", strerror(-r));
        goto fail;
    }
    struct backend_config backends = {
        .loop = runtime->loop,
        .pool = runtime->pool,
        .queue_depth = cfg->queue_depth,
        .direct = cfg->cache == CACHE_NONE,
        .try_cached = cfg->dispatch == DISPATCH_AUTO && cfg->cache == CACHE_DEFAULT,
    };
    r = backend_open(backend, &backends, &runtime->backend, why, RUNTIME_WHY_SIZE);
    if (r < 0)
        goto fail;
    return 0;

fail:
    runtime_stop(runtime);
    return r;
}

void runtime_stop(struct runtime *runtime)
{
    if (runtime->backend)
        backend_close(runtime->backend);
    if (runtime->pool)
        pool_free(runtime->pool, POOL_DRAIN);
    if (runtime->loop)
        loop_free(runtime->loop);
    memset(runtime, 0, sizeof *runtime);
}

int runtime_try(const struct config *cfg, const char *backend, char why[RUNTIME_WHY_SIZE])
{
    struct runtime runtime;

    int r = runtime_start(&runtime, cfg, backend, why);
    if (r == 0)
        runtime_stop(&runtime);
    return r;
}

void runtime_print_counters(const struct runtime *runtime)
{
    struct pool_counters c;

    pool_read_counters(runtime->pool, &c);
    fprintf(
        stderr,
        "aiodisk: counters: submitted=%llu enqueued=%llu worker_runs=%llu helped=%llu "
        "taken_back=%llu stranded_runs=%llu stranded_errors=%llu cancelled=%llu completions=%llu "
        "threads_created=%llu spawn_failures=%llu\n",
        (unsigned long long)c.submitted, (unsigned long long)c.enqueued,
        (unsigned long long)c.worker_runs, (unsigned long long)c.helped,
        (unsigned long long)c.taken_back, (unsigned long long)c.stranded_runs,
        (unsigned long long)c.stranded_errors, (unsigned long long)c.cancelled,
        (unsigned long long)c.completions, (unsigned long long)c.threads_created,
        (unsigned long long)c.spawn_failures);
}
