/* SPDX-License-Identifier: BSD-3-Clause */
/* bench-pool: the pool beside libuv's uv_queue_work and GLib's GThreadPool.
 *
 * All pools have the same number of threads and run the same tasks, in interleaved rounds; the
 * medians are printed.  In each pool the loop thread submits a task, a worker runs the task, and
 * the completion comes back to the loop thread, which submits the next task.  GLib's pool has no
 * way back of its own, so the benchmark adds an idle source to the main context, as GTask does.
 * Each measurement runs in a child process, because libuv's pool can be started only once in a
 * process.
 *
 *   bench-pool [--rounds N] [--threads N] [--runtime MS]
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <glib.h>
#include <uv.h>

#include "pool/pool.h"

#define NS_PER_MS 1000000u
#define MAX_IN_FLIGHT 64
#define MAX_SAMPLES 200000u
#define MAX_ROUNDS 101

static unsigned rounds = 5, threads = 4, runtime_ms = 400;

/* --- What is measured: the same for every pool --- */

/* One task in flight, submitted again until the time is over. */
struct slot {
    struct task task; /* for this pool; first, because `done` casts the task */
    uv_work_t work;   /* for libuv */
    uint64_t submitted_ns;
};

/* The measurement of this process.  Loop thread only, except what a task uses: burst, spin_ns,
 * start_ns (all set before the first task), all_run and burst_ns.
 */
static struct {
    struct slot slots[MAX_IN_FLIGHT];
    void (*submit)(struct slot *slot);
    void (*finish)(void);
    uint64_t spin_ns;   /* how long a task spins */
    unsigned in_flight; /* tasks that have not come back for the last time */
    unsigned burst;     /* tasks that wait until all of them run, or 0 */
    pthread_barrier_t all_run;
    uint64_t start_ns, end_ns;
    _Atomic uint64_t burst_ns;
    uint64_t completed;
    uint64_t *latencies;
    unsigned samples;
} m;

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void work(void)
{
    if (m.burst) {
        /* Sleeps until all tasks of the burst run, as a task that waits for a disk sleeps. */
        if (pthread_barrier_wait(&m.all_run) == PTHREAD_BARRIER_SERIAL_THREAD)
            atomic_store(&m.burst_ns, now_ns() - m.start_ns);
    } else if (m.spin_ns) {
        uint64_t end = now_ns() + m.spin_ns;
        while (now_ns() < end)
            ;
    }
}

static void submit(struct slot *slot)
{
    slot->submitted_ns = now_ns();
    m.submit(slot);
}

/* A task is complete: submits it again, or ends the measurement.  Loop thread. */
static void completed(struct slot *slot)
{
    uint64_t now = now_ns();
    m.completed++;
    if (m.samples < MAX_SAMPLES)
        m.latencies[m.samples++] = now - slot->submitted_ns;
    if (!m.burst && now < m.start_ns + (uint64_t)runtime_ms * NS_PER_MS) {
        submit(slot);
    } else if (--m.in_flight == 0) {
        m.end_ns = now;
        m.finish();
    }
}

static void start(void *unused)
{
    (void)unused;
    m.start_ns = now_ns();
    unsigned count = m.in_flight;
    for (unsigned i = 0; i < count; i++)
        submit(&m.slots[i]);
}

/* --- The three pools: each runs the measurement of this process to its end --- */

static struct pool *pool;
static sem_t pool_finished;

static int pool_work(struct task *task)
{
    (void)task;
    work();
    return 0;
}

static void pool_done(struct task *task)
{
    completed((struct slot *)task);
}

static void pool_submit_slot(struct slot *slot)
{
    slot->task = (struct task){.run = pool_work, .done = pool_done, .lane = POOL_FAST};
    if (pool_submit(pool, &slot->task) != 0)
        abort();
}

static void pool_finish(void)
{
    sem_post(&pool_finished);
}

static void run_aiodisk(void)
{
    struct loop *loop;
    struct pool_config config = {.max_threads = threads};
    m.submit = pool_submit_slot;
    m.finish = pool_finish;
    sem_init(&pool_finished, 0, 0);
    if (loop_new(&loop) != 0 || pool_new(loop, &config, &pool) != 0)
        abort();
    loop_call(loop, start, NULL);
    while (sem_wait(&pool_finished) < 0 && errno == EINTR)
        ;
    pool_free(pool, POOL_DRAIN);
    loop_free(loop);
}

static void uv_work(uv_work_t *unused)
{
    (void)unused;
    work();
}

