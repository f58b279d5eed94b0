/* SPDX-License-Identifier: BSD-3-Clause */
/* Where the disks come from: the parameters that name them, the exports, and the opening.
 *
 * A kind of disk is one struct source, in a file of its own and in the table of source.c.  Nothing
 * else in plugin/ knows which kinds there are.  Parameters that concern every kind are in config.h.
 */
#ifndef AIODISK_SOURCE_H
#define AIODISK_SOURCE_H

#include <stdbool.h>

#include "plugin/disk/disk.h"
#include "plugin/disk/log.h"

struct room_config;

struct source_options {
    const struct room_config *room;
    bool readonly;
    struct tally_finder tally;
};

/* The functions that fail return -errno and store one line in `why`, which names the disk and the
 * reason.  After config_complete nothing changes what the parameters said.
 */
struct source {
    /* Sets a parameter, as config_set does.  Returns 0, -1 after log_error, or 1 if the key is none
     * of this source.  NULL: config_set itself knows the parameters.  Main thread.
     */
    int (*set)(const char *key, const char *value);

    /* Returns whether the parameters name a disk, or several, of this kind.  Any thread. */
    bool (*is_given)(void);

    /* Checks the parameters of a source that is not given, too.  Returns 0, or -1 after log_error.
     * NULL: there is nothing to check.  Main thread.
     */
    int (*complete)(void);

    /* Checks that the disk, or the place where the disks are, exists and can be read by the process
     * as it is now.  Leaves no thread and no descriptor behind.  Main thread; blocks.
     */
    int (*check)(char why[LOG_LINE_SIZE]);

    /* Returns whether the exports have names.  If they do not, there is one export, whatever name a
     * client asks for.  Any thread.
     */
    bool (*has_names)(void);

    /* Calls add(opaque, name, description) for each export that has a name.  Stops early if `add`
     * returns a value other than 0, and returns that value without a line in `why`.  nbdkit's
     * threads; blocks.
     */
    int (*list)(int (*add)(void *opaque, const char *name, const char *description), void *opaque,
                char why[LOG_LINE_SIZE]);

    /* Opens the disk behind an export, or finds the open one, and returns a reference.  nbdkit's
     * threads; blocks.
     */
    int (*open)(const char *export_name, const struct source_options *options, struct disk **disk,
                char why[LOG_LINE_SIZE]);

    /* Frees what `set` allocated.  NULL: config_free does.  Main thread. */
    void (*free)(void);
};

extern const struct source file_source;
extern const struct source rbd_source;

/* The i-th source, or NULL when there are not so many.  Any thread. */
const struct source *source_at(unsigned i);

/* The source that the parameters give, or NULL.  Any thread. */
const struct source *source_given(void);

/* Returns 0, or -1 after an error if a source was given before this parameter.  Main thread. */
int source_require_first(const char *key, const char *value);

#endif
