/* SPDX-License-Identifier: BSD-3-Clause */
/* The observer's thread.  See observer.h.
 *
 * Everything here runs on that one thread, but for observer_start and observer_stop.  It takes no
 * lock that is held during I/O, so a stuck disk does not stop it.  It never touches a disk image.
 */
#include "plugin/watch/observer.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>

#include "plugin/disk/disk.h"
#include "plugin/disk/log.h"
#include "plugin/watch/connection.h"
#include "plugin/watch/metrics-file.h"

#define NS_PER_S 1000000000u
#define METRICS_PERIOD_NS NS_PER_S
#define SHORTEST_PERIOD_NS (NS_PER_S / 10)

static struct {
    /* Set once by observer_start. */
    struct observer_config config;
    uint64_t period_ns;
    pthread_t thread;

    pthread_mutex_t lock;
    pthread_cond_t wake; /* CLOCK_MONOTONIC */
    bool started;        /* main thread only */
    bool stopping;       /* under lock */
} observer = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* --- Slow requests --- */

static const char *const place_names[PLACES] = {
    [PLACE_PLUGIN] = "being worked on",
    [PLACE_RANGE_LOCK] = "waiting for the range lock",
    [PLACE_BOUNCE] = "waiting for bounce memory",
    [PLACE_WRITE_TURN] = "waiting for its turn to write into the page cache",
    [PLACE_QUEUE] = "waiting in the pool's queue",
    [PLACE_STORAGE] = "waiting for the storage",
    [PLACE_FLUSH_JOIN] = "waiting for the sync of another flush",
};

/* Names a request when it becomes older than slow_ns, twice that, four times that, ... */
static void name_if_slow(struct call *call, const struct call_view *view)
{
    if (atomic_load_explicit(&call->named_turn, memory_order_relaxed) != view->turn)
        call->next_age_ns = observer.config.slow_ns;
    if (view->age_ns < call->next_age_ns)
        return;
    while (call->next_age_ns <= view->age_ns)
        call->next_age_ns *= 2;
    atomic_store_explicit(&call->named_turn, view->turn, memory_order_relaxed);
    log_warning("%s: slow request: %s of %" PRIu64 " bytes at %" PRIu64 " for %" PRIu64 ".%" PRIu64
                " s: %s",
                call->list->name, figures_op_names[view->op], view->length, view->offset,
                view->age_ns / NS_PER_S, view->age_ns % NS_PER_S / (NS_PER_S / 10),
                place_names[view->place]);
}

/* --- A look at everything --- */

static void look_at_calls(const struct connection *connection, uint64_t now)
{
    struct figures *f = connection->calls.figures;
    struct call_view view;

    for (struct call *call = atomic_load(&connection->calls.first); call; call = call->next) {
        if (!call_look(call, now, &view))
            continue;
        if (observer.config.slow_ns > 0)
            name_if_slow(call, &view);
        if (!f)
            continue;
        f->in_flight++;
        if (view.age_ns > f->oldest_ns)
            f->oldest_ns = view.age_ns;
    }
}

static void look(void *opaque, struct connection *connection)
{
    const uint64_t *now = opaque;
    struct figures *of_image = connection->image_figures;

    look_at_calls(connection, *now);
    if (!of_image || !connection->calls.figures)
        return;
    connection->calls.figures->connections++;
    figures_note_disk(connection->calls.figures, connection->disk);
    connection->disk->ops->read_pool(connection->disk, &of_image->pool);
}

static void look_around(void)
{
    uint64_t now = tally_now();

    for (struct figures *f = figures_first(); f; f = f->next) {
        f->connections = f->in_flight = 0;
        f->oldest_ns = 0;
        f->pool = (struct pool_counters){.threads = 0};
    }
    connection_each(look, &now);
    for (struct figures *f = figures_first(); f; f = f->next) {
        for (unsigned i = 0; i < FIGURES_END; i++)
            f->seen[i] = tally_read(f->tally, i);
    }
}

/* --- The thread --- */

/* Sleeps until `deadline` or until observer_stop.  Returns false when the thread is to end. */
static bool sleep_until(uint64_t deadline)
{
    struct timespec when = {.tv_sec = deadline / NS_PER_S, .tv_nsec = deadline % NS_PER_S};
    int r = 0;

    pthread_mutex_lock(&observer.lock);
    while (!observer.stopping && r == 0)
        r = pthread_cond_timedwait(&observer.wake, &observer.lock, &when);
    bool goes_on = !observer.stopping;
    pthread_mutex_unlock(&observer.lock);
    return goes_on;
}

static void *observe(void *opaque)
{
    uint64_t next = tally_now(), next_metrics = next;

    pthread_setname_np(pthread_self(), "aiodisk-watch");
    do {
        uint64_t now = tally_now();
        look_around();
        if (observer.config.metrics && now >= next_metrics) {
            metrics_file_write(true);
            next_metrics = now + METRICS_PERIOD_NS - observer.period_ns / 2;
        }
        /* After a delay (a stuck metrics file) the looks that were missed are left out. */
        next = next + observer.period_ns > now ? next + observer.period_ns : now;
    } while (sleep_until(next));
    look_around();
    if (observer.config.metrics)
        metrics_file_write(false);
    return NULL;
}

int observer_start(const struct observer_config *config)
{
    pthread_condattr_t attributes;
    sigset_t all, old;

    if (config->slow_ns == 0 && !config->metrics)
        return 0;
    observer.config = *config;
    observer.period_ns = METRICS_PERIOD_NS;
    if (config->slow_ns > 0 && config->slow_ns / 4 < observer.period_ns)
        observer.period_ns = config->slow_ns / 4;
    if (observer.period_ns < SHORTEST_PERIOD_NS)
        observer.period_ns = SHORTEST_PERIOD_NS;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&observer.wake, &attributes);
    pthread_condattr_destroy(&attributes);
    if (config->metrics)
        metrics_file_open(config->metrics, &config->labels);
    /* nbdkit's own threads take the signals. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = -pthread_create(&observer.thread, NULL, observe, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    observer.started = r == 0;
    return r;
}

void observer_stop(void)
{
    if (!observer.started)
        return;
    pthread_mutex_lock(&observer.lock);
    observer.stopping = true;
    pthread_cond_signal(&observer.wake);
    pthread_mutex_unlock(&observer.lock);
    pthread_join(observer.thread, NULL);
    pthread_cond_destroy(&observer.wake);
    observer.started = false;
    metrics_file_close();
}
