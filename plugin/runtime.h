/* SPDX-License-Identifier: BSD-3-Clause */
/* The runtime: an event loop, a worker pool and a backend, started together as the parameters ask.
 *
 * plugin.c has one runtime per process while nbdkit serves.  runtime_try starts another for a
 * moment, to find out whether a backend works on this machine.
 */
#ifndef AIODISK_RUNTIME_H
#define AIODISK_RUNTIME_H

#include "backends/backend.h"
#include "plugin/config.h"

/* Bytes of a line that tells why the runtime could not be started. */
#define RUNTIME_WHY_SIZE 512

/* Main thread: set by runtime_start, cleared by runtime_stop.  Read by any thread in between. */
struct runtime {
    struct loop *loop;
    struct pool *pool;
    struct backend *backend;
};

/* Starts loop, pool and backend.  `backend` is a name that backend_name() knows.  Returns 0; or
 * -errno of loop_new, pool_new or backend_open, with everything stopped and the reason in `why`.
 * Main thread. Blocks: a ring is opened on the loop thread and proved by a real read.
 */
int runtime_start(struct runtime *runtime, const struct config *cfg, const char *backend,
                  char why[RUNTIME_WHY_SIZE]);

/* Waits for the requests in flight, joins every thread and frees everything.  Does nothing if the
 * runtime is not started (all fields NULL).  Main thread, after the last request has been
 * submitted.
 */
void runtime_stop(struct runtime *runtime);

/* Starts a runtime with this backend and stops it again.  Returns what runtime_start returns, with
 * the same `why`.  Leaves no thread and no descriptor behind, so nbdkit may fork afterwards.  Main
 * thread.
 */
int runtime_try(const struct config *cfg, const char *backend, char why[RUNTIME_WHY_SIZE]);

/* Prints the counters of the pool to standard error in one line (-D aiodisk.stats=1).  The runtime
 * is started.  Any thread.
 */
void runtime_print_counters(const struct runtime *runtime);

#endif
