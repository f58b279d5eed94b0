/* SPDX-License-Identifier: BSD-3-Clause */
/* How a fuzz target reports a broken promise: libFuzzer keeps the input of a process that aborts.
 * Any thread.
 */
#ifndef AIODISK_FUZZ_CHECK_H
#define AIODISK_FUZZ_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

#endif
