/* SPDX-License-Identifier: BSD-3-Clause */
/* Zero, fast zero and trim: ladders of methods, the best first.  See zero.h.
 *
 * -EOPNOTSUPP is remembered per image.  -EINVAL and -EBUSY try the next method; note_refusal says
 * what is remembered of them.  Ends that are not aligned are written as zeros by a zero, and left
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
#include "pool/schedule-point.h"

/* Bytes of one call to the kernel.  Where the kernel ends up writing zeros, a longer call would
 * hold its slot for minutes.
 */
#define STEP_BYTES ((uint64_t)128 << 20)

/* How many requests at most pass by a method that keeps refusing, before the method is tried again.
 */
#define MAX_SKIPS 1023

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

static int ability_of(struct method *method)
{
    return atomic_load_explicit(&method->ability, memory_order_relaxed);
}

/* Should this request try the method?  Counts the request if the method is to be passed by. */
static bool may_try(struct method *method)
{
    int ability = ability_of(method);

    if (ability != ABILITY_UNKNOWN)
        return ability == ABILITY_YES;
    return atomic_load_explicit(&method->skips, memory_order_relaxed) <= 0 ||
           atomic_fetch_sub_explicit(&method->skips, 1, memory_order_relaxed) <= 0;
}

/* The method answered -EINVAL or -EBUSY.
 *
 * Neither answer proves that the method does not exist.  -EINVAL may mean that the storage wants
 * larger units than it has announced, or that a device has become smaller since its size was
 * checked.  -EBUSY comes from a block device that another program has opened exclusively, while
 * pages of this range are dirty.  A refusal is therefore never remembered for good.
 *
 * But some storage refuses always, and a request that tries first is expensive: zero_device_step
 * flushes the disk before.  So while the method has never worked, 1, 3, 7 and so on up to MAX_SKIPS
 * requests pass it by after each refusal: only the logarithm of the requests pays.  Passing a
 * method by is always safe, for the next method gives the same bytes.  Once the method has worked,
 * a refusal concerns one range, costs one call, and is forgotten.
 */
static void note_refusal(struct method *method)
{
    /* Several requests that are refused at once count as one. */
    if (ability_of(method) != ABILITY_UNKNOWN ||
        atomic_load_explicit(&method->skips, memory_order_relaxed) > 0)
        return;
    int pause = atomic_load_explicit(&method->pause, memory_order_relaxed) * 2 + 1;
    if (pause > MAX_SKIPS)
        pause = MAX_SKIPS;
    atomic_store_explicit(&method->pause, pause, memory_order_relaxed);
    atomic_store_explicit(&method->skips, pause, memory_order_relaxed);
}

/* Tries one method on the range, and remembers what it learned.  may_try has said yes. */
static int call_method(struct image *image, struct method *method, enum request_op op, int mode,
                       uint64_t length, uint64_t offset)
{
    struct request request = {
        .op = op,
        .fd = image->fd,
        .mode = mode,
        .offset = offset,
        .length = length,
    };

    int r =
        image->key.block ? backend_run(image->room.backend, &request) : run_alone(image, &request);
    if (r == -ENOTTY || r == -ENOSYS || r == -ENODEV)
        r = -EOPNOTSUPP;
    if (r == 0)
        atomic_store_explicit(&method->ability, ABILITY_YES, memory_order_relaxed);
    else if (r == -EOPNOTSUPP)
        atomic_store_explicit(&method->ability, ABILITY_NO, memory_order_relaxed);
    else if (steps_down(r))
        note_refusal(method);
    return r;
}

static int try_method(struct image *image, struct method *method, enum request_op op, int mode,
                      uint64_t length, uint64_t offset)
{
    return may_try(method) ? call_method(image, method, op, mode, length, offset) : -EOPNOTSUPP;
}

static int punch(struct image *image, uint64_t length, uint64_t offset)
{
    return try_method(image, &image->zero.punch, REQUEST_FALLOCATE, PUNCH, length, offset);
}

static int zero_range(struct image *image, uint64_t length, uint64_t offset)
{
    return try_method(image, &image->zero.zero_range, REQUEST_FALLOCATE, ZERO_RANGE, length,
                      offset);
}

static int allocate(struct image *image, uint64_t length, uint64_t offset)
{
    return try_method(image, &image->zero.allocate, REQUEST_FALLOCATE, ALLOCATE, length, offset);
}

/* Punches a hole and fills it with blocks that read as zeros.  A fast zero must not fail when the
 * hole is made already, so it first finds out whether the second half works; allocating alone
 * changes no byte.
 */
static int punch_and_allocate(struct image *image, uint64_t length, uint64_t offset, bool fast)
{
    int r = 0;

    if (fast && ability_of(&image->zero.allocate) != ABILITY_YES)
        r = allocate(image, length, offset);
    if (r == 0)
        r = punch(image, length, offset);
    SCHEDULE_POINT();
    if (r < 0)
        return r;
    r = allocate(image, length, offset);
    /* The hole is made: "not supported" would say that no byte has changed. */
    return fast && steps_down(r) ? -EIO : r;
}

static int zero_file_step(struct image *image, uint64_t length, uint64_t offset, unsigned flags)
{
    int r = -EOPNOTSUPP;

    if (flags & ZERO_MAY_TRIM)
        r = punch(image, length, offset);
    if (steps_down(r))
        r = zero_range(image, length, offset);
    if (steps_down(r) && !(flags & (ZERO_MAY_TRIM | ZERO_NO_PUNCH)))
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
    if ((flags & ZERO_MAY_TRIM) && may_try(&image->zero.punch)) {
        r = ability_of(&image->zero.punch) == ABILITY_UNKNOWN ? image_flush(image) : 0;
        SCHEDULE_POINT();
        if (r == 0)
            r = call_method(image, &image->zero.punch, REQUEST_FALLOCATE, PUNCH, length, offset);
    }
    if (flags & ZERO_FAST)
        return r;
    if (steps_down(r))
        r = zero_range(image, length, offset);
    if (steps_down(r))
        r = try_method(image, &image->zero.zeroout, REQUEST_ZEROOUT, 0, length, offset);
    return r;
}

/* Returns the whole units of the range: [*start, *end).  The end of a file counts as the end of a
 * unit.
 */
static void whole_units(const struct image *image, uint64_t length, uint64_t offset,
                        uint64_t *start, uint64_t *end)
{
    uint64_t unit = image->geometry.granule;

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
        SCHEDULE_POINT();
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
    *state = (struct zero_state){.punch.ability = ABILITY_UNKNOWN};
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
    SCHEDULE_POINT();
    image_after_write(image);
    SCHEDULE_POINT();
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
                ? try_method(image, &image->zero.discard, REQUEST_DISCARD, 0, step, start)
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
        SCHEDULE_POINT();
        image_after_write(image);
        SCHEDULE_POINT();
        transfer_unlock(image, &range);
    }
    if (r == 0 && (flags & ZERO_FUA))
        r = image_flush(image);
    return r;
}
