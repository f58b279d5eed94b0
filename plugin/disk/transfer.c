/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads and writes.  See transfer.h.
 *
 * Through the page cache a request is passed on as it is.  With O_DIRECT the kernel wants whole
 * blocks in aligned memory.  A request that is not aligned goes through a bounce buffer, and a
 * block that is written in part is read, modified and written back under the range lock.
 *
 * A file whose size is no multiple of the block has a tail that direct I/O cannot write without
 * making the file longer; a block device may have one too (served_size in image.c).  The tail
 * always goes through the page cache, and in whole pages (geometry.granule): a page that both ways
 * used could be written back with old bytes.
 *
 * Runs on the threads of requests.  Never copies from a bounce buffer before a read has filled it.
 */
#include "plugin/disk/transfer.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "plugin/disk/health.h"
#include "plugin/disk/image.h"
#include "pool/schedule-point.h"

/* How many requests of one image write into its page cache at once. */
#define WRITE_TURNS 2u

/* Never written to: when the kernel reads its pages, they are all the one page of zeros. */
static char zeros[BOUNCE_MAX] __attribute__((aligned(4096)));

/* Turns are taken only where the threads of requests write themselves, and not on block devices,
 * which have no inode lock for writes.
 */
void transfer_init(struct image *image, bool helping)
{
    image->transfer.takes_turns =
        helping && backend_callers_perform(image->room.backend) && !image->key.block;
    sem_init(&image->transfer.turns, 0, WRITE_TURNS);
}

void transfer_destroy(struct transfer_state *state)
{
    sem_destroy(&state->turns);
}

static int read_buffered(struct image *image, void *buf, uint64_t length, uint64_t offset)
{
    return image_transfer(image, REQUEST_READ, 0, image->buffered_fd, buf, length, offset, NULL);
}

/* The kernel lets one write at a time into a file's page cache, and a thread that waits there for
 * the inode's lock spins.  So one request writes, a second one stands ready in the kernel, and all
 * others sleep here.  A FUA write takes no turn: it waits for the disk without the inode's lock.
 *
 * Measured over NBD, 16 writes in flight on 4 connections: 1.3 times the rate and 0.6 of the
 * processor time where the cache has large folios, 0.96-1.02 times where it has single pages; on
 * one connection 0.99-1.04.  With one turn: 1.0 and 0.94.
 */
static int write_in_turn(struct image *image, const void *buf, uint64_t length, uint64_t offset)
{
    progress_at(PLACE_WRITE_TURN);
    while (sem_wait(&image->transfer.turns) < 0)
        assert(errno == EINTR);
    int r = image_transfer(image, REQUEST_WRITE, 0, image->buffered_fd, (void *)buf, length, offset,
                           NULL);
    sem_post(&image->transfer.turns);
    return r;
}

static int write_plain(struct image *image, int fd, const void *buf, uint64_t length,
                       uint64_t offset, bool fua)
{
    folio_before_write(image, length, offset);
    if (fua)
        return image_write_through(image, fd, buf, length, offset);
    if (image->transfer.takes_turns && fd == image->buffered_fd)
        return write_in_turn(image, buf, length, offset);
    return image_transfer(image, REQUEST_WRITE, 0, fd, (void *)buf, length, offset, NULL);
}

/* How many of `length` bytes at `offset` lie before the tail, which goes through the page cache. */
static uint64_t direct_part(const struct image *image, uint64_t length, uint64_t offset)
{
    uint64_t end = atomic_load_explicit(&image->size, memory_order_relaxed);

    if (!image->direct)
        return 0;
    if (end % image->geometry.align != 0)
        end = align_down(end, image->geometry.granule);
    if (offset >= end)
        return 0;
    return end - offset < length ? end - offset : length;
}

static bool memory_is_aligned(const struct image *image, const void *buf)
{
    return (uintptr_t)buf % image->geometry.mem_align == 0;
}

/* Counts a client's request that O_DIRECT cannot carry as it is. */
void transfer_count_unaligned(struct image *image, uint64_t length, uint64_t offset)
{
    if (image->direct && (offset | length) % image->geometry.align != 0 &&
        progress_op() < CLIENT_OPS)
        tally_add(image->tally, DISK_TALLY_UNALIGNED + progress_op(), 1);
}

/* Returns the length of the next piece of a direct transfer, and whether the piece needs no bounce
 * buffer.
 */
static uint64_t next_piece(const struct image *image, const void *buf, uint64_t length,
                           uint64_t offset, bool *in_place)
{
    uint32_t align = image->geometry.align;

    *in_place = offset % align == 0 && length >= align && memory_is_aligned(image, buf);
    if (*in_place)
        return align_down(length, align);
    uint64_t room = BOUNCE_MAX - offset % align;
    return length < room ? length : room;
}

/* --- Reading --- */

static int read_bounced(struct image *image, char *buf, uint64_t length, uint64_t offset)
{
    uint64_t start = align_down(offset, image->geometry.align);
    uint64_t end = align_up(offset + length, image->geometry.align);
    uint64_t transferred;
    struct bounce bounce;

    int r = bounce_get(&image->bounce, &bounce, end - start);
    if (r < 0)
        return r;
    r = image_transfer(image, REQUEST_READ, 0, image->fd, bounce.memory, end - start, start,
                       &transferred);
    /* A file that was cut short inside the last block still has the bytes before its end. */
    if (r < 0 && transferred >= offset + length - start)
        r = 0;
    SCHEDULE_POINT();
    if (r == 0)
        memcpy(buf, bounce.memory + (offset - start), length);
    bounce_put(&bounce);
    return r;
}

