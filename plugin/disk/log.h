/* SPDX-License-Identifier: BSD-3-Clause */
/* How this folder reports to the user without knowing nbdkit.  plugin/log.c implements the
 * functions; a unit test implements its own.  Any thread that nbdkit created; not a loop thread.
 */
#ifndef AIODISK_LOG_H
#define AIODISK_LOG_H

/* Bytes of one line that says what failed, and on what. */
#define LOG_LINE_SIZE 512

/* One line that the user must see: something does not work as asked, or a disk is in trouble. */
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* One line for nbdkit -v. */
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
