/* SPDX-License-Identifier: BSD-3-Clause */
/* Zero, fast zero and trim: ladders of methods, the best first.  See zero.h.
 *
 * -EOPNOTSUPP is remembered per image.  -EINVAL may concern this range only, so it tries the next
 * method and is forgotten.  Ends that are not aligned are written as zeros by a zero, and left
 * alone by a trim.
 *
 * Runs on the threads of requests.  Never changes the size of a file, and a zero without
 * ZERO_MAY_TRIM never leaves a hole when it returns 0.
 */
#include <errno.h>
#include <linux/falloc.h>
#include <linux/fs.h>

#include "plugin/disk/health.h"
#include "plugin/disk/image.h"

/* Bytes of one call to the kernel.  Where the kernel ends up writing zeros, a longer call would
 * hold its slot for minutes.
 */
#define STEP_BYTES ((uint64_t)128 << 20)

#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define ZERO_RANGE (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)
#define ALLOCATE FALLOC_FL_KEEP_SIZE

/* This method does not work on the range: the next one must be tried. */
static bool steps_down(int r)
{
    return r == -EOPNOTSUPP || r == -EINVAL || r == -EBUSY;
}

/* Runs one fallocate(2) on a file at a time.  The kernel takes the inode's lock exclusively for it,
 * so several at once gain nothing; but a call that waits for that lock delays every read and write
 * that comes after it.
 */
static int run_alone(struct image *image, struct request *request)
{
    pthread_mutex_lock(&image->zero.fallocate_lock);
    int r = backend_run(image->room.backend, request);
    pthread_mutex_unlock(&image->zero.fallocate_lock);
    return r;
}

/* Tries one method on the range, unless the method is known not to work, and remembers what it
 * learned.
 */
static int try_method(struct image *image, _Atomic int *ability, enum request_op op, int mode,
                      uint64_t length, uint64_t offset)
{
    struct request request = {
        .op = op,
        .fd = image->fd,
        .mode = mode,
        .offset = offset,
        .length = length,
    };

    if (atomic_load_explicit(ability, memory_order_relaxed) == ABILITY_NO)
        return -EOPNOTSUPP;
    int r =
        image->key.block ? backend_run(image->room.backend, &request) : run_alone(image, &request);
    if (r == -ENOTTY || r == -ENOSYS || r == -ENODEV)
        r = -EOPNOTSUPP;
    if (r == 0)
        atomic_store_explicit(ability, ABILITY_YES, memory_order_relaxed);
    else if (r == -EOPNOTSUPP)
        atomic_store_explicit(ability, ABILITY_NO, memory_order_relaxed);
    return r;
}

static bool is_unknown(_Atomic int *ability)
{
    return atomic_load_explicit(ability, memory_order_relaxed) == ABILITY_UNKNOWN;
}

static int punch(struct image *image, uint64_t length, uint64_t offset)
{
    return try_method(image, &image->zero.can_punch, REQUEST_FALLOCATE, PUNCH, length, offset);
}

static int zero_range(struct image *image, uint64_t length, uint64_t offset)
{
    return try_method(image, &image->zero.can_zero_range, REQUEST_FALLOCATE, ZERO_RANGE, length,
                      offset);
}

static int allocate(struct image *image, uint64_t length, uint64_t offset)
{
    return try_method(image, &image->zero.can_allocate, REQUEST_FALLOCATE, ALLOCATE, length,
                      offset);
}

/* Punches a hole and fills it with blocks that read as zeros.  A fast zero must not fail when the
 * hole is made already, so it first finds out whether the second half works; allocating alone
 * changes no byte.
 */
static int punch_and_allocate(struct image *image, uint64_t length, uint64_t offset, bool fast)
{
    int r = 0;

    if (fast &&
        atomic_load_explicit(&image->zero.can_allocate, memory_order_relaxed) != ABILITY_YES)
        r = allocate(image, length, offset);
    if (r == 0)
        r = punch(image, length, offset);
    if (r == 0)
        r = allocate(image, length, offset);
    return r;
}

static int zero_file_step(struct image *image, uint64_t length, uint64_t offset, unsigned flags)
{
    int r = -EOPNOTSUPP;

    if (flags & ZERO_MAY_TRIM)
        r = punch(image, length, offset);
    if (steps_down(r))
        r = zero_range(image, length, offset);
    if (steps_down(r) && !(flags & ZERO_MAY_TRIM))
        r = punch_and_allocate(image, length, offset, flags & ZERO_FAST);
    return r;
}

static int zero_device_step(struct image *image, uint64_t length, uint64_t offset, unsigned flags)
{
    int r = -EOPNOTSUPP;

    /* On a block device PUNCH_HOLE is the only method in which the kernel never writes zeros.  The
     * kernel drops the pages of the range from the page cache before it finds out that the device
     * cannot punch.  Until that is known, these pages must not be dirty.
     */
    if (flags & ZERO_MAY_TRIM) {
        r = is_unknown(&image->zero.can_punch) ? image_flush(image) : 0;
        if (r == 0)
            r = punch(image, length, offset);
    }
    if (flags & ZERO_FAST)
        return r;
    if (steps_down(r))
        r = zero_range(image, length, offset);
    if (steps_down(r))
        r = try_method(image, &image->zero.can_zeroout, REQUEST_ZEROOUT, 0, length, offset);
    return r;
}

