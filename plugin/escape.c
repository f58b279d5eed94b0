/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes a text safe to print.  See escape.h.
 *
 * A client chooses the name of the export that it asks for, and whoever may write into the
 * directory of dir= chooses file names.  Both appear in messages, and could forge lines of the log
 * or send commands to the terminal that shows the log.
 *
 * Runs on any thread.  Never depends on the locale: nbdkit does not set one.
 */
#include "plugin/escape.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* Returns the number of bytes of the printable UTF-8 character at `s`, which ends with a 0; or 0 if
 * the bytes are not UTF-8 (RFC 3629) or a control character.
 */
static size_t printable(const unsigned char *s)
{
    unsigned char lowest = 0x80, highest = 0xbf; /* of the second byte */
    size_t length;

    if (s[0] < 0x80)
        return s[0] >= 0x20 && s[0] != 0x7f;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    switch (s[0]) {
    case 0xc2: /* U+0080 to U+009F are control characters */
    case 0xe0: /* less would be overlong */
        lowest = 0xa0;
        break;
    case 0xed: /* more would be a surrogate */
        highest = 0x9f;
        break;
    case 0xf0: /* less would be overlong */
        lowest = 0x90;
        break;
    case 0xf4: /* more would be beyond U+10FFFF */
        highest = 0x8f;
        break;
    }
    if (s[1] < lowest || s[1] > highest)
        return 0;
    for (size_t i = 2; i < length; i++)
        if (s[i] < 0x80 || s[i] > 0xbf)
            return 0;
    return length;
}

/* Stores what the first character or byte of `s` becomes, and returns how many bytes of `s` that
 * was.
 */
static size_t escape_one(char piece[ESCAPE_MAX + 1], const unsigned char *s)
{
    static const char named[] = "\n\r\t\\", names[] = "nrt\\";
    const char *found = strchr(named, s[0]);
    size_t length = printable(s);

    if (found) {
        snprintf(piece, ESCAPE_MAX + 1, "\\%c", names[found - named]);
        return 1;
    }
    if (length > 0) {
        snprintf(piece, ESCAPE_MAX + 1, "%.*s", (int)length, (const char *)s);
        return length;
    }
    snprintf(piece, ESCAPE_MAX + 1, "\\x%02x", s[0]);
    return 1;
}

void escape_text(char *out, size_t size, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    char piece[ESCAPE_MAX + 1];
    size_t used = 0;

    assert(size > 0);
    while (*s) {
        s += escape_one(piece, s);
        size_t length = strlen(piece);
        if (used + length >= size)
            break;
        memcpy(out + used, piece, length);
        used += length;
    }
    out[used] = '\0';
}
