/* SPDX-License-Identifier: BSD-3-Clause */
/* Places at which another thread may get ahead: a test can make the calling thread yield or sleep
 * there, and so try orders of the threads' steps that a quiet machine hardly ever shows.
 *
 * SCHEDULE_POINT() stands before and after each hand-over between threads: a lock, a semaphore, a
 * state that another thread reads, an eventfd, a submission, a completion.  It is empty unless
 * AIODISK_SCHEDULES is defined.  Only the meson option `schedules` compiles the sources with that
 * define, a second time and only for tests; tests/schedules/schedule-point.c has the function.
 *
 * Any thread.  A point touches no memory of the program, so it may follow the last touch of an
 * object.
 */
#ifndef AIODISK_SCHEDULE_POINT_H
#define AIODISK_SCHEDULE_POINT_H

#ifdef AIODISK_SCHEDULES
void schedule_point(const char *file, unsigned line);
#define SCHEDULE_POINT() schedule_point(__FILE__, __LINE__)
#else
#define SCHEDULE_POINT() ((void)0)
#endif

#endif
