/* SPDX-License-Identifier: BSD-3-Clause */
/* A shared object with a pool in it, for test-pool-free to load, use and unload at once. */
#include "tests/lib/pool-test.h"

void use_pool(unsigned round) __attribute__((visibility("default")));

void use_pool(unsigned round)
{
    struct pool_config config = {.max_threads = 8, .helping = round % 2};
    _Atomic unsigned finished = 0;
    struct rig rig;

    rig_new(&rig, &config);
    struct job *jobs = jobs_new(16, POOL_FAST, NULL, &finished);
    for (unsigned i = 0; i < 16; i++)
        CHECK(pool_submit(rig.pool, &jobs[i].task) == 0);
    rig_free(&rig, POOL_DRAIN);
    CHECK(atomic_load(&finished) == 16);
    free(jobs);
}
