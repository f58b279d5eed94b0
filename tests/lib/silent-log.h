/* SPDX-License-Identifier: BSD-3-Clause */
/* What plugin/log.c does in the plugin, for a test of the disk layer that expects no message: it
 * writes nothing.  One file of each program includes this header.
 */
#ifndef AIODISK_SILENT_LOG_H
#define AIODISK_SILENT_LOG_H

#include "plugin/disk/log.h"

void log_warning(const char *format, ...)
{
    (void)format;
}

void log_debug(const char *format, ...)
{
    (void)format;
}

#endif
