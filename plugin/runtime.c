/* SPDX-License-Identifier: BSD-3-Clause */
/* Starts and stops loop, pool and backend in the right order.  See engine.h.
 *
 * Runs on nbdkit's main thread: engine_try before the fork, where no thread may be left behind; engine_start
 * after it.
 */
#include <stdio.h>
#include <string.h>

#include "plugin/runtime.h"

int engine_start(struct engine *engine, const struct config *cfg, const char *backend,
                 char why[ENGINE_WHY_SIZE])
{
    struct pool_config pool = {
        .max_threads = cfg->max_threads,
        .min_threads = cfg->min_threads,
        .helping = cfg->dispatch == DISPATCH_AUTO,
    };

    memset(engine, 0, sizeof *engine);
    int r = loop_new(&engine->loop);
    if (r < 0) {
        snprintf(why, ENGINE_WHY_SIZE, "the loop thread cannot be started: %s", strerror(-r));
        return r;
    }
    r = pool_new(engine->loop, &pool, &engine->pool);
    if (r < 0) {
        snprintf(why, ENGINE_WHY_SIZE, "the worker pool cannot be made: %s", strerror(-r));
        goto fail;
    }
    struct backend_config backends = {
        .loop = engine->loop,
        .pool = engine->pool,
        .queue_depth = cfg->queue_depth,
        .direct = cfg->cache == CACHE_NONE,
        .try_cached = cfg->dispatch == DISPATCH_AUTO && cfg->cache == CACHE_DEFAULT,
    };
    r = backend_open(backend, &backends, &engine->backend, why, ENGINE_WHY_SIZE);
    if (r < 0)
        goto fail;
    return 0;

fail:
    engine_stop(engine);
    return r;
}

void engine_stop(struct engine *engine)
{
    if (engine->backend)
        backend_close(engine->backend);
    if (engine->pool)
        pool_free(engine->pool, POOL_DRAIN);
    if (engine->loop)
        loop_free(engine->loop);
    memset(engine, 0, sizeof *engine);
}

int engine_try(const struct config *cfg, const char *backend, char why[ENGINE_WHY_SIZE])
{
    struct engine engine;

    int r = engine_start(&engine, cfg, backend, why);
    if (r == 0)
        engine_stop(&engine);
    return r;
}
