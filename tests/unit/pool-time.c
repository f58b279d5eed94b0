/* SPDX-License-Identifier: BSD-3-Clause */
/* Time and interruption.
 *
 * Idle workers exit after the time-out, also when work comes at that moment, and under light load.
 * The wall clock does not matter.  Spurious returns from the semaphore do no harm.  No signal
 * reaches a worker or the loop.  --wrap=sem_clockwait watches and disturbs the sleep of the
 * workers.
 */
#include "tests/lib/pool-test.h"

#include <semaphore.h>
#include <signal.h>

int __real_sem_clockwait(sem_t *sem, clockid_t clock, const struct timespec *deadline);
int __wrap_sem_clockwait(sem_t *sem, clockid_t clock, const struct timespec *deadline);
static atomic_bool spurious;
static _Atomic unsigned sleeps;
static _Atomic time_t earliest_s; /* no deadline may be before this second */

int __wrap_sem_clockwait(sem_t *sem, clockid_t clock, const struct timespec *deadline)
{
    static _Thread_local unsigned n;
    /* CLOCK_REALTIME would follow a jump of the wall clock. */
    CHECK(clock == CLOCK_MONOTONIC);
    CHECK(deadline->tv_sec >= atomic_load(&earliest_s));
    atomic_fetch_add(&sleeps, 1);
    if (atomic_load(&spurious) && ++n % 2) {
        errno = n % 4 == 1 ? EINTR : ETIMEDOUT;
        return -1;
    }
    return __real_sem_clockwait(sem, clock, deadline);
}

static void submit_and_wait(struct rig *rig, unsigned n)
{
    _Atomic unsigned finished = 0;
    struct job *jobs = jobs_new(n, POOL_FAST, NULL, &finished);
    jobs_submit(rig->pool, jobs, n);
    WAIT_UNTIL(atomic_load(&finished) == n);
    free(jobs);
}

static void invariant_12_submission_at_the_moment_of_expiry(void **state)
{
    struct pool_config config = {.max_threads = 4, .idle_timeout_ns = 500000};
    struct rig rig;

    rig_new(&rig, &config);
    for (int round = 0; round < ROUNDS(5000); round++) {
        submit_and_wait(&rig, 1 + round % 3);
        sleep_us(400 + rand() % 200); /* around the time-out, with the delay of the wake-up */
    }
    CHECK(counters_of(rig.pool).threads_created > 1);
    WAIT_UNTIL(counters_of(rig.pool).threads == 0);
    check_totals(rig.pool);
    rig_free(&rig, POOL_DRAIN);
}

static void invariant_12_min_threads_are_kept(void **state)
{
    struct pool_config config = {.max_threads = 8, .min_threads = 3, .idle_timeout_ns = 1000000};
    struct rig rig;

    rig_new(&rig, &config);
    jobs_run_at_once(rig.pool, 8, 8);
    WAIT_UNTIL(counters_of(rig.pool).threads == 3);
    /* Each time-out makes a worker check whether it may leave: wait for some of these checks. */
    unsigned before = atomic_load(&sleeps);
    WAIT_UNTIL(atomic_load(&sleeps) > before + 30);
    CHECK(counters_of(rig.pool).threads == 3);
    CHECK(pool_set_bounds(rig.pool, 0, 8) == 0);
    WAIT_UNTIL(counters_of(rig.pool).threads == 0);
    rig_free(&rig, POOL_DRAIN);
}

/* A burst of 64, then 100 short tasks a second, one at a time.  The semaphore wakes the sleepers in
 * turn, so each of the 64 workers is woken before its own time-out of one second is over.
 */
static void invariant_21_workers_leave_under_light_load_too(void **state)
{
    struct pool_config config = {.max_threads = 64, .idle_timeout_ns = 1000000000};
    struct timespec start, now;
    struct rig rig;

    rig_new(&rig, &config);
    jobs_run_at_once(rig.pool, 64, 64);
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        submit_and_wait(&rig, 1);
        sleep_us(10000);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec * 10 + now.tv_nsec / 100000000 <
             start.tv_sec * 10 + start.tv_nsec / 100000000 + 31);
    struct pool_counters c = counters_of(rig.pool);
    CHECK(c.threads <= 4);
    /* The load needs one worker, and that worker stays: it is not replaced again and again. */
    CHECK(c.threads_created <= 68);
    check_totals(rig.pool);
    rig_free(&rig, POOL_DRAIN);
}

/* The pool has found that it can do without workers, and some have left.  Then all are needed
 * again: no more of them leave because of what was true before.
 */
static void invariant_21_a_new_burst_keeps_its_workers(void **state)
{
    struct pool_config config = {.max_threads = 64, .idle_timeout_ns = 200000000};
    struct rig rig;

    rig_new(&rig, &config);
    jobs_run_at_once(rig.pool, 64, 64);
    do {
        submit_and_wait(&rig, 1);
        sleep_us(1500);
    } while (counters_of(rig.pool).threads == 64);
    jobs_run_at_once(rig.pool, 64, 64);
    uint64_t created = counters_of(rig.pool).threads_created;
    jobs_run_at_once(rig.pool, 64, 64);
    /* On a busy machine the sleep of some may time out meanwhile. */
    CHECK(counters_of(rig.pool).threads_created - created < 32);
    rig_free(&rig, POOL_DRAIN);
}

