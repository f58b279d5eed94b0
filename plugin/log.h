/* SPDX-License-Identifier: BSD-3-Clause */
/* How this folder reports errors: the only way to nbdkit_error, so that no message contains a
 * control character.  plugin/disk/log.h has the warnings and the debug lines.
 */
#ifndef AIODISK_PLUGIN_LOG_H
#define AIODISK_PLUGIN_LOG_H

#include "plugin/disk/log.h"

/* One line: a callback of nbdkit fails, and why.  Control characters are escaped (escape.h).  Any
 * thread on which nbdkit called the plugin.
 */
void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
