/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parameters mean for the machine rooms of the images.  See runtime.h.
 *
 * Runs on nbdkit's main thread, and on nbdkit's threads when an image is opened.  A thread does not
 * survive a fork, so runtime_try, which runs before nbdkit forks, never leaves one behind.
 */
#include "plugin/runtime.h"

#include <stdio.h>

struct room_config runtime_room_config(const struct config *cfg, const char *backend)
{
    return (struct room_config){
        .backend = backend,
        .max_threads = cfg->max_threads,
        .min_threads = cfg->min_threads,
        .queue_depth = cfg->queue_depth,
        .helping = cfg->dispatch == DISPATCH_AUTO,
    };
}

int runtime_try(const struct config *cfg, const char *backend, char why[ROOM_WHY_SIZE])
{
    struct room_config room_config = runtime_room_config(cfg, backend);
    struct room room;

    int r = room_open(&room, &room_config, cfg->cache == CACHE_NONE, NULL, why);
    if (r == 0)
        room_close(&room);
    return r;
}

void runtime_print_counters(void)
{
    struct pool_counters c;

    room_read_totals(&c);
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
