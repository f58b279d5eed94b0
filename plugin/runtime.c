/* SPDX-License-Identifier: BSD-3-Clause */
/* Starts and stops loop, pool and backend in the right order.  See runtime.h.
 *
 * Runs on nbdkit's main thread: runtime_try before the fork, where no thread may be left behind; runtime_start
 * after it.
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