/* Two tasks at a time, again and again: both workers stay, also after many time-outs. */
static void invariant_21_workers_that_are_needed_stay(void **state)
{
    struct pool_config config = {.max_threads = 8, .idle_timeout_ns = 50000000};
    struct rig rig;

    rig_new(&rig, &config);
    jobs_run_at_once(rig.pool, 2, 2);
    uint64_t created = counters_of(rig.pool).threads_created;
    for (int round = 0; round < ROUNDS(500); round++) {
        jobs_run_at_once(rig.pool, 2, 2);
        sleep_us(1000);
    }
    /* On a busy machine a round may last longer than the time-out. */
    CHECK(counters_of(rig.pool).threads_created - created < ROUNDS(500) / 4);
    rig_free(&rig, POOL_DRAIN);
}

/* A time-out that is too long for the clock means that no worker exits. */
static void a_huge_idle_time_out_is_no_past_deadline(void **state)
{
    static const uint64_t huge[] = {UINT64_MAX, UINT64_MAX - 1000000000, INT64_MAX};
    for (unsigned i = 0; i < 3; i++) {
        struct pool_config config = {.max_threads = 4, .idle_timeout_ns = huge[i]};
        struct timespec now;
        struct rig rig;

        clock_gettime(CLOCK_MONOTONIC, &now);
        atomic_store(&earliest_s, now.tv_sec + 3600);
        rig_new(&rig, &config);
        jobs_run_at_once(rig.pool, 4, 4);
        submit_and_wait(&rig, 1);
        WAIT_UNTIL(counters_of(rig.pool).idle == 4);
        rig_free(&rig, POOL_DRAIN);
        atomic_store(&earliest_s, 0);
    }
}

static void invariant_13_the_wall_clock_does_not_matter(void **state)
{
    /* The wrapper checks the clock of every sleep.  Here workers sleep until their time-out. */
    struct pool_config config = {.max_threads = 4, .idle_timeout_ns = 2000000};
    struct rig rig;
    unsigned before = atomic_load(&sleeps);

    rig_new(&rig, &config);
    jobs_run_at_once(rig.pool, 4, 4);
    WAIT_UNTIL(counters_of(rig.pool).threads == 0);
    CHECK(atomic_load(&sleeps) >= before + 4);
    rig_free(&rig, POOL_DRAIN);
}

static void invariant_14_spurious_wake_ups_of_the_semaphore(void **state)
{
    struct pool_config config = {.max_threads = 4, .min_threads = 2};
    struct rig rig;

    atomic_store(&spurious, true);
    rig_new(&rig, &config);
    for (int round = 0; round < ROUNDS(3000); round++)
        submit_and_wait(&rig, 1 + round % 7);
    check_totals(rig.pool);
    rig_free(&rig, POOL_DRAIN);
    atomic_store(&spurious, false);
}

/* --- Signals --- */

static _Atomic unsigned caught;
static pthread_t test_thread;

static void catch (int signal)
{
    atomic_fetch_add(&caught, 1);
    /* A signal on the loop thread or on a worker is an error. */
    if (!pthread_equal(pthread_self(), test_thread))
        abort();
}

struct storm {
    atomic_bool stop;
};

static void *storm_main(void *opaque)
{
    struct storm *storm = opaque;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    while (!atomic_load(&storm->stop)) {
        kill(getpid(), SIGUSR1); /* to any thread that does not block SIGUSR1 */
        pthread_kill(test_thread, SIGUSR1);
        sleep_us(20);
    }
    return NULL;
}

static void invariant_15_a_storm_of_signals_is_invisible(void **state)
{
    struct sigaction action = {.sa_handler = catch}; /* without SA_RESTART */
    struct pool_config config = {.max_threads = 4};
    struct storm storm = {.stop = false};
    pthread_t thread;
    struct rig rig;

    test_thread = pthread_self();
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    rig_new(&rig, &config);
    CHECK(pthread_create(&thread, NULL, storm_main, &storm) == 0);
    /* On a busy machine the first signals may come late. */
    for (int round = 0; round < ROUNDS(3000) || atomic_load(&caught) <= 100; round++) {
        struct job job;
        job_init(&job, round % 2 ? POOL_SLOW : POOL_FAST, NULL, NULL);
        CHECK(pool_run(rig.pool, &job.task) == JOB_RESULT);
    }
    atomic_store(&storm.stop, true);
    pthread_join(thread, NULL);
    check_totals(rig.pool);
    rig_free(&rig, POOL_DRAIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invariant_12_submission_at_the_moment_of_expiry),
        cmocka_unit_test(invariant_12_min_threads_are_kept),
        cmocka_unit_test(invariant_21_workers_leave_under_light_load_too),
        cmocka_unit_test(invariant_21_a_new_burst_keeps_its_workers),
        cmocka_unit_test(invariant_21_workers_that_are_needed_stay),
        cmocka_unit_test(a_huge_idle_time_out_is_no_past_deadline),
        cmocka_unit_test(invariant_13_the_wall_clock_does_not_matter),
        cmocka_unit_test(invariant_14_spurious_wake_ups_of_the_semaphore),
        cmocka_unit_test(invariant_15_a_storm_of_signals_is_invisible),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
