/* SPDX-License-Identifier: BSD-3-Clause */
/* Repeats the check of the image with the user that nbdkit serves as.
 *
 * `nbdkit -u USER` calls .get_ready as the user that started nbdkit, then becomes USER, then forks
 * into the background, then calls .after_fork.  An error in .after_fork reaches only syslog, and
 * the command has ended with status 0 before.  So the check is repeated just before that fork.
 */
#ifndef AIODISK_RECHECK_H
#define AIODISK_RECHECK_H

/* Called by .get_ready.  From now on, and until recheck_finish has returned, a fork(2) by a process
 * that has changed its user or group since now first calls `check`, once.  If `check` returns -1,
 * after nbdkit_error, the process ends with status 1 and does not fork.  Returns 0 or -errno.
 */
int recheck_before_fork(int (*check)(void));

/* Called by .after_fork.  If the user or group has changed and no fork has called `check` (nbdkit
 * -f), calls `check` and returns its result; otherwise returns 0.  With nbdkit --run the result is
 * 0 also after `check` has failed: the server must go on, and refuses its clients.
 */
int recheck_finish(void);

#endif
