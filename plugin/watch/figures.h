/* SPDX-License-Identifier: BSD-3-Clause */
/* The figures of each export: what is counted, for how many exports, and under which name.
 *
 * The counters of one export are one tally (pool/tally.h).  Pool, backend and plugin/disk/ count
 * into it what happens below, and call.c what the clients asked for.  Figures are made when the
 * first client of an export connects, and stay until the server ends, so a counter never goes back.
 *
 * An image with two names is one image: pool, backend and disk count for the name under which it
 * was opened.
 */
#ifndef AIODISK_FIGURES_H
#define AIODISK_FIGURES_H

#include <stdatomic.h>
#include <stdbool.h>

#include "plugin/disk/disk-tally.h"

struct disk;

/* How many exports have figures of their own.  All others share one, under the name
 * FIGURES_OTHERS, which no export has, because the name of a directory entry has no slash.
 */
#define FIGURES_MAX 1000u
#define FIGURES_OTHERS "/others"

/* The errors that a client may see. */
enum { FIGURES_ERRORS = 10 };
struct figures_error {
    int error; /* errno */
    const char *name;
};
extern const struct figures_error figures_errors[FIGURES_ERRORS];

/* The names of client_op, as in the label op. */
extern const char *const figures_op_names[CLIENT_OPS];

/* The counters of nbdkit's face in the tally of an export. */
enum figures_counter {
    /* A histogram for each client_op, + op * TALLY_HISTOGRAM: from nbdkit's call to its answer. */
    FIGURES_TIME = DISK_TALLY_END,
    FIGURES_BYTES = FIGURES_TIME + CLIENT_OPS * TALLY_HISTOGRAM, /* + op; of those that succeeded */
    FIGURES_FAILED = FIGURES_BYTES + CLIENT_OPS, /* + op * FIGURES_ERRORS + index of the error */
    FIGURES_CONNECTIONS = FIGURES_FAILED + CLIENT_OPS * FIGURES_ERRORS,
    FIGURES_END,
};

struct figures {
    /* Set once by figures_get, read by any thread. */
    char *label; /* the export's name, escaped for the text format of Prometheus */
    struct tally *tally;
    struct figures *next;

    /* Any thread: the image that was opened last under this name.  Static text, or NULL before the
     * first image.
     */
    _Atomic(const char *) backend;
    _Atomic bool direct, failed;
    _Atomic uint64_t size; /* bytes */

    /* The observer's thread, anew at each look (observer.c). */
    unsigned connections, in_flight;
    uint64_t oldest_ns; /* the age of the oldest request in flight, or 0 */
    struct pool_counters pool;
    uint64_t
        seen[FIGURES_END]; /* the counters, read once, so that the metrics agree with another */
};

/* Returns the figures of an export; NULL when there is no memory.  Any thread; does not block. */
struct figures *figures_get(const char *export_name);

/* The figures with this tally, or NULL.  Any thread; does not block. */
struct figures *figures_of_tally(const struct tally *tally);

/* Stores what is known of the disk: size, health, backend.  Any thread; does not block. */
void figures_note_disk(struct figures *figures, const struct disk *disk);

/* All figures, the oldest first.  Figures that are added meanwhile may be missing.  Any thread. */
struct figures *figures_first(void);

/* Nothing is served any more. */
void figures_free_all(void);

#endif
