/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parameters mean for the machine rooms of the images. */
#ifndef AIODISK_RUNTIME_H
#define AIODISK_RUNTIME_H

#include "backends/room.h"
#include "plugin/config.h"

/* The room that each image gets.  `backend` is a name that backend_name() gives.  Any thread. */
struct room_config runtime_room_config(const struct config *cfg, const char *backend);

/* Opens a room with this backend and closes it again.  Returns what room_open returns, with the
 * same `why`.  Leaves no thread and no descriptor behind, so nbdkit may fork afterwards.  Main
 * thread; blocks.
 */
int runtime_try(const struct config *cfg, const char *backend, char why[ROOM_WHY_SIZE]);

/* Prints the counters of all pools to standard error in one line (-D aiodisk.stats=1).  Every image
 * is closed.  Main thread.
 */
void runtime_print_counters(void);

#endif
