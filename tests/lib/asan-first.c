/* SPDX-License-Identifier: BSD-3-Clause */
/* A library that is preloaded into nbdkit beside the runtime of ASan or TSan. It allocates memory
 * once, so that the runtime initialises itself before the constructor of any other library runs.
 *
 * libp11-kit, which nbdkit loads for TLS, calls newlocale(3) in its constructor. newlocale takes
 * libc's locale lock and calls malloc. ASan's first malloc looks for a symbol that does not exist,
 * and libc translates the error message under the same lock. The lock is then released once too
 * often, and nbdkit hangs at its end (seen with GCC 12's libasan and glibc 2.36).
 *
 * The library is linked with -z initfirst: ld.so runs its constructor before all others.
 */
#include <stdlib.h>

__attribute__((constructor)) static void make_first_allocation(void)
{
    void *volatile first = malloc(1);

    free(first);
}
