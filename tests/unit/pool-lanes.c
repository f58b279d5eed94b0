/* SPDX-License-Identifier: BSD-3-Clause */
/* Order and fairness.
 *
 * Each lane is a FIFO.  A flood of slow tasks does not keep the fast tasks waiting.  A waiting
 * caller that runs its own task overtakes no task of its lane.
 *
 * A task at a closed gate keeps its slot, so the tests decide when a slot comes free; no test
 * relies on how long a task takes.
 */
#include "tests/lib/pool-test.h"

static void invariant_18_a_flood_of_slow_tasks_does_not_stall_fast_ones(void **state)
{
    for (unsigned max = 2; max <= 9; max++) {
        struct pool_config config = {.max_threads = max, .helping = max % 2};
        _Atomic unsigned finished = 0, fast_finished = 0;
        struct rig rig;
        struct gate gate;

        gate_init(&gate);
        rig_new(&rig, &config);
        struct job *slow = jobs_new(200, POOL_SLOW, &gate, &finished);
        jobs_submit(rig.pool, slow, 200);
        gate_wait_for(&gate, max / 2);
        /* The slow lane's share is used up, and no slot of it comes free.  Fast tasks finish all
         * the same, by pool_submit and by pool_run.
         */
        struct job *fast = jobs_new(500, POOL_FAST, NULL, &fast_finished);
        for (unsigned i = 0; i < 500; i++) {
            struct job mine;
            CHECK(pool_submit(rig.pool, &fast[i].task) == 0);
            job_init(&mine, POOL_FAST, NULL, NULL);
            CHECK(pool_run(rig.pool, &mine.task) == JOB_RESULT);
        }
        WAIT_UNTIL(atomic_load(&fast_finished) == 500);
        CHECK(counters_of(rig.pool).running_slow == max / 2);
        CHECK(atomic_load(&finished) == 0);
        gate_open(&gate);
        WAIT_UNTIL(atomic_load(&finished) == 200);
        check_totals(rig.pool);
        rig_free(&rig, POOL_DRAIN);
        gate_destroy(&gate);
        free(slow);
        free(fast);
    }
}

/* --- Order --- */

static _Atomic unsigned next_place[POOL_LANES];

struct placed {
    struct job job;
    unsigned place;
};

static int take_place(struct task *task)
{
    struct placed *p = (struct placed *)task;
    p->place = atomic_fetch_add(&next_place[task->lane], 1);
    return JOB_RESULT;
}

#define ORDERED 2000u

static void invariant_20_first_come_first_served_within_a_lane(void **state)
{
    struct pool_config config = {.max_threads = 1};
    static struct placed placed[ORDERED];
    _Atomic unsigned finished = 0;
    struct job holder;
    struct rig rig;
    struct gate gate;

    for (int round = 0; round < ROUNDS(20); round++) {
        rig_new(&rig, &config);
        gate_init(&gate);
        atomic_store(&finished, 0);
        atomic_store(&next_place[POOL_FAST], 0);
        atomic_store(&next_place[POOL_SLOW], 0);
        job_init(&holder, POOL_FAST, &gate, &finished);
        CHECK(pool_submit(rig.pool, &holder.task) == 0);
        gate_wait_for(&gate, 1);
        for (unsigned i = 0; i < ORDERED; i++) {
            job_init(&placed[i].job, rand() % 2 ? POOL_SLOW : POOL_FAST, NULL, &finished);
            placed[i].job.task.run = take_place;
            CHECK(pool_submit(rig.pool, &placed[i].job.task) == 0);
            if (i == ORDERED / 2)
                gate_open(&gate);
        }
        WAIT_UNTIL(atomic_load(&finished) == ORDERED + 1);
        unsigned expected[POOL_LANES] = {0};
        for (unsigned i = 0; i < ORDERED; i++)
            CHECK(placed[i].place == expected[placed[i].job.task.lane]++);
        rig_free(&rig, POOL_DRAIN);
        gate_destroy(&gate);
    }
}

struct waiting_caller {
    struct pool *pool;
    struct placed placed;
    pthread_t thread;
};