static void uv_done(uv_work_t *request, int status)
{
    (void)status;
    completed(request->data);
}

static void uv_submit(struct slot *slot)
{
    slot->work.data = slot;
    if (uv_queue_work(uv_default_loop(), &slot->work, uv_work, uv_done) != 0)
        abort();
}

static void uv_finish(void)
{
}

static void run_libuv(void)
{
    char number[16];
    snprintf(number, sizeof number, "%u", threads);
    setenv("UV_THREADPOOL_SIZE", number, 1);
    m.submit = uv_submit;
    m.finish = uv_finish;
    start(NULL);
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}

static GThreadPool *glib_pool;
static GMainLoop *glib_loop;

static gboolean glib_done(gpointer slot)
{
    completed(slot);
    return G_SOURCE_REMOVE;
}

static void glib_work(gpointer slot, gpointer unused)
{
    (void)unused;
    work();
    g_idle_add_full(G_PRIORITY_DEFAULT, glib_done, slot, NULL);
}

static void glib_submit(struct slot *slot)
{
    if (!g_thread_pool_push(glib_pool, slot, NULL))
        abort();
}

static void glib_finish(void)
{
    g_main_loop_quit(glib_loop);
}

static void run_glib(void)
{
    m.submit = glib_submit;
    m.finish = glib_finish;
    glib_pool = g_thread_pool_new(glib_work, NULL, (gint)threads, FALSE, NULL);
    glib_loop = g_main_loop_new(NULL, FALSE);
    start(NULL);
    g_main_loop_run(glib_loop);
    g_thread_pool_free(glib_pool, FALSE, TRUE);
    g_main_loop_unref(glib_loop);
}

/* pool_run, whose waiting caller runs its own task.  No other pool has that, so the result is not
 * part of the ratios.
 */
static void run_helping(void)
{
    struct loop *loop;
    struct pool_config config = {.max_threads = threads, .helping = true};
    struct task task = {.run = pool_work, .lane = POOL_FAST};
    if (loop_new(&loop) != 0 || pool_new(loop, &config, &pool) != 0)
        abort();
    m.start_ns = now_ns();
    do {
        uint64_t before = now_ns();
        pool_run(pool, &task);
        m.end_ns = now_ns();
        m.completed++;
        if (m.samples < MAX_SAMPLES)
            m.latencies[m.samples++] = m.end_ns - before;
    } while (m.end_ns < m.start_ns + (uint64_t)runtime_ms * NS_PER_MS);
    pool_free(pool, POOL_DRAIN);
    loop_free(loop);
}

static const struct subject {
    const char *name;
    void (*run)(void);
} subjects[] = {{"aiodisk", run_aiodisk}, {"libuv", run_libuv}, {"GLib", run_glib}};
#define SUBJECTS (sizeof subjects / sizeof subjects[0])

/* --- Measuring in a child, rounds, and the table --- */

struct result {
    double rate; /* tasks per second */
    double p50_us, p99_us;
    double burst_ms;
};

static int compare_ns(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static struct result measure_here(void (*run)(void))
{
    m.latencies = calloc(MAX_SAMPLES, sizeof *m.latencies);
    if (!m.latencies)
        abort();
    if (m.burst)
        pthread_barrier_init(&m.all_run, NULL, m.burst);
    run();
    qsort(m.latencies, m.samples, sizeof *m.latencies, compare_ns);
    struct result result = {
        .rate = (double)m.completed * 1e9 / (double)(m.end_ns - m.start_ns),
        .p50_us = (double)m.latencies[m.samples / 2] / 1000,
        .p99_us = (double)m.latencies[(uint64_t)m.samples * 99 / 100] / 1000,
        .burst_ms = (double)atomic_load(&m.burst_ns) / 1e6,
    };
    free(m.latencies);
    return result;
}

static struct result measure(void (*run)(void), unsigned in_flight, uint64_t spin_ns, bool burst)
{
    int fds[2];
    struct result result;
    if (pipe(fds) < 0)
        abort();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        m.in_flight = in_flight;
        m.spin_ns = spin_ns;
        m.burst = burst ? in_flight : 0;
        result = measure_here(run);
        _exit(write(fds[1], &result, sizeof result) == sizeof result ? 0 : 1);
    }
    close(fds[1]);
    if (child < 0 || read(fds[0], &result, sizeof result) != sizeof result) {
        fprintf(stderr, "bench-pool: a measurement failed\n");
        exit(1);
    }
    close(fds[0]);
    waitpid(child, NULL, 0);
    return result;
}

