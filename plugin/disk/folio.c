/* SPDX-License-Identifier: BSD-3-Clause */
/* Large folios of the page cache, split before small writes.  See folio.h.
 *
 * The kernel keeps what was read ahead or written in one go in folios of up to 2 MiB.  ext4 and
 * block devices have a struct buffer_head for each block of a folio, and a write of any length
 * looks at all of them, under the lock of the inode.  Measured on Linux 6.18, a write of 4 KiB into
 * a file that was written in pieces of 4 MiB: 64 us, and 4 us after the split; 64 KiB: 74 and 22
 * us; 4 KiB on a loop device: 66 and 4 us.  A split takes 100 to 300 us, less than it took to bring
 * the 2 MiB into the cache.  xfs has no such cost.
 *
 * What the split costs later, in the same place: 256 KiB writes 41 and 95 us, 1 MiB reads 462 and
 * 498 us; 4 KiB reads 3.2 and 2.9 us.
 *
 * There is no system call that splits a folio.  madvise(2) with MADV_COLD on one page of a folio
 * must split it, because it makes one page of it cold.  The kernel splits only a clean folio that
 * no other process has mapped; it does not say whether it did.  So the attempt is repeated at each
 * 256th small write to a region.  Each attempt costs about 30 us.
 *
 * folio_before_write runs on the thread of a request; split_folio runs where the pool runs it.
 * Nothing here reads the mapping: a page that cannot be read makes MADV_POPULATE_READ fail, and
 * raises no SIGBUS.
 */
#include "plugin/disk/folio.h"

#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "plugin/disk/image.h"

/* The largest folio of the page cache on a machine with pages of 4 KiB. */
#define REGION ((uint64_t)2 << 20)

/* How many regions have a counter of their own: 32 GiB.  Regions of a larger image share them. */
#define COUNTERS 16384u

/* The longest write for which a folio is split (bytes). */
#define SMALL_WRITE (64u << 10)

void folio_init(struct image *image)
{
    image->folio.splits = !image->direct && !image->readonly &&
                          (image->key.block || image->geometry.fs_type == EXT4_SUPER_MAGIC);
}

void folio_destroy(struct folio_state *state)
{
    free((void *)atomic_load(&state->writes));
}

/* Returns the counters, or NULL if there is no memory. */
static _Atomic uint8_t *counters_of(struct folio_state *state)
{
    _Atomic uint8_t *counters = atomic_load_explicit(&state->writes, memory_order_acquire);

    if (counters)
        return counters;
    _Atomic uint8_t *fresh = calloc(COUNTERS, sizeof *fresh);
    if (fresh && !atomic_compare_exchange_strong(&state->writes, &counters, fresh)) {
        free((void *)fresh); /* another thread was faster */
        return counters;
    }
    return fresh;
}

/* Splits the folio that holds the page at request->offset, if the page is in the cache. */
static int split_folio(struct request *request)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    off_t start = (off_t)align_down(request->offset, page);
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};

    if (preadv2(request->fd, &iov, 1, start, RWF_NOWAIT) != 1)
        return 0; /* not in the cache; the write will make a folio of its own length */
    void *mapping = mmap(NULL, page, PROT_READ, MAP_SHARED, request->fd, start);
    if (mapping == MAP_FAILED)
        return 0;
    if (madvise(mapping, page, MADV_POPULATE_READ) == 0)
        madvise(mapping, page, MADV_COLD);
    munmap(mapping, page);
    return 0;
}

void folio_before_write(struct image *image, uint64_t length, uint64_t offset)
{
    if (!image->folio.splits || length > SMALL_WRITE)
        return;
    _Atomic uint8_t *counters = counters_of(&image->folio);
    if (!counters || atomic_fetch_add_explicit(&counters[offset / REGION % COUNTERS], 1,
                                               memory_order_relaxed) != 0)
        return;
    struct request request = {
        .op = REQUEST_CALL, .call = split_folio, .fd = image->buffered_fd, .offset = offset};
    backend_run(image->room.backend, &request);
}
