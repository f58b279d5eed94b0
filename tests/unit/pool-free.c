/* SPDX-License-Identifier: BSD-3-Clause */
/* The end of a pool, and its bounds.
 *
 * pool_free works with tasks in every state and with either policy, also while other threads
 * submit.  The bounds may change under load.  When pool_free has returned, no thread is left that
 * could run unmapped code.
 */
#include "tests/lib/pool-test.h"

#include <dlfcn.h>

#define TASKS 64u

static void invariant_2_identities_hold_and_all_is_zero_at_the_end(void **state)
{
    /* The pool asserts the identities at each unlock, in every build.  This test makes the load. */
    struct pool_config config = {.max_threads = 5, .helping = true};
    _Atomic unsigned finished = 0;
    struct rig rig;

    rig_new(&rig, &config);
    for (int round = 0; round < ROUNDS(500); round++) {
        struct job *jobs = jobs_new(TASKS, round % 3 ? POOL_FAST : POOL_SLOW, NULL, &finished);
        struct job mine;
        atomic_store(&finished, 0);
        for (unsigned i = 0; i < TASKS; i++) {
            CHECK(pool_submit(rig.pool, &jobs[i].task) == 0);
            job_init(&mine, i % 2 ? POOL_FAST : POOL_SLOW, NULL, NULL);
            CHECK(pool_run(rig.pool, &mine.task) == JOB_RESULT);
        }
        WAIT_UNTIL(atomic_load(&finished) == TASKS);
        free(jobs);
    }
    check_totals(rig.pool);
    struct pool_counters c = counters_of(rig.pool);
    CHECK(c.submitted == 2 * TASKS * (uint64_t)ROUNDS(500) && c.helped + c.taken_back > 0 &&
          c.worker_runs > 0);
    CHECK(c.starting == 0 && c.idle == c.threads && c.threads <= 5);
    rig_free(&rig, POOL_DRAIN);
}

/* Opens the gate after a while, once enough tasks have finished.  While the gate is closed, only a
 * cancelled task can finish.
 */
struct opener {
    struct gate *gate;
    unsigned after_us;
    _Atomic unsigned *finished;
    unsigned cancelled; /* how many tasks must have finished */
};

static void *open_later(void *opaque)
{
    struct opener *opener = opaque;
    sleep_us(opener->after_us);
    WAIT_UNTIL(atomic_load(opener->finished) >= opener->cancelled);
    gate_open(opener->gate);
    return NULL;
}

/* Frees a pool with active and queued tasks in both lanes and with starting workers. */
static void free_with_work(enum pool_free_policy policy, unsigned round)
{
    struct pool_config config = {.max_threads = 1 + round % 16};
    _Atomic unsigned finished = 0;
    struct rig rig;
    struct gate gate;
    pthread_t thread;
    unsigned ran = 0;

    gate_init(&gate);
    rig_new(&rig, &config);
    struct job *jobs = jobs_new(TASKS, POOL_FAST, &gate, &finished);
    for (unsigned i = 0; i < TASKS; i++) {
        jobs[i].task.lane = i % 3 ? POOL_FAST : POOL_SLOW;
        CHECK(pool_submit(rig.pool, &jobs[i].task) == 0);
    }
    if (round % 2)
        gate_wait_for(&gate, 1);
    struct opener opener = {&gate, round % 5 * 100, &finished,
                            policy == POOL_CANCEL ? TASKS - config.max_threads : 0};
    CHECK(pthread_create(&thread, NULL, open_later, &opener) == 0);
    pool_free(rig.pool, policy);
    CHECK(atomic_load(&finished) == TASKS);
    for (unsigned i = 0; i < TASKS; i++) {
        CHECK(jobs[i].finished == 1);
        CHECK(jobs[i].runs ? jobs[i].result == JOB_RESULT : jobs[i].result == -ECANCELED);
        ran += jobs[i].runs;
    }
    CHECK(policy == POOL_CANCEL || ran == TASKS);
    CHECK(policy == POOL_DRAIN || ran <= config.max_threads);
    pthread_join(thread, NULL);
    loop_free(rig.loop);
    gate_destroy(&gate);
    free(jobs);
}

static void invariant_10_free_with_work_in_every_state(void **state)
{
    for (unsigned round = 0; round < ROUNDS(1000u); round++)
        free_with_work(round & 1 ? POOL_DRAIN : POOL_CANCEL, round / 2);
}

struct polling {
    struct job job;
    struct loop *loop;
    atomic_bool entered, returned;
};

