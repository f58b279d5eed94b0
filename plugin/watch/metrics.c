/* SPDX-License-Identifier: BSD-3-Clause */
/* Printing the metrics.  See metrics.h.
 *
 * Each function prints one family: its HELP and TYPE lines and one sample for each export and
 * label.  Histograms of what never happened are left out: with a thousand exports they would be
 * most of the file.
 *
 * Runs on the observer's thread.  Never counts anything itself.
 */
#include "plugin/watch/metrics.h"

#include <inttypes.h>
#include <stdarg.h>
#include <time.h>

#include "plugin/disk/bounce.h"
#include "plugin/watch/figures.h"

#define NS_PER_S 1000000000u

/* What every sample needs.  On the stack of metrics_print. */
struct printer {
    FILE *out;
    const struct metrics_labels *labels;
    const char *name; /* of the family, without the prefix */
};

static const char *const lane_names[POOL_LANES] = {[POOL_FAST] = "fast", [POOL_SLOW] = "slow"};

static void family(struct printer *p, const char *name, const char *type, const char *help)
{
    p->name = name;
    fprintf(p->out, "# HELP aiodisk_%s %s\n# TYPE aiodisk_%s %s\n", name, help, name, type);
}

/* Prints the name of a sample without labels of its own; the value follows. */
static void begin_plain(const struct printer *p)
{
    fprintf(p->out, "aiodisk_%s", p->name);
    if (p->labels->server)
        fprintf(p->out, "{server=\"%s\"}", p->labels->server);
}

/* Prints the name and the labels of a sample; the value follows. */
static void __attribute__((format(printf, 3, 4))) begin(const struct printer *p, const char *suffix,
                                                        const char *labels, ...)
{
    va_list args;

    fprintf(p->out, "aiodisk_%s%s{", p->name, suffix);
    va_start(args, labels);
    vfprintf(p->out, labels, args);
    va_end(args);
    if (p->labels->server)
        fprintf(p->out, ",server=\"%s\"", p->labels->server);
    fputc('}', p->out);
}

static void number(const struct printer *p, uint64_t value)
{
    fprintf(p->out, " %" PRIu64 "\n", value);
}

static void seconds(const struct printer *p, uint64_t ns)
{
    fprintf(p->out, " %" PRIu64 ".%09" PRIu64 "\n", ns / NS_PER_S, ns % NS_PER_S);
}

/* Prints one histogram, unless it is empty.  kind: the name of the label beside export. */
static void histogram(const struct printer *p, const struct figures *f, unsigned first,
                      const char *kind, const char *value)
{
    uint64_t counts[TALLY_BUCKETS], sum = 0;

    for (unsigned i = 0; i < TALLY_BUCKETS; i++) {
        sum += f->seen[first + i];
        counts[i] = sum;
    }
    if (sum == 0)
        return;
    for (unsigned i = 0; i < TALLY_BUCKETS - 1; i++) {
        double bound = (double)((uint64_t)TALLY_FIRST_BOUND_NS << i) / NS_PER_S;
        begin(p, "_bucket", "export=\"%s\",%s=\"%s\",le=\"%.10g\"", f->label, kind, value, bound);
        number(p, counts[i]);
    }
    begin(p, "_bucket", "export=\"%s\",%s=\"%s\",le=\"+Inf\"", f->label, kind, value);
    number(p, sum);
    begin(p, "_sum", "export=\"%s\",%s=\"%s\"", f->label, kind, value);
    seconds(p, f->seen[first + TALLY_BUCKETS]);
    begin(p, "_count", "export=\"%s\",%s=\"%s\"", f->label, kind, value);
    number(p, sum);
}

static uint64_t count_of_histogram(const struct figures *f, unsigned first)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < TALLY_BUCKETS; i++)
        sum += f->seen[first + i];
    return sum;
}

/* --- The server --- */

static void print_server(struct printer *p, bool up)
{
    static time_t start;
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (start == 0)
        start = now.tv_sec;
    family(p, "build_info", "gauge", "Always 1; the label is the version of the plugin.");
    begin(p, "", "version=\"%s\"", AIODISK_VERSION);
    number(p, 1);
    family(p, "up", "gauge", "1 while the server runs, 0 in the file that it left behind.");
    begin_plain(p);
    number(p, up);
    family(p, "start_time_seconds", "gauge", "Unix time at which the server started.");
    begin_plain(p);
    number(p, start);
    family(p, "updated_seconds", "gauge", "Unix time at which this file was written.");
    begin_plain(p);
    fprintf(p->out, " %lld.%03ld\n", (long long)now.tv_sec, now.tv_nsec / 1000000);
}

static void print_sum(struct printer *p, const char *name, const char *help, unsigned counter)
{
    uint64_t sum = 0;

    for (const struct figures *f = figures_first(); f; f = f->next)
        sum += f->seen[counter];
    family(p, name, "counter", help);
    begin_plain(p);
    number(p, sum);
}