static void *run_placed(void *opaque)
{
    struct waiting_caller *w = opaque;
    CHECK(pool_run(w->pool, &w->placed.job.task) == JOB_RESULT);
    return NULL;
}

/* Callers wait behind a task that holds the only slot.  Each caller enters after the one before it
 * is queued.  The callers take their tasks back in that order.
 */
static void invariant_20_callers_take_back_in_order(void **state)
{
    for (int round = 0; round < ROUNDS(200); round++) {
        struct pool_config config = {.max_threads = 1, .helping = true};
        struct waiting_caller callers[8];
        _Atomic unsigned finished = 0;
        struct job holder;
        struct rig rig;
        struct gate gate;

        rig_new(&rig, &config);
        gate_init(&gate);
        atomic_store(&next_place[POOL_FAST], 0);
        job_init(&holder, POOL_FAST, &gate, &finished);
        CHECK(pool_submit(rig.pool, &holder.task) == 0);
        gate_wait_for(&gate, 1);
        for (unsigned i = 0; i < 8; i++) {
            callers[i].pool = rig.pool;
            job_init(&callers[i].placed.job, POOL_FAST, NULL, NULL);
            callers[i].placed.job.task.run = take_place;
            CHECK(pthread_create(&callers[i].thread, NULL, run_placed, &callers[i]) == 0);
            WAIT_UNTIL(counters_of(rig.pool).queued == i + 1);
        }
        gate_open(&gate);
        for (unsigned i = 0; i < 8; i++) {
            pthread_join(callers[i].thread, NULL);
            CHECK(callers[i].placed.place == i);
        }
        CHECK(counters_of(rig.pool).taken_back == 8);
        rig_free(&rig, POOL_DRAIN);
        gate_destroy(&gate);
    }
}

/* A task that pool_run has carried is submitted next: nothing of the wait is left in it. */
static void a_task_can_be_run_and_then_submitted(void **state)
{
    struct rig rig;
    struct job job;
    rig_new(&rig, &(struct pool_config){.max_threads = 2});
    for (int round = 0; round < ROUNDS(200); round++) {
        job_init(&job, POOL_FAST, NULL, NULL);
        CHECK(pool_run(rig.pool, &job.task) == JOB_RESULT);
        CHECK(pool_submit(rig.pool, &job.task) == 0);
        WAIT_UNTIL(atomic_load(&job.finished) == 1);
        CHECK(atomic_load(&job.runs) == 2);
    }
    rig_free(&rig, POOL_DRAIN);
}

/* The tally knows how long a task was in the queue. */
static void the_time_in_the_queue_is_counted(void **state)
{
    const uint64_t rest_ns = 20 * 1000 * 1000;
    struct tally *tally = tally_new(POOL_TALLY_END);
    struct pool_config config = {.max_threads = 1, .tally = tally};
    _Atomic unsigned finished = 0;
    struct job jobs[2];
    struct rig rig;
    struct gate gate;

    rig_new(&rig, &config);
    gate_init(&gate);
    uint64_t begin = tally_now();
    for (unsigned i = 0; i < 2; i++) {
        job_init(&jobs[i], POOL_FAST, &gate, &finished);
        CHECK(pool_submit(rig.pool, &jobs[i].task) == 0);
        gate_wait_for(&gate, 1);
    }
    usleep(rest_ns / 1000);
    gate_open(&gate);
    WAIT_UNTIL(atomic_load(&finished) == 2);
    uint64_t waited =
        tally_read(tally, POOL_TALLY_WAIT + POOL_FAST * TALLY_HISTOGRAM + TALLY_BUCKETS);
    CHECK(waited >= rest_ns && waited <= 2 * (tally_now() - begin));
    rig_free(&rig, POOL_DRAIN);
    gate_destroy(&gate);
    tally_free(tally);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invariant_18_a_flood_of_slow_tasks_does_not_stall_fast_ones),
        cmocka_unit_test(invariant_20_first_come_first_served_within_a_lane),
        cmocka_unit_test(invariant_20_callers_take_back_in_order),
        cmocka_unit_test(a_task_can_be_run_and_then_submitted),
        cmocka_unit_test(the_time_in_the_queue_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