static void poll_for_a_while(struct task *task)
{
    struct polling *polling = (struct polling *)task;
    atomic_store(&polling->entered, true);
    for (int turn = 0; turn < 20; turn++) {
        loop_poll(polling->loop, false);
        sleep_us(100);
    }
    atomic_store(&polling->returned, true);
}

/* The loop_call of pool_free could run inside a callback that polls the loop.  pool_free waits for
 * the callback before it calls.
 */
static void invariant_10_free_waits_for_a_callback_that_polls(void **state)
{
    struct pool_config config = {.max_threads = 2};
    for (int round = 0; round < ROUNDS(100); round++) {
        struct polling polling = {.returned = false};
        struct rig rig;

        rig_new(&rig, &config);
        polling.loop = rig.loop;
        job_init(&polling.job, POOL_FAST, NULL, NULL);
        polling.job.task.done = poll_for_a_while;
        CHECK(pool_submit(rig.pool, &polling.job.task) == 0);
        if (round % 2)
            WAIT_UNTIL(atomic_load(&polling.entered));
        pool_free(rig.pool, POOL_DRAIN);
        CHECK(atomic_load(&polling.returned));
        loop_free(rig.loop);
    }
}

struct shutdown {
    struct rig rig;
    pthread_barrier_t start;
    _Atomic unsigned accepted, finished;
    struct gate holding; /* keeps pool_free waiting until every submitter was refused */
};

static void count_and_free(struct task *task)
{
    struct job *job = (struct job *)task;
    atomic_fetch_add(job->total, 1);
    free(job);
}

static void *submit_until_refused(void *opaque)
{
    struct shutdown *s = opaque;
    int r;
    pthread_barrier_wait(&s->start);
    do {
        struct job *job = jobs_new(1, POOL_FAST, NULL, &s->finished);
        job->task.done = count_and_free;
        r = pool_submit(s->rig.pool, &job->task);
        if (r == 0)
            atomic_fetch_add(&s->accepted, 1);
        else
            free(job);
        CHECK(r == 0 || r == -ESHUTDOWN);
    } while (r == 0);
    return NULL;
}

static void *run_until_refused(void *opaque)
{
    struct shutdown *s = opaque;
    int r;
    pthread_barrier_wait(&s->start);
    do {
        struct job job;
        job_init(&job, POOL_SLOW, NULL, NULL);
        r = pool_run(s->rig.pool, &job.task);
        CHECK(r == JOB_RESULT || r == -ESHUTDOWN || r == -ECANCELED);
        CHECK(job.runs == (r == JOB_RESULT));
    } while (r == JOB_RESULT);
    return NULL;
}

static void *free_pool(void *opaque)
{
    struct shutdown *s = opaque;
    pthread_barrier_wait(&s->start);
    pool_free(s->rig.pool, POOL_DRAIN);
    return NULL;
}

static void invariant_11_submission_while_it_shuts_down(void **state)
{
    for (int round = 0; round < ROUNDS(500); round++) {
        struct pool_config config = {.max_threads = 4, .helping = round % 2};
        struct shutdown s = {.accepted = 0};
        struct job holder;
        pthread_t threads[5];

        rig_new(&s.rig, &config);
        gate_init(&s.holding);
        pthread_barrier_init(&s.start, NULL, 5);
        job_init(&holder, POOL_FAST, &s.holding, NULL);
        CHECK(pool_submit(s.rig.pool, &holder.task) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL,
                                 i < 2 ? submit_until_refused : run_until_refused, &s) == 0);
        CHECK(pthread_create(&threads[4], NULL, free_pool, &s) == 0);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
        gate_open(&s.holding);
        pthread_join(threads[4], NULL);
        CHECK(s.finished == s.accepted);
        pthread_barrier_destroy(&s.start);
        gate_destroy(&s.holding);
        loop_free(s.rig.loop);
    }
}

/* --- Bounds under load --- */

struct load {
    struct pool *pool;
    atomic_bool stop;
    _Atomic unsigned now; /* tasks that run */
    /* The round in the upper 32 bits, the most tasks that ran at a time in that round below. */
    _Atomic uint64_t most;
};

#define MOST(value) ((unsigned)(value))

/* A task that counted itself in an earlier round, under a larger bound, must not report that number
 * as this round's.  The task reads `most` first; the compare-and-exchange fails if the round has
 * changed since then.
 */
static int count_concurrency(struct task *task)
{
    struct load *load = (struct load *)((struct job *)task)->gate;
    uint64_t most = atomic_load(&load->most), round = most >> 32;
    unsigned now = atomic_fetch_add(&load->now, 1) + 1;
    while (most >> 32 == round && now > MOST(most) &&
           !atomic_compare_exchange_weak(&load->most, &most, round << 32 | now))
        ;
    sleep_us(20);
    atomic_fetch_sub(&load->now, 1);
    return JOB_RESULT;
}

