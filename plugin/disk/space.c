/* SPDX-License-Identifier: BSD-3-Clause */
/* The policy of space: which requests give space back.  See space.h.
 *
 * Runs on the threads of requests.  Decides only which request the disk gets; never touches the
 * storage itself.
 */
#include "plugin/disk/space.h"

int space_zero(const struct space_policy *policy, struct disk *disk, uint64_t length,
               uint64_t offset, unsigned flags)
{
    if (policy->discard == DISCARD_IGNORE)
        flags = (flags & ~(unsigned)ZERO_MAY_TRIM) | ZERO_NO_PUNCH;
    return disk->ops->zero(disk, length, offset, flags);
}

int space_trim(const struct space_policy *policy, struct disk *disk, uint64_t length,
               uint64_t offset, unsigned flags)
{
    if (policy->discard == DISCARD_UNMAP)
        return disk->ops->trim(disk, length, offset, flags);
    /* A FUA fails on a failed disk, whatever the request is. */
    return flags & ZERO_FUA ? disk->ops->flush(disk) : 0;
}
