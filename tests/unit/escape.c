/* SPDX-License-Identifier: BSD-3-Clause */
/* A name from a client can neither forge a line of the log nor send commands to a terminal, and a
 * legible name stays legible.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "plugin/escape.h"

static const struct {
    const char *text, *escaped;
} texts[] = {
    {"", ""},
    {"disk.img: 'with space': ~", "disk.img: 'with space': ~"},
    {"one\ntwo\r\tthree", "one\\ntwo\\r\\tthree"},
    {"back\\slash", "back\\\\slash"},
    {"\x1b[31mred\x07\x7f\x01", "\\x1b[31mred\\x07\\x7f\\x01"},
    {"größe-日本-\xf0\x9f\x92\xbe", "größe-日本-\xf0\x9f\x92\xbe"},
    /* U+009B starts a command as ESC [ does; U+00A0 is no control character. */
    {"\xc2\x9b"
     "31m \xc2\x80\xc2\xa0",
     "\\xc2\\x9b31m \\xc2\\x80\xc2\xa0"},
    /* Not UTF-8: a byte of Latin-1, cut off, overlong, a surrogate, beyond U+10FFFF. */
    {"\x9b", "\\x9b"},
    {"\xe6\x97", "\\xe6\\x97"},
    {"\xf0\x9f\x92.", "\\xf0\\x9f\\x92."},
    {"\xc0\x8a \xe0\x80\x8a \xf0\x80\x80\x8a", "\\xc0\\x8a \\xe0\\x80\\x8a \\xf0\\x80\\x80\\x8a"},
    {"\xed\xa0\x80", "\\xed\\xa0\\x80"},
    {"\xf4\x90\x80\x80 \xff", "\\xf4\\x90\\x80\\x80 \\xff"},
};

static void texts_are_escaped(void **state)
{
    char out[256];

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        escape_text(out, sizeof out, texts[i].text);
        assert_string_equal(out, texts[i].escaped);
    }
}

/* Every byte in every position of a sequence: nothing below 0x20 and no DEL comes out, and no byte
 * beyond the final 0 is read.
 */
static void no_control_byte_comes_out(void **state)
{
    static const char leads[] = "x\xc2\xe0\xed\xf0\xf4";
    char text[4] = "", out[4 * ESCAPE_MAX + 1];

    for (size_t lead = 0; lead < sizeof leads - 1; lead++) {
        for (unsigned n = 1; n < 1u << 16; n++) {
            memcpy(text, (char[]){leads[lead], n & 0xff, n >> 8, 0}, sizeof text);
            escape_text(out, sizeof out, text);
            for (const unsigned char *s = (unsigned char *)out; *s; s++)
                assert_true(*s >= 0x20 && *s != 0x7f);
        }
    }
}

static void the_output_is_bounded(void **state)
{
    char out[8];

    for (size_t size = 1; size <= sizeof out; size++) {
        memset(out, 'z', sizeof out);
        escape_text(out, size, "a\x01\n\x02\x03");
        assert_true(strlen(out) < size);
        for (size_t i = size; i < sizeof out; i++)
            assert_int_equal(out[i], 'z');
    }
    assert_string_equal(out, "a\\x01\\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_are_escaped),
        cmocka_unit_test(no_control_byte_comes_out),
        cmocka_unit_test(the_output_is_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
