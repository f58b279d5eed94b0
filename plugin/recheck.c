/* SPDX-License-Identifier: BSD-3-Clause */
/* Repeats the check of the image with the user that nbdkit serves as.  See recheck.h.
 *
 * nbdkit 1.32 to 1.42 have no callback between the change of the user and the fork, so a handler of
 * pthread_atfork(3) takes that place.  The fork for --run comes before the change of the user, and
 * has nothing to check.  nbdkit then waits in the parent for the command and keeps the socket open,
 * so a client that the command has started would wait for ever if the server in the child ended.
 * dlclose(3) of the plugin removes the handler.
 *
 * Runs on nbdkit's main thread, which is the only thread of the process at that time.  Never does
 * anything once nbdkit serves.
 */
#include "plugin/recheck.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

/* Main thread only.  `pending` is NULL when nothing is left to check. */
static int (*pending)(void);
static uid_t checked_user;
static gid_t checked_group;
static bool has_forked; /* with the first user: for --run */

static int check_if_changed(void)
{
    int (*check)(void) = pending;

    if (!check || (geteuid() == checked_user && getegid() == checked_group))
        return 0;
    pending = NULL;
    return check();
}

/* _exit and not exit: glibc before 2.36 holds a lock here that exit(3) takes again.  nbdkit has
 * registered nothing that must run at the exit.
 */
static void before_fork(void)
{
    if (check_if_changed() < 0)
        _exit(EXIT_FAILURE);
    has_forked = true;
}

int recheck_before_fork(int (*check)(void))
{
    pending = check;
    checked_user = geteuid();
    checked_group = getegid();
    return -pthread_atfork(before_fork, NULL, NULL);
}

int recheck_finish(void)
{
    int r = check_if_changed();

    pending = NULL;
    return has_forked ? 0 : r;
}