static void print_fallbacks(struct printer *p)
{
    static const struct {
        const char *kind;
        unsigned counter;
    } kinds[] = {
        {"direct", DISK_TALLY_FELL_TO_PAGE_CACHE}, {"backend", DISK_TALLY_FELL_TO_THREADS},
        {"request", BACKEND_TALLY_GIVEN_BACK},     {"fua", DISK_TALLY_FELL_TO_SYNC},
        {"zero", DISK_TALLY_FELL_TO_ZEROS},
    };

    family(p, "fallbacks_total", "counter",
           "What was done in another way than asked: image without O_DIRECT, image without its "
           "backend, request that the ring could not carry, FUA by a sync, zero by writing.");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        uint64_t sum = 0;
        for (const struct figures *f = figures_first(); f; f = f->next)
            sum += f->seen[kinds[i].counter];
        begin(p, "", "kind=\"%s\"", kinds[i].kind);
        number(p, sum);
    }
}

static void print_pools(struct printer *p)
{
    unsigned busy = 0, idle = 0, queued = 0, queued_slow = 0;

    for (const struct figures *f = figures_first(); f; f = f->next) {
        busy += f->pool.threads - f->pool.idle;
        idle += f->pool.idle;
        queued += f->pool.queued;
        queued_slow += f->pool.queued_slow;
    }
    family(p, "pool_threads", "gauge", "Worker threads of all images.");
    begin(p, "", "state=\"busy\"");
    number(p, busy);
    begin(p, "", "state=\"idle\"");
    number(p, idle);
    family(p, "pool_queue_length", "gauge", "Tasks that wait in the pools of all images.");
    begin(p, "", "lane=\"%s\"", lane_names[POOL_FAST]);
    number(p, queued - queued_slow);
    begin(p, "", "lane=\"%s\"", lane_names[POOL_SLOW]);
    number(p, queued_slow);
    family(p, "bounce_bytes", "gauge", "Bytes of all bounce buffers, in use and at rest.");
    begin_plain(p);
    number(p, bounce_allocated());
}

/* --- The exports: what clients see --- */

static void print_requests(struct printer *p)
{
    family(p, "requests_total", "counter", "Requests that were answered.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        for (unsigned op = 0; op < CLIENT_OPS; op++) {
            begin(p, "", "export=\"%s\",op=\"%s\"", f->label, figures_op_names[op]);
            number(p, count_of_histogram(f, FIGURES_TIME + op * TALLY_HISTOGRAM));
        }
    }
    family(p, "request_errors_total", "counter",
           "Requests that failed, by the error that the client was told.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        for (unsigned i = 0; i < CLIENT_OPS * FIGURES_ERRORS; i++) {
            uint64_t n = f->seen[FIGURES_FAILED + i];
            if (n == 0)
                continue;
            begin(p, "", "export=\"%s\",op=\"%s\",errno=\"%s\"", f->label,
                  figures_op_names[i / FIGURES_ERRORS], figures_errors[i % FIGURES_ERRORS].name);
            number(p, n);
        }
    }
    family(p, "transferred_bytes_total", "counter", "Bytes of the requests that succeeded.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        for (unsigned op = 0; op < CLIENT_OPS; op++) {
            if (op == CLIENT_FLUSH || op == CLIENT_EXTENTS)
                continue;
            begin(p, "", "export=\"%s\",op=\"%s\"", f->label, figures_op_names[op]);
            number(p, f->seen[FIGURES_BYTES + op]);
        }
    }
}

static void print_histograms(struct printer *p)
{
    family(p, "request_duration_seconds", "histogram",
           "Time from nbdkit's call of the plugin to its answer.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        for (unsigned op = 0; op < CLIENT_OPS; op++)
            histogram(p, f, FIGURES_TIME + op * TALLY_HISTOGRAM, "op", figures_op_names[op]);
    }
    family(p, "queue_wait_seconds", "histogram",
           "Time that a task of the worker pool was queued; 0 if it ran at once.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        for (unsigned lane = 0; lane < POOL_LANES; lane++)
            histogram(p, f, POOL_TALLY_WAIT + lane * TALLY_HISTOGRAM, "lane", lane_names[lane]);
    }
    family(p, "backend_duration_seconds", "histogram",
           "Time that the kernel took for one call, by the client's request that it served.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        for (unsigned op = 0; op < CLIENT_OPS; op++)
            histogram(p, f, BACKEND_TALLY_TIME + op * TALLY_HISTOGRAM, "op", figures_op_names[op]);
    }
}

/* One sample for each export. */
static void print_of_exports(struct printer *p, const char *name, const char *type,
                             const char *help, uint64_t (*value)(const struct figures *f))
{
    family(p, name, type, help);
    for (const struct figures *f = figures_first(); f; f = f->next) {
        begin(p, "", "export=\"%s\"", f->label);
        number(p, value(f));
    }
}

