/* SPDX-License-Identifier: BSD-3-Clause */
/* The machine room, assembled: loop, pool and backend, as the parameters ask.  One per process while
 * nbdkit serves; another, for a moment, when a backend is only to be tried.
 */
#ifndef AIODISK_ENGINE_H
#define AIODISK_ENGINE_H

#include "backends/backend.h"
#include "plugin/config.h"

#define ENGINE_WHY_SIZE 512

struct engine {
    /* Set by engine_start before any request, read by any thread until engine_stop. */
    struct loop *loop;
    struct pool *pool;
    struct backend *backend;
};

/* Starts the three.  Returns 0, or -errno with nothing left running and the reason in `why`; on success
 * `why` says which backend was chosen.  Main thread, blocks.
 */
int engine_start(struct engine *engine, const struct config *cfg, const char *backend,
                 char why[ENGINE_WHY_SIZE]);

/* Waits for what is in flight, joins every thread, frees all.  Harmless when not started. */
void engine_stop(struct engine *engine);

/* Starts the engine with that backend, which proves itself by real I/O, and stops it.  Returns as engine_start. */
int engine_try(const struct config *cfg, const char *backend, char why[ENGINE_WHY_SIZE]);

#endif
