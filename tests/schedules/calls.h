/* SPDX-License-Identifier: BSD-3-Clause */
/* Puts a schedule point before and after each call that hands something over between threads:
 * locks, conditions, semaphores, and the creation and end of threads.
 *
 * The build that tries schedules includes this file in front of every file of pool/, backends/ and
 * plugin/ (gcc -include), so that those files need no point around such calls.
 */
#ifndef AIODISK_SCHEDULES_CALLS_H
#define AIODISK_SCHEDULES_CALLS_H

#include <pthread.h>
#include <semaphore.h>

#include "pool/schedule-point.h"

#define SCHEDULE_AROUND(call) \
    __extension__({ \
        SCHEDULE_POINT(); \
        int result_of_call = (call); \
        SCHEDULE_POINT(); \
        result_of_call; \
    })

#define pthread_mutex_lock(mutex) SCHEDULE_AROUND(pthread_mutex_lock(mutex))
#define pthread_mutex_unlock(mutex) SCHEDULE_AROUND(pthread_mutex_unlock(mutex))
#define pthread_cond_wait(cond, mutex) SCHEDULE_AROUND(pthread_cond_wait(cond, mutex))
#define pthread_cond_signal(cond) SCHEDULE_AROUND(pthread_cond_signal(cond))
#define pthread_cond_broadcast(cond) SCHEDULE_AROUND(pthread_cond_broadcast(cond))
#define pthread_create(thread, attr, fn, arg) SCHEDULE_AROUND(pthread_create(thread, attr, fn, arg))
#define pthread_join(thread, result) SCHEDULE_AROUND(pthread_join(thread, result))
#define sem_post(sem) SCHEDULE_AROUND(sem_post(sem))
#define sem_wait(sem) SCHEDULE_AROUND(sem_wait(sem))
#define sem_trywait(sem) SCHEDULE_AROUND(sem_trywait(sem))
#define sem_clockwait(sem, clock, deadline) SCHEDULE_AROUND(sem_clockwait(sem, clock, deadline))

#endif
