/* SPDX-License-Identifier: BSD-3-Clause */
/* Each task completes exactly once, whichever of worker, canceller and loop thread comes first, and
 * a completion callback may submit, cancel and poll the loop.
 *
 * Submitters and cancellers are threads of the test that start together behind a barrier.  Tasks
 * run on workers, and completion callbacks run on the loop thread.  A task that completes twice,
 * never, or with the result of another way fails a CHECK or hangs.
 */
#include "tests/lib/pool-test.h"

#define TASKS 64u

struct race {
    struct rig rig;
    struct job *jobs;
    _Atomic unsigned finished;
    _Atomic unsigned cancels_won; /* pool_cancel returned 0 */
    pthread_barrier_t start;
};

static void *submit_all(void *opaque)
{
    struct race *race = opaque;
    pthread_barrier_wait(&race->start);
    for (unsigned i = 0; i < TASKS; i++)
        CHECK(pool_submit(race->rig.pool, &race->jobs[i].task) == 0);
    return NULL;
}

/* Cancels every task three times, in whatever state each task is. */
static void *cancel_all(void *opaque)
{
    struct race *race = opaque;
    pthread_barrier_wait(&race->start);
    for (int again = 0; again < 3; again++) {
        for (unsigned i = 0; i < TASKS; i++) {
            int r = pool_cancel(race->rig.pool, &race->jobs[i].task);
            CHECK(r == 0 || r == -EBUSY || r == -EALREADY);
            atomic_fetch_add(&race->cancels_won, r == 0);
        }
    }
    return NULL;
}

static void invariant_1_exactly_one_completion_and_8_cancel_races(void **state)
{
    struct race race;
    struct pool_config config = {.max_threads = 3};
    unsigned cancelled_in_all = 0;

    rig_new(&race.rig, &config);
    for (int round = 0; round < ROUNDS(1500); round++) {
        pthread_t threads[3];
        unsigned cancelled = 0;

        race.finished = race.cancels_won = 0;
        race.jobs = jobs_new(TASKS, round % 2 ? POOL_SLOW : POOL_FAST, NULL, &race.finished);
        pthread_barrier_init(&race.start, NULL, 3);
        CHECK(pthread_create(&threads[0], NULL, submit_all, &race) == 0);
        CHECK(pthread_create(&threads[1], NULL, cancel_all, &race) == 0);
        CHECK(pthread_create(&threads[2], NULL, cancel_all, &race) == 0);
        for (int i = 0; i < 3; i++)
            pthread_join(threads[i], NULL);
        WAIT_UNTIL(atomic_load(&race.finished) == TASKS);
        for (unsigned i = 0; i < TASKS; i++) {
            struct job *job = &race.jobs[i];
            CHECK(job->finished == 1);
            CHECK(job->result == JOB_RESULT ? job->runs == 1
                                            : job->result == -ECANCELED && job->runs == 0);
            cancelled += job->result == -ECANCELED;
        }
        CHECK(cancelled == race.cancels_won);
        cancelled_in_all += cancelled;
        pthread_barrier_destroy(&race.start);
        free(race.jobs);
    }
    CHECK(cancelled_in_all > 0);
    check_totals(race.rig.pool);
    CHECK(counters_of(race.rig.pool).cancelled == cancelled_in_all);
    rig_free(&race.rig, POOL_DRAIN);
}

static void invariant_8_cancel_at_each_state(void **state)
{
    struct pool_config config = {.max_threads = 1};
    _Atomic unsigned finished = 0;
    struct job active, queued, never;
    struct rig rig;
    struct gate gate;

    rig_new(&rig, &config);
    gate_init(&gate);
    job_init(&active, POOL_FAST, &gate, &finished);
    job_init(&queued, POOL_FAST, NULL, &finished);
    job_init(&never, POOL_FAST, NULL, &finished);
    CHECK(pool_cancel(rig.pool, &never.task) == -EALREADY);
    CHECK(pool_submit(rig.pool, &active.task) == 0);
    gate_wait_for(&gate, 1);
    CHECK(pool_submit(rig.pool, &queued.task) == 0);
    CHECK(pool_cancel(rig.pool, &active.task) == -EBUSY);
    CHECK(pool_cancel(rig.pool, &queued.task) == 0);
    CHECK(pool_cancel(rig.pool, &queued.task) == -EALREADY);
    WAIT_UNTIL(atomic_load(&finished) == 1);
    CHECK(queued.result == -ECANCELED && queued.runs == 0);
    gate_open(&gate);
    WAIT_UNTIL(atomic_load(&finished) == 2);
    CHECK(pool_cancel(rig.pool, &active.task) == -EALREADY);
    CHECK(active.result == JOB_RESULT);

    /* The worker still runs tasks after a cancelled task left its token behind. */
    job_init(&never, POOL_FAST, NULL, &finished);
    CHECK(pool_submit(rig.pool, &never.task) == 0);
    WAIT_UNTIL(atomic_load(&finished) == 3);
    check_totals(rig.pool);
    rig_free(&rig, POOL_DRAIN);
    gate_destroy(&gate);
}

