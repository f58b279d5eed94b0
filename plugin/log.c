/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements plugin/disk/log.h with nbdkit's functions, so that plugin/disk/ needs no nbdkit.
 *
 * Runs on the threads on which nbdkit called the plugin.  Never decides what to log and never
 * reports the error of a request: answer() in plugin.c does that.
 */
#include "plugin/disk/log.h"

#include <stdarg.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

/* nbdkit has no level between error and debug, and prints debug lines only with -v. */
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
