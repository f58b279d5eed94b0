/* SPDX-License-Identifier: BSD-3-Clause */
/* The variable of progress.h.  Each thread has its own. */
#include "backends/progress.h"

_Thread_local struct progress *progress_here;
