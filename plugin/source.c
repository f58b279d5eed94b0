/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of sources, and which source the parameters give.  See source.h.
 *
 * Any thread; never blocks.
 */
#include "plugin/source.h"

#include <stddef.h>

#include "plugin/log.h"

static const struct source *const table[] = {
    &file_source,
    &rbd_source,
};

#define SOURCES (sizeof table / sizeof table[0])

const struct source *source_at(unsigned i)
{
    return i < SOURCES ? table[i] : NULL;
}

const struct source *source_given(void)
{
    for (unsigned i = 0; i < SOURCES; i++) {
        if (table[i]->is_given())
            return table[i];
    }
    return NULL;
}

int source_require_first(const char *key, const char *value)
{
    if (!source_given())
        return 0;
    log_error(
        "%s=%s: only one of file=, dir=, fd=, dirfd=, rbd= and rbd-pool= may be given, and only "
        "once",
        key, value);
    return -1;
}
