/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes a text safe to print: one line, without control characters. */
#ifndef AIODISK_ESCAPE_H
#define AIODISK_ESCAPE_H

#include <stddef.h>

/* What one byte of the text may need in the output, in bytes: "\xNN". */
#define ESCAPE_MAX 4u

/* Copies `text` to `out`, and a final 0.  Printable ASCII and printable characters in UTF-8 stay.
 * Line feed, carriage return, tab and backslash become \n, \r, \t and \\.  Each byte of any other
 * control character (C0, DEL, C1) and of what is not UTF-8 becomes \xNN.  `size` is that of `out`,
 * at least ESCAPE_MAX * strlen(text) + 1 bytes for the whole text; less cuts the text off.  Any
 * thread; does not block.
 */
void escape_text(char *out, size_t size, const char *text);

#endif
