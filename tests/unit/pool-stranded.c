/* SPDX-License-Identifier: BSD-3-Clause */
/* What the pool does when threads cannot be created.
 *
 * No task waits for ever, and no caller waits for a worker that is busy while a slot is free.  No
 * counter counts a thread that does not exist.  Growth resumes when creation works again.
 * --wrap=pthread_create makes the creation of threads fail; --wrap=loop_timer_arm shows the
 * back-off between two attempts.
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
            /* The retry timer counts a worker while it tries to create one. */
            WAIT_UNTIL(counters_of(rig.pool).threads == 0);
            struct pool_counters c = counters_of(rig.pool);
            CHECK(c.worker_runs == 0 && c.stranded_runs + c.helped + c.taken_back == BURST &&
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

/* --- Creation fails while workers are busy --- */

/* Makes the pool's only worker wait at the gate for as long as the test wants, and then makes every
 * creation fail.  Returns when one has failed for the task `stuck`, which no worker can take.
 */
static void keep_the_only_worker(struct rig *rig, struct job *busy, struct job *stuck)
{
    allow_creations(1);
    CHECK(pool_submit(rig->pool, &busy->task) == 0);
    gate_wait_for(busy->gate, 1);
    CHECK(pool_submit(rig->pool, &stuck->task) == 0);
    WAIT_UNTIL(atomic_load(&creations_failed) > 0);
}

static void invariant_22_callers_do_not_wait_for_a_busy_worker(void **state)
{
    for (int variant = 0; variant < 8; variant++) {
        struct pool_config config = {.max_threads = 4, .helping = variant % 2};
        enum pool_lane lane = variant & 2 ? POOL_SLOW : POOL_FAST;
        enum pool_lane stuck_lane = variant & 4 ? POOL_SLOW : POOL_FAST;
        _Atomic unsigned finished = 0;
        struct caller callers[8];
        struct job busy, stuck;
        struct gate gate;
        struct rig rig;

        rig_new(&rig, &config);
        gate_init(&gate);
        job_init(&busy, POOL_FAST, &gate, &finished);
        job_init(&stuck, stuck_lane, NULL, &finished);
        keep_the_only_worker(&rig, &busy, &stuck);
        start_callers(callers, 8, &rig, lane, NULL);
        join_callers(callers, 8);
        struct pool_counters c = counters_of(rig.pool);
        CHECK(c.worker_runs == 1 && c.queued == 1 && atomic_load(&stuck.runs) == 0);
        CHECK(c.stranded_runs + c.helped + c.taken_back == 8);
        if (!config.helping || lane == stuck_lane)
            CHECK(c.stranded_runs == 8);

        /* The worker comes back and takes the task that waits for it. */
        gate_open(&gate);
        WAIT_UNTIL(atomic_load(&finished) == 2);
        CHECK(stuck.result == JOB_RESULT && counters_of(rig.pool).worker_runs == 2);
        CHECK(counters_of(rig.pool).threads_created == 1);
        check_totals(rig.pool);
        allow_creations(NEVER_FAIL);
        rig_free(&rig, POOL_DRAIN);
        gate_destroy(&gate);
    }
}

static _Atomic unsigned next_place;

struct placed {
    struct caller caller;
    unsigned place;
};

static int take_place(struct task *task)
{
    struct placed *placed = container_of(task, struct placed, caller.job.task);
    gate_pass(placed->caller.job.gate);
    placed->place = atomic_fetch_add(&next_place, 1);
    atomic_fetch_add(&placed->caller.job.runs, 1);
    return JOB_RESULT;
}

/* A worker and a caller keep both slots.  More callers queue behind a task that no worker can take.
 * They get the slot of the first caller in their order.
 */
static void invariant_22_callers_overtake_in_order_among_themselves(void **state)
{
    for (int round = 0; round < ROUNDS(100); round++) {
        struct pool_config config = {.max_threads = 2, .helping = round % 2};
        _Atomic unsigned finished = 0;
        struct placed placed[8];
        struct job busy, stuck;
        struct gate busy_gate, gate;
        struct rig rig;

        rig_new(&rig, &config);
        gate_init(&busy_gate);
        gate_init(&gate);
        atomic_store(&next_place, 0);
        job_init(&busy, POOL_FAST, &busy_gate, &finished);
        job_init(&stuck, POOL_FAST, NULL, &finished);
        keep_the_only_worker(&rig, &busy, &stuck);
        for (unsigned i = 0; i < 8; i++) {
            struct caller *caller = &placed[i].caller;
            caller->rig = &rig;
            job_init(&caller->job, POOL_FAST, &gate, NULL);
            caller->job.task.run = take_place;
            CHECK(__real_pthread_create(&caller->thread, NULL, call_pool_run, caller) == 0);
            if (i == 0)
                gate_wait_for(&gate, 1);
            else
                WAIT_UNTIL(counters_of(rig.pool).queued == 1 + i);
        }
        gate_open(&gate);
        for (unsigned i = 0; i < 8; i++) {
            pthread_join(placed[i].caller.thread, NULL);
            CHECK(placed[i].place == i);
        }
        CHECK(atomic_load(&stuck.runs) == 0 && counters_of(rig.pool).stranded_runs == 8);
        gate_open(&busy_gate);
        WAIT_UNTIL(atomic_load(&finished) == 2);
        allow_creations(NEVER_FAIL);
        rig_free(&rig, POOL_DRAIN);
        gate_destroy(&busy_gate);
        gate_destroy(&gate);
    }
}

/* An idle worker takes tasks as ever while another one is busy and creation fails. */
static void invariant_22_idle_workers_still_come(void **state)
{
    struct pool_config config = {.max_threads = 4};
    _Atomic unsigned finished = 0;
    struct job first, second, more[20];
    struct gate first_gate, second_gate;
    struct rig rig;

    rig_new(&rig, &config);
    gate_init(&first_gate);
    gate_init(&second_gate);
    allow_creations(2);
    job_init(&first, POOL_FAST, &first_gate, &finished);
    job_init(&second, POOL_FAST, &second_gate, &finished);
    CHECK(pool_submit(rig.pool, &first.task) == 0);
    CHECK(pool_submit(rig.pool, &second.task) == 0);
    gate_wait_for(&first_gate, 1);
    gate_wait_for(&second_gate, 1);
    for (unsigned i = 0; i < 20; i++) {
        job_init(&more[i], i % 2 ? POOL_SLOW : POOL_FAST, NULL, &finished);
        CHECK(pool_submit(rig.pool, &more[i].task) == 0);
    }
    WAIT_UNTIL(atomic_load(&creations_failed) > 0);
    CHECK(atomic_load(&finished) == 0);
    gate_open(&second_gate);
    WAIT_UNTIL(atomic_load(&finished) == 21);
    for (unsigned round = 0; round < ROUNDS(500); round++) {
        struct job mine;
        job_init(&mine, POOL_FAST, NULL, NULL);
        CHECK(pool_submit(rig.pool, &more[round % 20].task) == 0);
        CHECK(pool_run(rig.pool, &mine.task) == JOB_RESULT);
        WAIT_UNTIL(atomic_load(&finished) == 22 + round);
    }
    gate_open(&first_gate);
    WAIT_UNTIL(atomic_load(&finished) == 22 + ROUNDS(500));
    check_totals(rig.pool);
    allow_creations(NEVER_FAIL);
    rig_free(&rig, POOL_DRAIN);
    gate_destroy(&first_gate);
    gate_destroy(&second_gate);
}

struct storm {
    struct rig rig;
    _Atomic unsigned submitted, finished;
    atomic_bool over;
};

static void free_when_done(struct task *task)
{
    struct job *job = (struct job *)task;
    CHECK(task->result == JOB_RESULT || task->result == -EAGAIN || task->result == -ECANCELED);
    atomic_fetch_add(job->total, 1);
    free(job);
}

/* Whether the storm has met what it is for. */
static bool storm_met_all(struct pool *pool)
{
    struct pool_counters c = counters_of(pool);
    return c.stranded_runs > 0 && c.worker_runs > 0 && c.spawn_failures > 0;
}

static void *storm_main(void *opaque)
{
    struct storm *storm = opaque;
    for (unsigned i = 0; i < ROUNDS(2000u) || !storm_met_all(storm->rig.pool); i++) {
        enum pool_lane lane = rand() % 4 ? POOL_FAST : POOL_SLOW;
        if (rand() % 2) {
            struct job mine;
            job_init(&mine, lane, NULL, NULL);
            CHECK(pool_run(storm->rig.pool, &mine.task) == JOB_RESULT);
            continue;
        }
        struct job *job = jobs_new(1, lane, NULL, &storm->finished);
        job->task.done = free_when_done;
        int r = pool_submit(storm->rig.pool, &job->task);
        CHECK(r == 0 || r == -EAGAIN);
        if (r == 0)
            atomic_fetch_add(&storm->submitted, 1);
        else
            free(job);
    }
    return NULL;
}

/* Lets a few creations succeed now and then, and moves the bounds. */
static void *disturb_creations(void *opaque)
{
    struct storm *storm = opaque;
    while (!atomic_load(&storm->over)) {
        allow_creations(rand() % 3);
        CHECK(pool_set_bounds(storm->rig.pool, 0, 1 + rand() % 6) == 0);
        sleep_us(rand() % 3000);
    }
    return NULL;
}

/* Callers and submitters on both lanes, while creation fails more often than not and idle workers
 * leave at once.  The pool asserts at each unlock that no task waits for a slot that it may have.
 */
static void invariant_22_no_task_is_forgotten_while_creation_comes_and_goes(void **state)
{
    for (int helping = 0; helping < 2; helping++) {
        struct pool_config config = {
            .max_threads = 6, .helping = helping, .idle_timeout_ns = 300000};
        struct storm storm = {.over = false};
        pthread_t threads[6], disturber;

        rig_new(&storm.rig, &config);
        CHECK(__real_pthread_create(&disturber, NULL, disturb_creations, &storm) == 0);
        for (int i = 0; i < 6; i++)
            CHECK(__real_pthread_create(&threads[i], NULL, storm_main, &storm) == 0);
        for (int i = 0; i < 6; i++)
            pthread_join(threads[i], NULL);
        WAIT_UNTIL(atomic_load(&storm.finished) == atomic_load(&storm.submitted));
        check_totals(storm.rig.pool);
        atomic_store(&storm.over, true);
        pthread_join(disturber, NULL);
        allow_creations(NEVER_FAIL);
        rig_free(&storm.rig, POOL_DRAIN);
    }
}

/* --- The back-off --- */

/* --wrap=loop_timer_arm: for how long the retry timer was armed each time. */
void __real_loop_timer_arm(struct loop_timer *timer, uint64_t ns);
void __wrap_loop_timer_arm(struct loop_timer *timer, uint64_t ns);
static _Atomic uint64_t armed_ns[1000];
static _Atomic unsigned times_armed;

void __wrap_loop_timer_arm(struct loop_timer *timer, uint64_t ns)
{
    unsigned i = atomic_load(&times_armed);
    if (i < 1000)
        atomic_store(&armed_ns[i], ns);
    atomic_store(&times_armed, i + 1);
    __real_loop_timer_arm(timer, ns / 100); /* to save time, in all tests of this program */
}

static void nothing(void *opaque)
{
}

/* Returns when the retry timer, if it was armed, has fired.  The second call runs in a later turn
 * of the loop than the first, and the loop looks at its timers in between.
 */
static void let_the_timer_fire(struct rig *rig)
{
    sleep_us(20000);
    loop_call(rig->loop, nothing, NULL);
    loop_call(rig->loop, nothing, NULL);
}

/* Failures one after the other double the back-off up to one second.  A failure that follows a
 * time-out with nothing to create, or a creation that worked, starts over at 10 ms.
 */
static void the_back_off_doubles_only_while_creation_fails(void **state)
{
    struct pool_config config = {.max_threads = 4};
    _Atomic unsigned finished = 0;
    struct job busy, stuck;
    struct gate gate;
    struct rig rig;

    rig_new(&rig, &config);
    gate_init(&gate);
    job_init(&busy, POOL_FAST, &gate, &finished);
    job_init(&stuck, POOL_FAST, NULL, &finished);
    atomic_store(&times_armed, 0);
    keep_the_only_worker(&rig, &busy, &stuck);
    WAIT_UNTIL(atomic_load(&times_armed) >= 9);
    for (unsigned i = 0; i < 9; i++)
        CHECK(armed_ns[i] == (i < 7 ? 10000000u << i : 1000000000u));
    for (unsigned i = 1; i <= 5; i++) {
        /* Nothing is left to do for another worker when the timer fires. */
        CHECK(pool_cancel(rig.pool, &stuck.task) == 0);
        WAIT_UNTIL(atomic_load(&finished) == i);
        let_the_timer_fire(&rig);
        unsigned before = atomic_load(&times_armed);
        CHECK(pool_submit(rig.pool, &stuck.task) == 0);
        WAIT_UNTIL(atomic_load(&times_armed) > before);
        CHECK(armed_ns[before] == 10000000u);
    }
    /* Creation works.  Later it fails again. */
    allow_creations(NEVER_FAIL);
    WAIT_UNTIL(atomic_load(&finished) == 6 && counters_of(rig.pool).idle == 1);
    let_the_timer_fire(&rig);
    allow_creations(0);
    struct job *more = jobs_new(2, POOL_FAST, &gate, &finished);
    unsigned before = atomic_load(&times_armed);
    jobs_submit(rig.pool, more, 2);
    WAIT_UNTIL(atomic_load(&times_armed) > before);
    CHECK(armed_ns[before] == 10000000u);
    gate_open(&gate);
    WAIT_UNTIL(atomic_load(&finished) == 9);
    allow_creations(NEVER_FAIL);
    rig_free(&rig, POOL_DRAIN);
    gate_destroy(&gate);
    free(more);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invariant_3_creation_fails_with_no_worker),
        cmocka_unit_test(invariant_4_creation_fails_with_a_worker),
        cmocka_unit_test(invariant_5_creation_fails_in_the_chain_then_free_returns),
        cmocka_unit_test(invariant_22_callers_do_not_wait_for_a_busy_worker),
        cmocka_unit_test(invariant_22_callers_overtake_in_order_among_themselves),
        cmocka_unit_test(invariant_22_idle_workers_still_come),
        cmocka_unit_test(invariant_22_no_task_is_forgotten_while_creation_comes_and_goes),
        cmocka_unit_test(the_back_off_doubles_only_while_creation_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
