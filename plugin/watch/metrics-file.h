/* SPDX-License-Identifier: BSD-3-Clause */
/* The metrics file: replaced as a whole each time, so a reader never sees half of one.
 *
 * The server that writes the file holds a lock on it, so a second server finds out.
 */
#ifndef AIODISK_METRICS_FILE_H
#define AIODISK_METRICS_FILE_H

#include <stdbool.h>

#include "plugin/disk/log.h"
#include "plugin/watch/metrics.h"

/* Whether a server may write this file.  Returns 0; or, and a line in `why`, -EBUSY if another
 * server writes it, -EINVAL if it is no regular file, -EEXIST if it has other content than metrics.
 * A directory that is missing or not writable is no error here.  Main thread.
 */
int metrics_file_check(const char *path, char why[LOG_LINE_SIZE]);

/* Remembers what the next functions work on.  The strings outlive metrics_file_close.  Main thread.
 */
void metrics_file_open(const char *path, const struct metrics_labels *labels);

/* Replaces the file.  up: the server runs.  A failure costs one line in the log, until a write has
 * succeeded again.  The observer's thread; blocks.
 */
void metrics_file_write(bool up);

/* Gives the lock back.  The file stays.  Main thread, after the observer's thread has ended. */
void metrics_file_close(void);

#endif
