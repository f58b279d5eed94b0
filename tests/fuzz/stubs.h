/* SPDX-License-Identifier: BSD-3-Clause */
/* What nbdkit does for the plugin, for the fuzz targets: they run the plugin's files without the
 * server.  The functions have nbdkit's names, and here they check what the plugin gives them.
 *
 * Each fuzz target includes this file once.  One thread uses the functions.
 */
#ifndef AIODISK_FUZZ_STUBS_H
#define AIODISK_FUZZ_STUBS_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/check.h"

static unsigned errors; /* lines that the user has got */

/* A message is one line of printable text. */
static void check_line(const char *line)
{
    CHECK(line[0] != '\0');
    for (const unsigned char *s = (const unsigned char *)line; *s; s++)
        CHECK(*s >= 0x20 && *s != 0x7f && !(s[0] == 0xc2 && s[1] >= 0x80 && s[1] <= 0x9f));
}

static void check_message(const char *format, va_list args)
{
    char *line;

    CHECK(vasprintf(&line, format, args) >= 0);
    check_line(line);
    free(line);
}

void nbdkit_error(const char *format, ...);
void nbdkit_error(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    check_message(format, args);
    va_end(args);
    errors++;
}

void nbdkit_debug(const char *format, ...);
void nbdkit_debug(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    check_message(format, args);
    va_end(args);
}

char *nbdkit_absolute_path(const char *path);
char *nbdkit_absolute_path(const char *path)
{
    char *absolute;

    if (path[0] == '/')
        return strdup(path);
    return asprintf(&absolute, "/some/directory/%s", path) < 0 ? NULL : absolute;
}

const char *nbdkit_printf_intern(const char *format, ...);
const char *nbdkit_printf_intern(const char *format, ...)
{
    CHECK(format[0] != '\0');
    return "name";
}

#endif