/* Returns the whole units of the range: [*start, *end).  The end of the disk counts as the end of a
 * unit.
 */
static void whole_units(const struct image *image, uint64_t length, uint64_t offset,
                        uint64_t *start, uint64_t *end)
{
    uint64_t unit = image->key.block && image->geometry.granule < image->geometry.sector
                        ? image->geometry.sector
                        : image->geometry.granule;

    *start = align_up(offset, unit);
    *end = offset + length;
    if (image->key.block || *end != atomic_load_explicit(&image->size, memory_order_relaxed))
        *end = align_down(*end, unit);
    if (*end < *start)
        *end = *start = offset;
}

/* Under the range lock. */
static int zero_locked(struct image *image, uint64_t length, uint64_t offset, unsigned flags)
{
    uint64_t start, end;
    int r = 0;

    whole_units(image, length, offset, &start, &end);
    if ((flags & ZERO_FAST) && (start != offset || end != offset + length))
        return -EOPNOTSUPP;
    if (start > offset)
        r = transfer_write_zeros(image, start - offset, offset);
    if (r == 0 && end < offset + length)
        r = transfer_write_zeros(image, offset + length - end, end);

    while (r == 0 && start < end) {
        uint64_t step = end - start < STEP_BYTES ? end - start : STEP_BYTES;

        r = image->key.block ? zero_device_step(image, step, start, flags)
                             : zero_file_step(image, step, start, flags);
        if (steps_down(r)) {
            if (flags & ZERO_FAST)
                return -EOPNOTSUPP;
            tally_add(image->tally, DISK_TALLY_FELL_TO_ZEROS, 1);
            r = transfer_write_zeros(image, step, start);
        }
        start += step;
    }
    return r;
}

/* Beyond the end of a block device that has become smaller, fallocate(2) does what it can and
 * returns 0 (seen).
 */
static int check_device_end(const struct image *image, uint64_t end)
{
    int64_t size = image->key.block ? image_measure(image) : INT64_MAX;

    if (size < 0)
        return (int)size;
    return end <= (uint64_t)size ? 0 : -ENOSPC;
}

void zero_init(struct zero_state *state)
{
    *state = (struct zero_state){.can_punch = ABILITY_UNKNOWN};
    pthread_mutex_init(&state->fallocate_lock, NULL);
}

void zero_destroy(struct zero_state *state)
{
    pthread_mutex_destroy(&state->fallocate_lock);
}

int image_zero(struct image *image, uint64_t length, uint64_t offset, unsigned flags)
{
    struct range range;

    if (length == 0)
        return 0;
    int r = flags & ZERO_FUA ? image_health(image) : 0;
    if (r == 0)
        r = image_before_write(image, offset + length);
    if (r == 0)
        r = check_device_end(image, offset + length);
    if (r < 0)
        return r;
    transfer_count_unaligned(image, length, offset);
    transfer_lock(image, &range, length, offset);
    r = zero_locked(image, length, offset, flags);
    image_after_write(image);
    transfer_unlock(image, &range);
    if (r == 0 && (flags & ZERO_FUA))
        r = image_flush(image);
    /* Only a fast zero may return -EOPNOTSUPP: for any other zero nbdkit 1.32 would fall back to
     * writing, and write wrong data beyond 64 MiB.
     */
    return r == -EOPNOTSUPP && !(flags & ZERO_FAST) ? -EIO : r;
}

/* Under the range lock. */
static int trim_locked(struct image *image, uint64_t start, uint64_t end)
{
    int r = 0;

    while (r == 0 && start < end) {
        uint64_t step = end - start < STEP_BYTES ? end - start : STEP_BYTES;

        r = image->key.block
                ? try_method(image, &image->zero.can_discard, REQUEST_DISCARD, 0, step, start)
                : punch(image, step, start);
        /* A trim is a hint: what cannot be discarded stays. */
        if (steps_down(r))
            return 0;
        start += step;
    }
    return r;
}

/* A trim is a hint: what lies beyond the end of a disk that has become smaller is gone already, so
 * the rest of the range is trimmed.
 */
int image_trim(struct image *image, uint64_t length, uint64_t offset, unsigned flags)
{
    uint64_t start, end = offset + length;
    struct range range;

    int r = flags & ZERO_FUA ? image_health(image) : 0;
    if (r < 0)
        return r;
    int64_t size = image_measure(image);
    if (size < 0)
        return (int)size;
    if (end > (uint64_t)size)
        end = size;
    if (offset < end) {
        length = end - offset;
        transfer_count_unaligned(image, length, offset);
        transfer_lock(image, &range, length, offset);
        whole_units(image, length, offset, &start, &end);
        r = trim_locked(image, start, end);
        image_after_write(image);
        transfer_unlock(image, &range);
    }
    if (r == 0 && (flags & ZERO_FUA))
        r = image_flush(image);
    return r;
}
