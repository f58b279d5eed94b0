/* SPDX-License-Identifier: BSD-3-Clause */
/* A shared object with a pool in it, as a plugin is one.  The test pool-free loads the object,
 * calls use_pool, and unloads the object again at once.  A worker that outlives pool_free would
 * then run unmapped code, and the test would crash.
 *
 * use_pool runs on the thread that the test calls it on, its tasks run on workers.  Nothing here
 * keeps a thread or a descriptor after use_pool has returned.
 */
#include "tests/lib/pool-test.h"

/* Creates a pool, runs 16 tasks on workers and frees the pool.  Any thread. */
void use_pool(unsigned round) __attribute__((visibility("default")));

void use_pool(unsigned round)
{
    struct pool_config config = {.max_threads = 8, .helping = round % 2};
    _Atomic unsigned finished = 0;
    struct rig rig;

    rig_new(&rig, &config);
    struct job *jobs = jobs_new(16, POOL_FAST, NULL, &finished);
    jobs_submit(rig.pool, jobs, 16);
    rig_free(&rig, POOL_DRAIN);
    CHECK(atomic_load(&finished) == 16);
    free(jobs);
}