int image_read(struct image *image, void *buf, uint64_t length, uint64_t offset)
{
    uint64_t direct = direct_part(image, length, offset);
    char *to = buf;
    int r = 0;

    transfer_count_unaligned(image, length, offset);
    length -= direct;
    while (direct > 0 && r == 0) {
        bool in_place;
        uint64_t piece = next_piece(image, to, direct, offset, &in_place);

        r = in_place ? image_transfer(image, REQUEST_READ, 0, image->fd, to, piece, offset, NULL)
                     : read_bounced(image, to, piece, offset);
        to += piece;
        offset += piece;
        direct -= piece;
    }
    return r < 0 || length == 0 ? r : read_buffered(image, to, length, offset);
}

/* --- Writing --- */

static int read_block(struct image *image, char *memory, uint64_t offset)
{
    return image_transfer(image, REQUEST_READ, 0, image->fd, memory, image->geometry.align, offset,
                          NULL);
}

/* Under the range lock; exclusively if the first or the last block is written in part, for then
 * this function reads, modifies and writes that block.
 */
static int write_bounced(struct image *image, const char *buf, uint64_t length, uint64_t offset,
                         bool fua)
{
    uint64_t start = align_down(offset, image->geometry.align);
    uint64_t end = align_up(offset + length, image->geometry.align);
    uint64_t last = end - image->geometry.align;
    struct bounce bounce;

    int r = bounce_get(&image->bounce, &bounce, end - start);
    if (r < 0)
        return r;
    if (start < offset)
        r = read_block(image, bounce.memory, start);
    if (r == 0 && offset + length < end && (last > start || start == offset))
        r = read_block(image, bounce.memory + (last - start), last);
    SCHEDULE_POINT();
    if (r == 0) {
        memcpy(bounce.memory + (offset - start), buf, length);
        r = write_plain(image, image->fd, bounce.memory, end - start, start, fua);
    }
    bounce_put(&bounce);
    return r;
}

/* Under the range lock. */
static int write_locked(struct image *image, const char *buf, uint64_t length, uint64_t offset,
                        bool fua)
{
    uint64_t direct = direct_part(image, length, offset);
    bool in_place;
    int r = 0;

    /* One flush makes a write of several calls durable, instead of one for each call. */
    bool several = direct > 0 &&
                   (direct < length || next_piece(image, buf, direct, offset, &in_place) < direct);
    bool each_fua = fua && !several;

    length -= direct;
    while (direct > 0 && r == 0) {
        uint64_t piece = next_piece(image, buf, direct, offset, &in_place);

        r = in_place ? write_plain(image, image->fd, buf, piece, offset, each_fua)
                     : write_bounced(image, buf, piece, offset, each_fua);
        buf += piece;
        offset += piece;
        direct -= piece;
    }
    if (r == 0 && length > 0)
        r = write_plain(image, image->buffered_fd, buf, length, offset, each_fua);
    if (r == 0 && fua && several)
        r = image_flush(image);
    return r;
}

/* Must the write read blocks first?  The page cache writes the tail byte by byte. */
static bool reads_first(const struct image *image, uint64_t length, uint64_t offset)
{
    uint64_t direct = direct_part(image, length, offset);
    uint32_t align = image->geometry.align;

    return direct > 0 &&
           (offset % align != 0 || (direct == length && (offset + length) % align != 0));
}

void transfer_lock(struct image *image, struct range *range, uint64_t length, uint64_t offset)
{
    range->start = align_down(offset, image->geometry.align);
    range->end = align_up(offset + length, image->geometry.align);
    range->exclusive = image->direct && reads_first(image, length, offset);
    if (!image->direct)
        return;
    range_acquire(&image->ranges, range);
    SCHEDULE_POINT();
    /* While the request waited, the image may have grown, so that a part of the tail goes direct
     * now.  From here on the size cannot change.
     */
    if (!range->exclusive && reads_first(image, length, offset)) {
        range_release(&image->ranges, range);
        SCHEDULE_POINT();
        range->exclusive = true;
        range_acquire(&image->ranges, range);
    }
}

void transfer_unlock(struct image *image, struct range *range)
{
    if (image->direct)
        range_release(&image->ranges, range);
}

int image_write(struct image *image, const void *buf, uint64_t length, uint64_t offset, bool fua)
{
    uint64_t end = offset + length;
    struct range range;

    if (direct_part(image, length, offset) == length)
        end = align_up(end, image->geometry.align);
    /* A disk that has lost a write accepts no FUA write: it could not keep the promise. */
    int r = fua ? image_health(image) : 0;
    if (r == 0)
        r = image_before_write(image, end);
    SCHEDULE_POINT();
    if (r < 0)
        return r;
    transfer_count_unaligned(image, length, offset);
    transfer_lock(image, &range, length, offset);
    r = write_locked(image, buf, length, offset, fua);
    SCHEDULE_POINT();
    image_after_write(image);
    SCHEDULE_POINT();
    transfer_unlock(image, &range);
    return r;
}

int transfer_write_zeros(struct image *image, uint64_t length, uint64_t offset)
{
    int r = 0;

    while (length > 0 && r == 0) {
        uint64_t piece = length < BOUNCE_MAX ? length : BOUNCE_MAX;

        r = write_locked(image, zeros, piece, offset, false);
        offset += piece;
        length -= piece;
    }
    return r;
}