static void *load_main(void *opaque)
{
    struct load *load = opaque;
    while (!atomic_load(&load->stop)) {
        struct job job;
        job_init(&job, rand() % 2 ? POOL_SLOW : POOL_FAST, NULL, NULL);
        job.gate = (struct gate *)load;
        job.task.run = count_concurrency;
        CHECK(pool_run(load->pool, &job.task) == JOB_RESULT);
    }
    return NULL;
}

static void invariant_19_bounds_change_under_load(void **state)
{
    for (int helping = 0; helping < 2; helping++) {
        struct pool_config config = {.max_threads = 16, .helping = helping};
        static const unsigned bounds[] = {1, 7, 2, 16, 3, 1, 12};
        pthread_t threads[16];
        struct rig rig;

        rig_new(&rig, &config);
        struct load load = {.pool = rig.pool};
        for (int i = 0; i < 16; i++)
            CHECK(pthread_create(&threads[i], NULL, load_main, &load) == 0);
        for (int round = 0; round < ROUNDS(140); round++) {
            unsigned max = bounds[round % 7];
            CHECK(pool_set_bounds(rig.pool, 0, max) == 0);
            /* Tasks that run above a smaller bound may finish first. */
            WAIT_UNTIL(counters_of(rig.pool).running <= max);
            atomic_store(&load.most, (uint64_t)(round + 1) << 32);
            WAIT_UNTIL(MOST(atomic_load(&load.most)) > 0);
            sleep_us(1000);
            CHECK(MOST(atomic_load(&load.most)) <= max);
        }
        CHECK(pool_set_bounds(rig.pool, 3, 2) == -EINVAL);
        CHECK(pool_set_bounds(rig.pool, 0, 0) == -EINVAL);
        CHECK(pool_set_bounds(rig.pool, 0, POOL_MAX_THREADS + 1) == -EINVAL);
        atomic_store(&load.stop, true);
        for (int i = 0; i < 16; i++)
            pthread_join(threads[i], NULL);
        check_totals(rig.pool);
        rig_free(&rig, POOL_DRAIN);
    }
}

/* --- Every thread that was created has been joined when pool_free returns --- */

static _Atomic unsigned created, joined;
static _Atomic(struct pool *) join_after_all_left; /* the next join waits for this pool's workers */
static atomic_bool hold_joins;                     /* joins wait until this is false */

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *arg)
{
    int error = __real_pthread_create(thread, attr, fn, arg);
    if (!error)
        atomic_fetch_add(&created, 1);
    return error;
}

int __real_pthread_join(pthread_t thread, void **value);
int __wrap_pthread_join(pthread_t thread, void **value);
int __wrap_pthread_join(pthread_t thread, void **value)
{
    struct pool *watched = atomic_exchange(&join_after_all_left, NULL);
    if (watched)
        WAIT_UNTIL(counters_of(watched).threads == 0);
    WAIT_UNTIL(!atomic_load(&hold_joins));
    int error = __real_pthread_join(thread, value);
    if (!error)
        atomic_fetch_add(&joined, 1);
    return error;
}

/* The second worker leaves while the loop thread joins the first one.  The loop thread joins the
 * second one too, without pool_free.
 */
static void a_worker_that_leaves_during_a_join_is_joined(void **state)
{
    for (int round = 0; round < ROUNDS(50); round++) {
        struct pool_config config = {.max_threads = 2, .idle_timeout_ns = 1000000};
        struct rig rig;
        rig_new(&rig, &config);
        unsigned before = atomic_load(&joined);
        atomic_store(&join_after_all_left, rig.pool);
        jobs_run_at_once(rig.pool, 2, 2);
        WAIT_UNTIL(atomic_load(&joined) - before == counters_of(rig.pool).threads_created);
        atomic_store(&join_after_all_left, NULL);
        rig_free(&rig, POOL_DRAIN);
    }
}

/* The bounds change while pool_free wakes the idle workers.  A change of the bounds gives tokens
 * out anew; it must not take the token with which pool_free wakes a worker.  Otherwise that worker
 * sleeps to the end of its idle time-out, and pool_free waits.  `hold_joins` keeps pool_free from
 * returning before the last call of pool_set_bounds has returned.
 */
