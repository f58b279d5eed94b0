/* SPDX-License-Identifier: BSD-3-Clause */
/* For C tests whose linker options wrap functions (--wrap): functions that fail on a condition. */
#ifndef AIODISK_WRAP_H
#define AIODISK_WRAP_H

/* Defines the wrapper of a function: if `condition` is true it returns `failure`, and otherwise it
 * makes the real call.  The condition sets errno if the callers look at it.
 */
#define WRAP_IF(condition, type, name, failure, parameters, arguments) \
    type __real_##name parameters; \
    type __wrap_##name parameters; \
    type __wrap_##name parameters \
    { \
        return (condition) ? (type)(failure) : __real_##name arguments; \
    }

/* While `condition` is true no thread can be created. */
#define WRAP_PTHREAD_CREATE_IF(condition) \
    WRAP_IF(condition, int, pthread_create, EAGAIN, \
            (pthread_t * thread, const pthread_attr_t *attr, void *(*f)(void *), void *p), \
            (thread, attr, f, p))

#endif
