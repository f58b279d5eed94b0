/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs a command under a seccomp filter in which the named system calls fail with the given errno,
 * as they do in a container or under a strict service manager. The tests of the backends' fallbacks
 * use this program.
 *
 *   deny-syscalls ERRNO-NUMBER SYSCALL... -- COMMAND ARGUMENTS...
 *
 * Exits with 125 if the filter or the command cannot be started.
 */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fail(const char *what, int error)
{
    fprintf(stderr, "deny-syscalls: %s: %s\n", what, strerror(error));
    return 125;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return fail("usage: ERRNO-NUMBER SYSCALL... -- COMMAND", EINVAL);
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    if (!filter)
        return fail("seccomp_init", ENOMEM);
    int i = 2;
    for (; i < argc && strcmp(argv[i], "--") != 0; i++) {
        int number = seccomp_syscall_resolve_name(argv[i]);
        if (number == __NR_SCMP_ERROR)
            return fail(argv[i], ENOSYS);
        int r = seccomp_rule_add(filter, SCMP_ACT_ERRNO((unsigned)atoi(argv[1])), number, 0);
        if (r < 0)
            return fail("seccomp_rule_add", -r);
    }
    int r = seccomp_load(filter);
    if (r < 0)
        return fail("seccomp_load", -r);
    seccomp_release(filter);
    if (i + 1 >= argc)
        return fail("no command", EINVAL);
    execvp(argv[i + 1], argv + i + 1);
    return fail(argv[i + 1], errno);
}