static uint64_t connections_made(const struct figures *f)
{
    return f->seen[FIGURES_CONNECTIONS];
}

static uint64_t flushes_joined(const struct figures *f)
{
    return f->seen[DISK_TALLY_FLUSHES_JOINED];
}

static uint64_t connections_now(const struct figures *f)
{
    return f->connections;
}

static uint64_t requests_now(const struct figures *f)
{
    return f->in_flight;
}

static uint64_t size_now(const struct figures *f)
{
    return f->size;
}

static uint64_t is_failed(const struct figures *f)
{
    return f->failed;
}

static void print_exports(struct printer *p)
{
    family(p, "export_info", "gauge", "Always 1; how the export was opened last.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        const char *backend = f->backend;
        if (!backend)
            continue;
        begin(p, "", "export=\"%s\",backend=\"%s\",cache=\"%s\",direct=\"%s\"", f->label, backend,
              p->labels->cache, f->direct ? "on" : "off");
        number(p, 1);
    }
    print_of_exports(p, "size_bytes", "gauge", "Size of the disk.", size_now);
    print_of_exports(p, "connections", "gauge", "Clients that are connected.", connections_now);
    print_of_exports(p, "connections_total", "counter", "Clients that have connected.",
                     connections_made);
    print_of_exports(p, "requests_in_flight", "gauge", "Requests that are not answered yet.",
                     requests_now);
    family(p, "oldest_request_seconds", "gauge", "Age of the oldest of these requests, or 0.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        begin(p, "", "export=\"%s\"", f->label);
        seconds(p, f->oldest_ns);
    }
    print_of_exports(p, "disk_failed", "gauge",
                     "1 if a write was lost, so that every flush fails; else 0.", is_failed);
    print_of_exports(p, "flushes_joined_total", "counter",
                     "Flushes that were answered by the sync of another flush.", flushes_joined);
}

/* --- The exports: what happens below --- */

static void print_tasks(struct printer *p)
{
    static const char *const paths[POOL_PATHS] = {
        [POOL_HELPED] = "helped",
        [POOL_WORKER] = "worker",
        [POOL_TAKEN_BACK] = "taken_back",
        [POOL_STRANDED] = "stranded",
    };

    family(p, "pool_tasks_total", "counter",
           "Tasks of the worker pool, by who ran them: their caller at once, a worker, their "
           "caller after it was queued, their caller because no worker could be created.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        for (unsigned i = 0; i < POOL_LANES * POOL_PATHS; i++) {
            begin(p, "", "export=\"%s\",lane=\"%s\",path=\"%s\"", f->label,
                  lane_names[i / POOL_PATHS], paths[i % POOL_PATHS]);
            number(p, f->seen[POOL_TALLY_TASKS + i]);
        }
    }
}

static void print_unaligned(struct printer *p)
{
    family(p, "unaligned_requests_total", "counter",
           "Requests that O_DIRECT could not carry as they were.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        for (unsigned op = 0; op < CLIENT_OPS; op++) {
            if (op == CLIENT_FLUSH || op == CLIENT_EXTENTS || op == CLIENT_CACHE)
                continue;
            begin(p, "", "export=\"%s\",op=\"%s\"", f->label, figures_op_names[op]);
            number(p, f->seen[DISK_TALLY_UNALIGNED + op]);
        }
    }
}

static void print_cached_reads(struct printer *p)
{
    family(p, "page_cache_reads_total", "counter",
           "Reads that were first tried with RWF_NOWAIT, by whether the page cache had the data.");
    for (const struct figures *f = figures_first(); f; f = f->next) {
        begin(p, "", "export=\"%s\",result=\"hit\"", f->label);
        number(p, f->seen[BACKEND_TALLY_HITS]);
        begin(p, "", "export=\"%s\",result=\"miss\"", f->label);
        number(p, f->seen[BACKEND_TALLY_MISSES]);
    }
}

void metrics_print(FILE *out, const struct metrics_labels *labels, bool up)
{
    struct printer printer = {.out = out, .labels = labels};

    print_server(&printer, up);
    print_exports(&printer);
    print_requests(&printer);
    print_histograms(&printer);
    print_tasks(&printer);
    print_unaligned(&printer);
    print_cached_reads(&printer);
    print_pools(&printer);
    print_fallbacks(&printer);
    print_sum(&printer, "thread_create_failures_total", "Worker threads that were not created.",
              POOL_TALLY_SPAWN_FAILURES);
    print_sum(&printer, "bounce_waits_total", "Requests that waited for bounce memory.",
              DISK_TALLY_BOUNCE_WAITS);
    print_sum(&printer, "range_lock_waits_total",
              "Requests that waited for another request on the same blocks.",
              DISK_TALLY_RANGE_WAITS);
}
