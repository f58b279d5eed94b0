/* SPDX-License-Identifier: BSD-3-Clause */
/* The metrics in the text format of Prometheus (version 0.0.4).  nbdkit-aiodisk-plugin(1) lists
 * them.
 */
#ifndef AIODISK_METRICS_H
#define AIODISK_METRICS_H

#include <stdbool.h>
#include <stdio.h>

/* What is the same in every sample.  Static text, or as long as the observer runs. */
struct metrics_labels {
    const char *server; /* the value of the label `server`, escaped; or NULL: no such label */
    const char *cache;  /* as asked for: "default" or "none" */
};

/* Prints all metrics as of the observer's last look.  up: the server runs.  Output errors are left
 * to fclose(3).  The observer's thread.
 */
void metrics_print(FILE *out, const struct metrics_labels *labels, bool up);

#endif
