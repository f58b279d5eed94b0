/* SPDX-License-Identifier: BSD-3-Clause */
/* The machine room, assembled: loop, pool and backend, as the parameters ask.  One per process while
 * nbdkit serves; another, for a moment, when a backend is only to be tried.
 */
#ifndef AIODISK_RUNTIME_H
#define AIODISK_RUNTIME_H

#include "backends/backend.h"
#include "plugin/config.h"

#define RUNTIME_WHY_SIZE 512

struct runtime {
    /* Set by runtime_start before any request, read by any thread until runtime_stop. */
    struct loop *loop;
    struct pool *pool;
    struct backend *backend;
};

/* Starts the three.  Returns 0, or -errno with nothing left running and the reason in `why`; on success
 * `why` says which backend was chosen.  Main thread, blocks.
 */
int runtime_start(struct runtime *runtime, const struct config *cfg, const char *backend,
                  char why[RUNTIME_WHY_SIZE]);

/* Waits for what is in flight, joins every thread, frees all.  Harmless when not started. */
void runtime_stop(struct runtime *runtime);

/* Starts the runtime with that backend, which proves itself by real I/O, and stops it.  Returns as runtime_start. */
int runtime_try(const struct config *cfg, const char *backend, char why[RUNTIME_WHY_SIZE]);

#endif
