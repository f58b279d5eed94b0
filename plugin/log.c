/* SPDX-License-Identifier: BSD-3-Clause */
/* Everything that the plugin prints through nbdkit goes through here, and gets its control
 * characters escaped: a name in a message may come from a client.  Implements log.h, and
 * plugin/disk/log.h with nbdkit's functions, so that plugin/disk/ needs no nbdkit.
 *
 * Runs on the threads on which nbdkit called the plugin.  Never decides what to log.
 */
#include "plugin/log.h"

#include <stdarg.h>
#include <stdio.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/escape.h"

/* Bytes of a message before it is escaped; the rest is cut off.  A message has at most one path
 * (4096) that is not already within LOG_LINE_SIZE.
 */
#define MESSAGE_SIZE 5120u

struct line {
    char text[MESSAGE_SIZE * ESCAPE_MAX];
};

static void make_line(struct line *line, const char *format, va_list args)
{
    char message[MESSAGE_SIZE];

    vsnprintf(message, sizeof message, format, args);
    escape_text(line->text, sizeof line->text, message);
}

void log_error(const char *format, ...)
{
    struct line line;
    va_list args;

    va_start(args, format);
    make_line(&line, format, args);
    va_end(args);
    nbdkit_error("%s", line.text);
}

/* nbdkit has no level between error and debug, and prints debug lines only with -v. */
void log_warning(const char *format, ...)
{
    struct line line;
    va_list args;

    va_start(args, format);
    make_line(&line, format, args);
    va_end(args);
    nbdkit_error("%s", line.text);
}

void log_debug(const char *format, ...)
{
    struct line line;
    va_list args;

    va_start(args, format);
    make_line(&line, format, args);
    va_end(args);
    nbdkit_debug("%s", line.text);
}
