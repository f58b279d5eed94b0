/* SPDX-License-Identifier: BSD-3-Clause */
/* What log.h declares, by nbdkit's own means.  Decides nothing: errors of requests are plugin.c's business.
 *
 * Runs on any thread that nbdkit called us on.
 */
#include "plugin/disk/log.h"

#include <stdarg.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

void log_warning(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    nbdkit_verror(format, args);
    va_end(args);
}

void log_debug(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    nbdkit_vdebug(format, args);
    va_end(args);
}
