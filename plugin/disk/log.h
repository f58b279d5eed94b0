/* SPDX-License-Identifier: BSD-3-Clause */
/* How the files under plugin.c speak to the user without knowing nbdkit: log.c defines these (a
 * unit test defines its own).  Any thread that nbdkit called us on; not the loop thread.
 */
#ifndef AIODISK_LOG_H
#define AIODISK_LOG_H

/* Room for one line that says what was wrong, on what. */
#define LOG_LINE_SIZE 512

/* One line that the user must see: something works otherwise than was asked, or a disk is in trouble. */
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* One line for nbdkit -v. */
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
