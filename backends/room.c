/* SPDX-License-Identifier: BSD-3-Clause */
/* Starts and stops the loop, the pool and the backend of one image in the right order.
 *
 * Runs on the thread that opens or closes an image, and on the main thread when a backend is tried
 * before nbdkit forks.  Never carries a request.
 */
#include "backends/room.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "pool/schedule-point.h"

static pthread_mutex_t totals_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pool_counters totals; /* under totals_lock */

static void add_to_totals(struct pool *pool)
{
    struct pool_counters c;

    pool_read_counters(pool, &c);
    pthread_mutex_lock(&totals_lock);
    totals.submitted += c.submitted;
    totals.enqueued += c.enqueued;
    totals.worker_runs += c.worker_runs;
    totals.helped += c.helped;
    totals.taken_back += c.taken_back;
    totals.stranded_runs += c.stranded_runs;
    totals.stranded_errors += c.stranded_errors;
    totals.cancelled += c.cancelled;
    totals.completions += c.completions;
    totals.threads_created += c.threads_created;
    totals.spawn_failures += c.spawn_failures;
    pthread_mutex_unlock(&totals_lock);
}

void room_read_totals(struct pool_counters *sum)
{
    pthread_mutex_lock(&totals_lock);
    *sum = totals;
    pthread_mutex_unlock(&totals_lock);
}

int room_open(struct room *room, const struct room_config *config, bool direct, struct tally *tally,
              char why[ROOM_WHY_SIZE])
{
    struct pool_config pool = {
        .max_threads = config->max_threads,
        .min_threads = config->min_threads,
        .helping = config->helping,
        .tally = tally,
    };

    memset(room, 0, sizeof *room);
    int r = loop_new(&room->loop);
    if (r < 0) {
        snprintf(why, ROOM_WHY_SIZE, "the loop thread cannot be started: %s", strerror(-r));
        return r;
    }
    r = pool_new(room->loop, &pool, &room->pool);
    if (r < 0) {
        snprintf(why, ROOM_WHY_SIZE, "the worker pool cannot be made: %s", strerror(-r));
        room_close(room);
        return r;
    }
    struct backend_config backend = {
        .loop = room->loop,
        .pool = room->pool,
        .queue_depth = config->queue_depth,
        .try_cached = config->helping && !direct,
        .tally = tally,
    };
    r = backend_open(config->backend, &backend, &room->backend, why, ROOM_WHY_SIZE);
    if (r < 0)
        room_close(room);
    return r;
}

static void do_nothing(void *opaque)
{
}

void room_close(struct room *room)
{
    if (room->backend)
        backend_close(room->backend);
    SCHEDULE_POINT();
    if (room->pool) {
        /* The completion bottom half counts a batch after it has woken the batch's callers, so the
         * last batch may not be counted yet.  The bottom half has returned when loop_call returns.
         */
        loop_call(room->loop, do_nothing, NULL);
        SCHEDULE_POINT();
        add_to_totals(room->pool);
        SCHEDULE_POINT();
        pool_free(room->pool, POOL_DRAIN);
    }
    if (room->loop)
        loop_free(room->loop);
    memset(room, 0, sizeof *room);
}
