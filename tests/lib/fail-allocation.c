/* SPDX-License-Identifier: BSD-3-Clause */
/* A library for LD_PRELOAD that makes allocations of one other library fail.
 *
 *   FAIL_ALLOCATION_OF    name of the library's file; the caller of the function tells it
 *   FAIL_ALLOCATION       N: its Nth allocation fails; N+: all from the Nth on
 *   FAIL_ALLOCATION_FILE  a file to which each failure appends the function and the caller
 *   FAIL_ALLOCATION_STOP  from when this file exists, no allocation fails
 *
 * Counts malloc, calloc, realloc, aligned_alloc, posix_memalign, strdup, asprintf, open_memstream,
 * fopen and fdopendir.  Allocations of other libraries never fail.  Runs on any thread.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
int __vasprintf_chk(char **text, int flag, const char *format, va_list arguments);
int __asprintf_chk(char **text, int flag, const char *format, ...);

static atomic_ulong calls;

/* Notes the failure without an allocation. */
static void note(const char *function, const Dl_info *info, const void *caller)
{
    const char *path = getenv("FAIL_ALLOCATION_FILE");
    char line[200];
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;

    if (fd < 0)
        return;
    int length = snprintf(line, sizeof line, "%s %#lx\n", function,
                          (unsigned long)((const char *)caller - (const char *)info->dli_fbase));
    if (write(fd, line, length) != length)
        abort();
    close(fd);
}

static bool fails(const char *function, const void *caller)
{
    const char *of = getenv("FAIL_ALLOCATION_OF"), *when = getenv("FAIL_ALLOCATION");
    const char *stop = getenv("FAIL_ALLOCATION_STOP");
    Dl_info info;
    char *end;

    if (!of || !when || !dladdr(caller, &info) || !info.dli_fname)
        return false;
    const char *slash = strrchr(info.dli_fname, '/');
    if (strcmp(slash ? slash + 1 : info.dli_fname, of) != 0)
        return false;
    unsigned long first = strtoul(when, &end, 10), number = atomic_fetch_add(&calls, 1) + 1;
    if (*end == '+' ? number < first : number != first)
        return false;
    if (stop && access(stop, F_OK) == 0)
        return false;
    note(function, &info, caller);
    errno = ENOMEM;
    return true;
}

#define FAILS(function) fails(function, __builtin_return_address(0))

void *malloc(size_t size)
{
    return FAILS("malloc") ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return FAILS("calloc") ? NULL : __libc_calloc(n, size);
}

void *realloc(void *old, size_t size)
{
    return FAILS("realloc") ? NULL : __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return FAILS("aligned_alloc") ? NULL : __libc_memalign(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size)
{
    if (FAILS("posix_memalign"))
        return ENOMEM;
    *memory = __libc_memalign(alignment, size);
    return *memory ? 0 : ENOMEM;
}

char *strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = FAILS("strdup") ? NULL : __libc_malloc(bytes);

    return copy ? memcpy(copy, text, bytes) : NULL;
}

int asprintf(char **text, const char *format, ...)
{
    va_list arguments;

    if (FAILS("asprintf"))
        return -1;
    va_start(arguments, format);
    int length = __vasprintf_chk(text, 0, format, arguments);
    va_end(arguments);
    return length;
}

/* What asprintf is under _FORTIFY_SOURCE. */
int __asprintf_chk(char **text, int flag, const char *format, ...)
{
    va_list arguments;

    if (FAILS("asprintf"))
        return -1;
    va_start(arguments, format);
    int length = __vasprintf_chk(text, flag, format, arguments);
    va_end(arguments);
    return length;
}

FILE *open_memstream(char **text, size_t *length)
{
    static FILE *(*real)(char **, size_t *);

    if (FAILS("open_memstream"))
        return NULL;
    *(void **)&real = dlsym(RTLD_NEXT, "open_memstream");
    return real(text, length);
}

FILE *fopen64(const char *path, const char *mode)
{
    static FILE *(*real)(const char *, const char *);

    if (FAILS("fopen"))
        return NULL;
    *(void **)&real = dlsym(RTLD_NEXT, "fopen64");
    return real(path, mode);
}

DIR *fdopendir(int fd)
{
    static DIR *(*real)(int);

    if (FAILS("fdopendir"))
        return NULL;
    *(void **)&real = dlsym(RTLD_NEXT, "fdopendir");
    return real(fd);
}
