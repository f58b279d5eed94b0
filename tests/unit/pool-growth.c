/* SPDX-License-Identifier: BSD-3-Clause */
/* How the pool grows on demand.
 *
 * A burst has as many workers as the bound allows, whatever workers are idle or starting already,
 * and a task that waits for a later one cannot deadlock while a slot is free.  What happens when
 * threads cannot be created is in pool-stranded.c.
 */
#include "tests/lib/pool-test.h"

#define BURST 64u

static void wait_for_one_idle_worker(struct rig *rig)
{
    _Atomic unsigned finished = 0;
    struct job job;
    job_init(&job, POOL_FAST, NULL, &finished);
    CHECK(pool_submit(rig->pool, &job.task) == 0);
    WAIT_UNTIL(atomic_load(&finished) == 1 && counters_of(rig->pool).idle == 1);
}

static void invariant_6_a_burst_with_one_idle_worker_reaches_the_bound(void **state)
{
    for (int round = 0; round < ROUNDS(200); round++) {
        struct pool_config config = {.max_threads = round % 2 ? BURST : 17};
        struct rig rig;
        rig_new(&rig, &config);
        if (round % 3)
            wait_for_one_idle_worker(&rig);
        jobs_run_at_once(rig.pool, BURST, config.max_threads);
        check_totals(rig.pool);
        rig_free(&rig, POOL_DRAIN);
    }
}

/* Two tasks; a cannot finish before b has run. */
struct pair {
    struct job a, b;
    struct gate b_ran;
};

static int run_a(struct task *task)
{
    struct pair *pair = container_of(task, struct pair, a.task);
    gate_wait_for(&pair->b_ran, 1);
    return JOB_RESULT;
}

static int run_b(struct task *task)
{
    struct pair *pair = container_of(task, struct pair, b.task);
    gate_pass(&pair->b_ran);
    return JOB_RESULT;
}

static void invariant_7_a_waits_for_b_with_one_idle_worker(void **state)
{
    struct pool_config config = {.max_threads = 4};
    for (int round = 0; round < ROUNDS(2000); round++) {
        _Atomic unsigned finished = 0;
        struct rig rig;
        struct pair pair;

        rig_new(&rig, &config);
        wait_for_one_idle_worker(&rig);
        gate_init(&pair.b_ran);
        gate_open(&pair.b_ran);
        job_init(&pair.a, POOL_FAST, NULL, &finished);
        job_init(&pair.b, POOL_FAST, NULL, &finished);
        pair.a.task.run = run_a;
        pair.b.task.run = run_b;
        CHECK(pool_submit(rig.pool, &pair.a.task) == 0);
        CHECK(pool_submit(rig.pool, &pair.b.task) == 0);
        WAIT_UNTIL(atomic_load(&finished) == 2);
        rig_free(&rig, POOL_DRAIN);
        gate_destroy(&pair.b_ran);
    }
}

/* A pool has 1 to POOL_MAX_THREADS slots, and keeps no more threads than it may have. */
static void bounds_that_are_none(void **state)
{
    static const unsigned bounds[][2] = {{0, 0}, {3, 2}, {0, POOL_MAX_THREADS + 1}};
    const struct pool_config good = {.max_threads = POOL_MAX_THREADS};
    struct rig rig;
    struct pool *pool = NULL;
    rig_new(&rig, &good);
    for (unsigned i = 0; i < 3; i++) {
        const struct pool_config config = {.min_threads = bounds[i][0],
                                           .max_threads = bounds[i][1]};
        CHECK(pool_new(rig.loop, &config, &pool) == -EINVAL && !pool);
        CHECK(pool_set_bounds(rig.pool, bounds[i][0], bounds[i][1]) == -EINVAL);
    }
    rig_free(&rig, POOL_DRAIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invariant_6_a_burst_with_one_idle_worker_reaches_the_bound),
        cmocka_unit_test(invariant_7_a_waits_for_b_with_one_idle_worker),
        cmocka_unit_test(bounds_that_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
