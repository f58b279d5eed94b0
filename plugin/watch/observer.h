/* SPDX-License-Identifier: BSD-3-Clause */
/* The observer: one thread that looks at the requests in flight several times in a while, names the
 * slow ones in the log (slow-request=), and writes the metrics file once a second (metrics=).
 */
#ifndef AIODISK_OBSERVER_H
#define AIODISK_OBSERVER_H

#include <stdint.h>

#include "plugin/watch/metrics.h"

struct observer_config {
    uint64_t slow_ns;    /* a request older than this is slow; 0: none is */
    const char *metrics; /* absolute path of the metrics file, or NULL */
    struct metrics_labels labels;
};

/* Starts the thread if there is anything to do.  Returns 0 or -errno of pthread_create(3).  Main
 * thread, after nbdkit has forked.
 */
int observer_start(const struct observer_config *config);

/* Writes the metrics file for the last time and joins the thread.  Does nothing when the thread was
 * not started.  Blocks as long as the metrics file's own filesystem does.  Main thread, when every
 * connection is gone.
 */
void observer_stop(void);

#endif