struct running_caller {
    struct pool *pool;
    struct job job;
    pthread_t thread;
};

static void *call_pool_run(void *opaque)
{
    struct running_caller *caller = opaque;
    CHECK(pool_run(caller->pool, &caller->job.task) == JOB_RESULT);
    return NULL;
}

static void start_caller(struct running_caller *caller, struct pool *pool, struct gate *gate)
{
    caller->pool = pool;
    job_init(&caller->job, POOL_FAST, gate, NULL);
    CHECK(pthread_create(&caller->thread, NULL, call_pool_run, caller) == 0);
}

/* Checks what pool_cancel says while the caller's task waits at the gate, and when it has ended. */
static void check_cancel_of(struct running_caller *caller, struct gate *gate)
{
    gate_wait_for(gate, 1);
    CHECK(pool_cancel(caller->pool, &caller->job.task) == -EBUSY);
    gate_open(gate);
    pthread_join(caller->thread, NULL);
    CHECK(pool_cancel(caller->pool, &caller->job.task) == -EALREADY);
    CHECK(atomic_load(&caller->job.runs) == 1);
}

/* A caller runs its task at once; then a caller takes its task back from the queue; then a worker
 * runs a caller's task.
 */
static void invariant_8_cancel_of_a_task_that_its_caller_waits_for(void **state)
{
    for (int helping = 0; helping < 2; helping++) {
        struct pool_config config = {.max_threads = 1, .helping = helping};
        _Atomic unsigned finished = 0;
        struct running_caller first, second;
        struct job holder;
        struct gate gates[3];
        struct rig rig;

        rig_new(&rig, &config);
        for (int i = 0; i < 3; i++)
            gate_init(&gates[i]);
        start_caller(&first, rig.pool, &gates[0]);
        check_cancel_of(&first, &gates[0]);

        job_init(&holder, POOL_FAST, &gates[1], &finished);
        CHECK(pool_submit(rig.pool, &holder.task) == 0);
        gate_wait_for(&gates[1], 1);
        start_caller(&second, rig.pool, &gates[2]);
        WAIT_UNTIL(counters_of(rig.pool).queued == 1);
        gate_open(&gates[1]);
        check_cancel_of(&second, &gates[2]);

        struct pool_counters c = counters_of(rig.pool);
        CHECK(helping ? c.helped == 1 && c.taken_back == 1 : c.worker_runs == 3);
        rig_free(&rig, POOL_DRAIN);
        for (int i = 0; i < 3; i++)
            gate_destroy(&gates[i]);
    }
}

/* --- From inside a callback --- */

struct callback {
    struct job job; /* first, because `done` casts the task */
    struct pool *pool;
    struct loop *loop;
    struct job other;
    _Atomic unsigned other_finished;
    int cancel_self, cancel_other;
    atomic_bool over;
};

static void cancel_inside(struct task *task)
{
    struct callback *c = (struct callback *)task;
    c->cancel_self = pool_cancel(c->pool, task);
    c->cancel_other = pool_cancel(c->pool, &c->other.task);
    atomic_store(&c->over, true);
}

static void invariant_8_cancel_inside_ones_own_callback(void **state)
{
    struct pool_config config = {.max_threads = 1};
    struct rig rig;
    struct gate gate;
    struct job blocker;
    _Atomic unsigned finished = 0;
    struct callback c = {.over = false};

    rig_new(&rig, &config);
    gate_init(&gate);
    c.pool = rig.pool;
    job_init(&blocker, POOL_FAST, &gate, &finished);
    job_init(&c.job, POOL_FAST, NULL, NULL);
    job_init(&c.other, POOL_FAST, NULL, &c.other_finished);
    c.job.task.done = cancel_inside;
    CHECK(pool_submit(rig.pool, &blocker.task) == 0);
    gate_wait_for(&gate, 1);
    CHECK(pool_submit(rig.pool, &c.job.task) == 0);
    CHECK(pool_submit(rig.pool, &c.other.task) == 0);
    CHECK(pool_cancel(rig.pool, &c.job.task) == 0);
    WAIT_UNTIL(atomic_load(&c.over) && atomic_load(&c.other_finished) == 1);
    CHECK(c.cancel_self == -EALREADY && c.cancel_other == 0 && c.other.result == -ECANCELED);
    gate_open(&gate);
    rig_free(&rig, POOL_DRAIN);
    gate_destroy(&gate);
}