static double median(double *values)
{
    qsort(values, rounds, sizeof *values, compare_double);
    return values[rounds / 2];
}

enum column { RATE, P50, P99, BURST };

static double value_of(const struct result *result, enum column column)
{
    const double values[] = {result->rate, result->p50_us, result->p99_us, result->burst_ms};
    return values[column];
}

/* One row: the median of each pool, then the median over the rounds of the ratio to each other
 * pool.  A ratio above 1 means that this pool is better.
 */
static void print_row(const char *name, enum column column,
                      struct result results[SUBJECTS][MAX_ROUNDS])
{
    double values[MAX_ROUNDS];
    printf("%-34s", name);
    for (unsigned s = 0; s < SUBJECTS; s++) {
        for (unsigned r = 0; r < rounds; r++)
            values[r] = value_of(&results[s][r], column);
        printf(" %11.*f", column == RATE ? 0 : 2, median(values));
    }
    for (unsigned s = 1; s < SUBJECTS; s++) {
        for (unsigned r = 0; r < rounds; r++) {
            double ours = value_of(&results[0][r], column),
                   theirs = value_of(&results[s][r], column);
            values[r] = column == RATE ? ours / theirs : theirs / ours;
        }
        printf(" %9.2fx", median(values));
    }
    printf("\n");
}

static void run_rounds(unsigned in_flight, uint64_t spin_ns, bool burst,
                       struct result results[SUBJECTS][MAX_ROUNDS])
{
    for (unsigned r = 0; r < rounds; r++)
        for (unsigned i = 0; i < SUBJECTS; i++) {
            unsigned s = (i + r) % SUBJECTS; /* each pool is first in turn */
            results[s][r] = measure(subjects[s].run, in_flight, spin_ns, burst);
        }
}

static void print_table(void)
{
    static struct result results[SUBJECTS][MAX_ROUNDS];
    static const unsigned in_flight[] = {1, 16, 64};
    char name[64];
    printf(
        "%u threads, %u rounds of %u ms, medians; ratios above 1 mean that aiodisk is better\n\n",
        threads, rounds, runtime_ms);
    printf("%-34s %11s %11s %11s %10s %10s\n", "", "aiodisk", "libuv", "GLib", "to libuv",
           "to GLib");
    for (unsigned spin_us = 0; spin_us <= 10; spin_us += 10)
        for (unsigned i = 0; i < 3; i++) {
            run_rounds(in_flight[i], spin_us * 1000, false, results);
            if (spin_us == 0 && in_flight[i] == 1) {
                print_row("hand-off, 1 in flight: p50 us", P50, results);
                print_row("hand-off, 1 in flight: p99 us", P99, results);
            }
            snprintf(name, sizeof name, "%s tasks/s, %u in flight", spin_us ? "10 us" : "empty",
                     in_flight[i]);
            print_row(name, RATE, results);
        }
    threads = MAX_IN_FLIGHT;
    run_rounds(MAX_IN_FLIGHT, 0, true, results);
    print_row("burst of 64 from cold, all run: ms", BURST, results);
}

static void print_helping(void)
{
    double p50[MAX_ROUNDS], p99[MAX_ROUNDS];
    for (unsigned r = 0; r < rounds; r++) {
        struct result result = measure(run_helping, 1, 0, false);
        p50[r] = result.p50_us;
        p99[r] = result.p99_us;
    }
    printf("\naiodisk, a caller that waits runs its own task: p50 %.2f us, p99 %.2f us\n",
           median(p50), median(p99));
}

static unsigned parse(const char *name, const char *text, unsigned max)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || value < 1 || value > max) {
        fprintf(stderr, "bench-pool: --%s=%s: must be a number between 1 and %u\n", name, text,
                max);
        exit(1);
    }
    return (unsigned)value;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"rounds", required_argument, NULL, 'r'},
        {"threads", required_argument, NULL, 't'},
        {"runtime", required_argument, NULL, 'm'},
        {0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'r')
            rounds = parse("rounds", optarg, MAX_ROUNDS);
        else if (option == 't')
            threads = parse("threads", optarg, 1024);
        else if (option == 'm')
            runtime_ms = parse("runtime", optarg, 60000);
        else
            return 1;
    }
    if (optind < argc) {
        fprintf(stderr, "bench-pool: %s: takes only --rounds, --threads and --runtime (ms)\n",
                argv[optind]);
        return 1;
    }
    print_helping();
    print_table();
    return 0;
}
