/* SPDX-License-Identifier: BSD-3-Clause */
/* The scan for zeros: one byte that is not zero is found at every position, length and alignment,
 * and no byte before or beyond the data is read or matters.
 */
#include "tests/lib/pool-test.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "plugin/disk/space.h"

#define LONGEST 600u
#define ALIGNMENTS 64u

static void finds_every_byte(void **state)
{
    static char memory[ALIGNMENTS + LONGEST + 1];

    for (size_t start = 1; start < ALIGNMENTS; start++) {
        for (size_t length = 0; length <= LONGEST; length += length < 70 ? 1 : 53) {
            /* The bytes around the data are not zero. */
            memset(memory, 0xff, sizeof memory);
            memset(memory + start, 0, length);
            CHECK(space_is_zeros(memory + start, length));
            for (size_t at = 0; at < length; at++) {
                memory[start + at] = (char)(1 << at % 8);
                CHECK(!space_is_zeros(memory + start, length));
                memory[start + at] = 0;
            }
        }
    }
}

/* Periodic data would pass for zeros if the scan compared at a distance of the period only. */
static void is_not_deceived_by_patterns(void **state)
{
    static char memory[4096];

    for (size_t period = 1; period <= 64; period++) {
        for (size_t at = 0; at < sizeof memory; at++)
            memory[at] = at % period == period - 1;
        CHECK(!space_is_zeros(memory, sizeof memory));
    }
}

static void reads_nothing_beyond(void **state)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 4 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(memory != MAP_FAILED);
    /* Pages that may not be touched surround the data. */
    CHECK(mprotect(memory + page, 2 * page, PROT_READ | PROT_WRITE) == 0);
    for (size_t length = 0; length <= 2 * page; length += length < 300 ? 1 : 61) {
        CHECK(space_is_zeros(memory + page, length));
        CHECK(space_is_zeros(memory + 3 * page - length, length));
    }
    CHECK(munmap(memory, 4 * page) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_every_byte),
        cmocka_unit_test(is_not_deceived_by_patterns),
        cmocka_unit_test(reads_nothing_beyond),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