/* Submits another task and polls the loop until that task has completed.  The other task may be
 * later in the same batch of completions.
 */
static void poll_inside(struct task *task)
{
    struct callback *c = (struct callback *)task;
    CHECK(pool_submit(c->pool, &c->other.task) == 0);
    while (atomic_load(&c->other_finished) == 0)
        loop_poll(c->loop, true);
    atomic_store(&c->over, true);
}

static void invariant_9_nested_poll_completes_tasks(void **state)
{
    struct pool_config config = {.max_threads = 4};
    struct rig rig;

    rig_new(&rig, &config);
    for (int round = 0; round < ROUNDS(3000); round++) {
        struct callback c[8];
        for (unsigned i = 0; i < 8; i++) {
            memset(&c[i], 0, sizeof c[i]);
            c[i].pool = rig.pool;
            c[i].loop = rig.loop;
            job_init(&c[i].job, POOL_FAST, NULL, NULL);
            job_init(&c[i].other, i % 2 ? POOL_SLOW : POOL_FAST, NULL, &c[i].other_finished);
            c[i].job.task.done = poll_inside;
        }
        for (unsigned i = 0; i < 8; i++)
            CHECK(pool_submit(rig.pool, &c[i].job.task) == 0);
        for (unsigned i = 0; i < 8; i++)
            WAIT_UNTIL(atomic_load(&c[i].over));
    }
    check_totals(rig.pool);
    rig_free(&rig, POOL_DRAIN);
}

/* The first callback of a batch of two waits for the second callback, which only a nested poll can
 * call.  The worker may store the second task's state long before it pushes the task, so the number
 * of turns has no bound.
 */
static void wait_for_the_rest(struct task *task)
{
    struct callback *c = (struct callback *)task;
    while (atomic_load(&c->other_finished) == 0)
        loop_poll(c->loop, false);
    atomic_store(&c->over, true);
}

/* Makes one batch of two completed tasks: this function runs on the loop thread, so nothing is
 * delivered before it returns.
 */
static void complete_two_at_once(void *opaque)
{
    struct callback *c = opaque;
    CHECK(pool_submit(c->pool, &c->job.task) == 0);
    CHECK(pool_submit(c->pool, &c->other.task) == 0);
    while (atomic_load(&c->other.task.state) != TASK_DONE)
        sleep_us(10);
}

static void invariant_9_nested_poll_delivers_the_rest_of_its_batch(void **state)
{
    struct pool_config config = {.max_threads = 1, .min_threads = 1};
    struct rig rig;

    rig_new(&rig, &config);
    /* Makes a worker now: later the loop thread, which creates workers, is busy. */
    struct job first;
    job_init(&first, POOL_FAST, NULL, NULL);
    CHECK(pool_submit(rig.pool, &first.task) == 0);
    WAIT_UNTIL(atomic_load(&first.finished) == 1);
    for (int round = 0; round < ROUNDS(1000); round++) {
        struct callback c = {.pool = rig.pool, .loop = rig.loop};
        job_init(&c.job, POOL_FAST, NULL, NULL);
        job_init(&c.other, POOL_FAST, NULL, &c.other_finished);
        c.job.task.done = wait_for_the_rest;
        loop_call(rig.loop, complete_two_at_once, &c);
        WAIT_UNTIL(atomic_load(&c.over));
    }
    rig_free(&rig, POOL_DRAIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invariant_1_exactly_one_completion_and_8_cancel_races),
        cmocka_unit_test(invariant_8_cancel_at_each_state),
        cmocka_unit_test(invariant_8_cancel_of_a_task_that_its_caller_waits_for),
        cmocka_unit_test(invariant_8_cancel_inside_ones_own_callback),
        cmocka_unit_test(invariant_9_nested_poll_completes_tasks),
        cmocka_unit_test(invariant_9_nested_poll_delivers_the_rest_of_its_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