static void invariant_10_workers_leave_while_the_bounds_change(void **state)
{
    for (int round = 0; round < ROUNDS(50); round++) {
        struct pool_config config = {.max_threads = 4, .idle_timeout_ns = 100000000000u};
        struct shutdown s = {.accepted = 0};
        pthread_t thread;
        time_t start = time(NULL);

        rig_new(&s.rig, &config);
        jobs_run_at_once(s.rig.pool, 4, 4);
        WAIT_UNTIL(counters_of(s.rig.pool).idle == 4);
        pthread_barrier_init(&s.start, NULL, 2);
        atomic_store(&hold_joins, true);
        CHECK(pthread_create(&thread, NULL, free_pool, &s) == 0);
        pthread_barrier_wait(&s.start);
        while (counters_of(s.rig.pool).threads > 0) {
            CHECK(pool_set_bounds(s.rig.pool, 0, 4) == 0);
            CHECK(time(NULL) - start < 30);
        }
        atomic_store(&hold_joins, false);
        pthread_join(thread, NULL);
        pthread_barrier_destroy(&s.start);
        loop_free(s.rig.loop);
    }
}

static void invariant_10_every_worker_is_joined(void **state)
{
    struct pool_config config = {.max_threads = 64};
    for (int round = 0; round < ROUNDS(100); round++) {
        struct rig rig;
        CHECK(loop_new(&rig.loop) == 0);
        unsigned before = atomic_load(&created) - atomic_load(&joined);
        CHECK(pool_new(rig.loop, &config, &rig.pool) == 0);
        struct job *jobs = jobs_new(64, POOL_FAST, NULL, NULL);
        jobs_submit(rig.pool, jobs, 64);
        pool_free(rig.pool, round % 2 ? POOL_DRAIN : POOL_CANCEL);
        CHECK(atomic_load(&created) - atomic_load(&joined) == before);
        loop_free(rig.loop);
        free(jobs);
    }
    CHECK(atomic_load(&created) > 0);
}

/* --- Without memory --- */

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
static _Thread_local unsigned fail_after; /* this calloc of this thread fails, counted from 1 */

void *__wrap_calloc(size_t n, size_t size)
{
    return fail_after > 0 && --fail_after == 0 ? NULL : __real_calloc(n, size);
}

struct creation {
    struct rig rig;
    unsigned fail_after;
    int result;
};

static void try_pool_new(void *opaque)
{
    struct creation *creation = opaque;
    struct pool_config config = {.max_threads = 4};
    fail_after = creation->fail_after;
    creation->result = pool_new(creation->rig.loop, &config, &creation->rig.pool);
    fail_after = 0;
}

/* Each allocation of pool_new fails once, on a thread of the test and on the loop thread. */
static void pool_new_without_memory_on_any_thread(void **state)
{
    struct creation creation;

    CHECK(loop_new(&creation.rig.loop) == 0);
    for (int on_loop = 0; on_loop < 2; on_loop++) {
        for (creation.fail_after = 1; creation.fail_after <= 5; creation.fail_after++) {
            if (on_loop)
                loop_call(creation.rig.loop, try_pool_new, &creation);
            else
                try_pool_new(&creation);
            if (creation.result == 0)
                break;
            CHECK(creation.result == -ENOMEM);
        }
        CHECK(creation.fail_after == 5);
        jobs_run_at_once(creation.rig.pool, 4, 4);
        pool_free(creation.rig.pool, POOL_DRAIN);
    }
    loop_free(creation.rig.loop);
}

/* The pool as part of a plugin: the code is unmapped right after pool_free. */
static void invariant_19_dlclose_right_after_free(void **state)
{
    const char *path = getenv("AIODISK_POOL_MODULE");
    CHECK(path);
    for (int round = 0; round < ROUNDS(200); round++) {
        void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!module)
            fprintf(stderr, "%s\n", dlerror());
        CHECK(module);
        void (*use_pool)(unsigned) = (void (*)(unsigned))dlsym(module, "use_pool");
        CHECK(use_pool);
        use_pool(round);
        CHECK(dlclose(module) == 0);
        CHECK(!dlopen(path, RTLD_NOW | RTLD_NOLOAD));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invariant_2_identities_hold_and_all_is_zero_at_the_end),
        cmocka_unit_test(invariant_10_free_with_work_in_every_state),
        cmocka_unit_test(invariant_10_every_worker_is_joined),
        cmocka_unit_test(invariant_10_workers_leave_while_the_bounds_change),
        cmocka_unit_test(invariant_10_free_waits_for_a_callback_that_polls),
        cmocka_unit_test(a_worker_that_leaves_during_a_join_is_joined),
        cmocka_unit_test(pool_new_without_memory_on_any_thread),
        cmocka_unit_test(invariant_11_submission_while_it_shuts_down),
        cmocka_unit_test(invariant_19_bounds_change_under_load),
        cmocka_unit_test(invariant_19_dlclose_right_after_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
