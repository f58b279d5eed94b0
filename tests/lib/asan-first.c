/* SPDX-License-Identifier: BSD-3-Clause */
/* Preloaded into nbdkit beside ASan's runtime, so that the runtime sets itself up before any library's constructor runs.
 *
 * libp11-kit, which nbdkit loads for TLS, calls newlocale(3) in its constructor; that takes libc's lock of locales and calls
 * malloc, and ASan's first malloc looks for a symbol in vain, whose error message is translated under the same lock. The lock
 * is then released once too often, and nbdkit hangs at its end (seen with GCC 12's libasan and glibc 2.36).
 * Linked with -z initfirst: ld.so runs this one's constructor before all others.
 */
#include <stdlib.h>

__attribute__((constructor)) static void make_first_allocation(void)
{
    void *volatile first = malloc(1);

    free(first);
}
