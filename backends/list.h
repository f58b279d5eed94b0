/* SPDX-License-Identifier: BSD-3-Clause */
/* The backends there are.  A new one is declared here and named in backend.c's table, no more. */
#ifndef AIODISK_BACKENDS_LIST_H
#define AIODISK_BACKENDS_LIST_H

#include "backends/backend.h"

extern const struct backend_ops threads_ops;
extern const struct backend_ops uring_ops;
extern const struct backend_ops laio_ops;

#endif
