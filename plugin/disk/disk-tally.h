/* SPDX-License-Identifier: BSD-3-Clause */
/* The counters of this folder in an image's tally (pool/tally.h).  Every file here may add to them,
 * on the threads of requests.
 */
#ifndef AIODISK_DISK_TALLY_H
#define AIODISK_DISK_TALLY_H

#include "backends/backend.h"

enum disk_counter {
    /* Client requests that O_DIRECT could not carry as they were, for each client_op. */
    DISK_TALLY_UNALIGNED = BACKEND_TALLY_END,
    DISK_TALLY_BOUNCE_WAITS = DISK_TALLY_UNALIGNED + CLIENT_OPS,
    DISK_TALLY_RANGE_WAITS,
    DISK_TALLY_FLUSHES_JOINED, /* flushes that the sync of another flush answered */

    /* What did not work as asked, and was done in another way: */
    DISK_TALLY_FELL_TO_PAGE_CACHE, /* images with cache=none on a filesystem without O_DIRECT */
    DISK_TALLY_FELL_TO_THREADS,    /* images whose backend= was refused when they were opened */
    DISK_TALLY_FELL_TO_SYNC,       /* FUA writes made by a write and a sync */
    DISK_TALLY_FELL_TO_ZEROS, /* zeros that were written, for no call of the kernel made them */
    DISK_TALLY_END,
};

#endif
