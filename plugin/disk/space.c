/* SPDX-License-Identifier: BSD-3-Clause */
/* The policy of space: which requests give space back.  See space.h.
 *
 * Runs on the threads of requests.  Decides only which request the disk gets; never touches the
 * storage itself.
 */
#include "plugin/disk/space.h"

#include <string.h>

/* If the first byte is zero and each byte equals the next one, all are zero.  memcmp(3) uses the
 * widest registers that the processor has: 50 GB/s here, 80 ns for 4 KiB of zeros and 8 ns if the
 * first byte is not zero, where a loop over words that the compiler vectorizes reaches 8 GB/s.
 */
bool space_is_zeros(const void *buf, size_t length)
{
    const char *bytes = buf;

    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

int space_write(const struct space_policy *policy, struct disk *disk, const void *buf,
                uint64_t length, uint64_t offset, bool fua)
{
    if (policy->detect_zeroes == DETECT_ZEROES_OFF || !space_is_zeros(buf, length))
        return disk->ops->write(disk, buf, length, offset, fua);
    return space_zero(policy, disk, length, offset,
                      (policy->detect_zeroes == DETECT_ZEROES_UNMAP ? ZERO_MAY_TRIM : 0) |
                          (fua ? ZERO_FUA : 0));
}

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
