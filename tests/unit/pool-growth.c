/* SPDX-License-Identifier: BSD-3-Clause */
/* How the pool grows, also when threads cannot be created.
 *
 * No task waits for ever.  No counter counts a thread that does not exist.  Growth resumes when
 * creation works again.  --wrap=pthread_create makes the creation of threads fail.
 */
#include "tests/lib/pool-test.h"

typedef void *thread_fn(void *);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, thread_fn *fn, void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, thread_fn *fn, void *arg);

#define NEVER_FAIL UINT32_MAX

/* How many more creations succeed before all fail. */
static _Atomic unsigned creations_left = NEVER_FAIL;
static _Atomic unsigned creations_failed;

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, thread_fn *fn, void *arg)
{
    unsigned left = atomic_load(&creations_left);
    while (left != NEVER_FAIL) {
        if (left == 0) {
            atomic_fetch_add(&creations_failed, 1);
            return EAGAIN;
        }
        if (atomic_compare_exchange_weak(&creations_left, &left, left - 1))
            break;
    }
    return __real_pthread_create(thread, attr, fn, arg);
}

static void allow_creations(unsigned n)
{
    atomic_store(&creations_left, n);
    atomic_store(&creations_failed, 0);
}

#define BURST 64u

struct caller {
    struct rig *rig;
    struct job job;
    pthread_t thread;
};

static void *call_pool_run(void *opaque)
{
    struct caller *caller = opaque;
    CHECK(pool_run(caller->rig->pool, &caller->job.task) == JOB_RESULT);
    CHECK(atomic_load(&caller->job.runs) == 1);
    return NULL;
}

static void start_callers(struct caller *callers, unsigned n, struct rig *rig, enum pool_lane lane,
                          struct gate *gate)
{
    for (unsigned i = 0; i < n; i++) {
        callers[i].rig = rig;
        job_init(&callers[i].job, lane, gate, NULL);
        CHECK(__real_pthread_create(&callers[i].thread, NULL, call_pool_run, &callers[i]) == 0);
    }
}

static void join_callers(struct caller *callers, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        pthread_join(callers[i].thread, NULL);
}

static void invariant_3_creation_fails_with_no_worker(void **state)
{
    for (int helping = 0; helping < 2; helping++) {
        for (int round = 0; round < 20; round++) {
            struct pool_config config = {.max_threads = 4, .helping = helping};
            struct rig rig;
            static struct caller callers[BURST];
            _Atomic unsigned failed = 0;
            unsigned accepted = 0;

            rig_new(&rig, &config);
            allow_creations(0);
            struct job *jobs = jobs_new(BURST, POOL_FAST, NULL, &failed);
            start_callers(callers, BURST, &rig, round % 2 ? POOL_SLOW : POOL_FAST, NULL);
            for (unsigned i = 0; i < BURST; i++) {
                int r = pool_submit(rig.pool, &jobs[i].task);
                CHECK(r == 0 || r == -EAGAIN);
                accepted += r == 0;
            }
            join_callers(callers, BURST);
            WAIT_UNTIL(atomic_load(&failed) == accepted);
            for (unsigned i = 0; i < BURST; i++)
                CHECK(atomic_load(&jobs[i].runs) == 0 &&
                      (!jobs[i].finished || jobs[i].result == -EAGAIN));
            struct pool_counters c = counters_of(rig.pool);
            CHECK(c.threads == 0 && c.worker_runs == 0);
            CHECK(c.stranded_runs + c.helped + c.taken_back == BURST &&
                  c.stranded_errors == accepted);
            check_totals(rig.pool);

            allow_creations(NEVER_FAIL);
            rig_free(&rig, POOL_DRAIN);
            free(jobs);
        }
    }
}

static void invariant_4_creation_fails_with_a_worker(void **state)
{
    struct pool_config config = {.max_threads = BURST};
    struct rig rig;
    _Atomic unsigned finished = 0;
    struct gate gate;

    rig_new(&rig, &config);
    allow_creations(1);
    struct job *jobs = jobs_new(200, POOL_FAST, NULL, &finished);
    jobs_submit(rig.pool, jobs, 200);
    WAIT_UNTIL(atomic_load(&finished) == 200);
    for (unsigned i = 0; i < 200; i++)
        CHECK(jobs[i].result == JOB_RESULT);
    CHECK(counters_of(rig.pool).threads <= 1);

    /* The only worker waits at the gate.  The other workers come by the retry timer alone, because
     * no task is submitted and none finishes meanwhile.
     */
    gate_init(&gate);
    struct job *held = jobs_new(8, POOL_FAST, &gate, &finished);
    jobs_submit(rig.pool, held, 8);
    gate_wait_for(&gate, 1);
    WAIT_UNTIL(atomic_load(&creations_failed) > 0);
    allow_creations(NEVER_FAIL);
    gate_wait_for(&gate, 8);
    gate_open(&gate);
    WAIT_UNTIL(atomic_load(&finished) == 208);
    check_totals(rig.pool);
    rig_free(&rig, POOL_DRAIN);
    gate_destroy(&gate);
    free(jobs);
    free(held);
}

static void invariant_5_creation_fails_in_the_chain_then_free_returns(void **state)
{
    for (unsigned allowed = 0; allowed < 40; allowed++) {
        struct pool_config config = {.max_threads = BURST};
        enum pool_free_policy policy = allowed % 2 ? POOL_DRAIN : POOL_CANCEL;
        _Atomic unsigned finished = 0;
        unsigned accepted = 0;
        struct rig rig;

        rig_new(&rig, &config);
        allow_creations(allowed);
        struct job *jobs = jobs_new(BURST, POOL_FAST, NULL, &finished);
        for (unsigned i = 0; i < BURST; i++)
            accepted += pool_submit(rig.pool, &jobs[i].task) == 0;
        if (allowed % 3 == 0)
            sleep_us(500);
        pool_free(rig.pool, policy);
        CHECK(atomic_load(&finished) == accepted);
        allow_creations(NEVER_FAIL);
        loop_free(rig.loop);
        free(jobs);
    }
}

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invariant_3_creation_fails_with_no_worker),
        cmocka_unit_test(invariant_4_creation_fails_with_a_worker),
        cmocka_unit_test(invariant_5_creation_fails_in_the_chain_then_free_returns),
        cmocka_unit_test(invariant_6_a_burst_with_one_idle_worker_reaches_the_bound),
        cmocka_unit_test(invariant_7_a_waits_for_b_with_one_idle_worker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
