/* SPDX-License-Identifier: BSD-3-Clause */
/* Extents by SEEK_DATA and SEEK_HOLE, many in one request to the pool.  See extents.h.
 *
 * image_extents runs on the thread of the request; seek_extents runs where the pool runs it.  There
 * is no lock: lseek(2) with SEEK_DATA or SEEK_HOLE moves the file position, which nobody uses.
 */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/disk/image.h"

/* Extents found per pool request (12 KiB of stack). */
#define EXTENTS_PER_CALL 512

struct search {
    const struct image *image;
    uint64_t start, end; /* bytes: what is still to be searched */
    unsigned max;        /* how many extents to find */
    unsigned count;
    struct extent found[EXTENTS_PER_CALL];
};

static void found(struct search *search, uint64_t end, bool hole)
{
    if (end > search->end)
        end = search->end;
    search->found[search->count++] = (struct extent){search->start, end - search->start, hole};
    search->start = end;
}

/* search->start lies behind the last data.  Up to the end of the file there is a hole.  Behind the
 * end of a file that was cut short a read fails, so that part is not reported as zeros.
 */
static int found_end(struct search *search)
{
    struct stat st;

    if (fstat(search->image->fd, &st) < 0)
        return -errno;
    if (search->start < (uint64_t)st.st_size)
        found(search, st.st_size, true);
    else
        found(search, search->end, false);
    return 0;
}

/* Finds one extent of data, or a hole and the data behind it. */
static int seek_step(struct search *search)
{
    const struct image *image = search->image;
    off_t data = lseek(image->fd, search->start, SEEK_DATA);

    if (data < 0)
        return errno == ENXIO ? found_end(search) : -errno;
    if ((uint64_t)data > search->start) {
        found(search, data, true);
        if (search->count == search->max || search->start == search->end)
            return 0;
    }
    off_t hole = lseek(image->fd, search->start, SEEK_HOLE);
    if (hole < 0 && errno != ENXIO)
        return -errno;
    /* ENXIO or no progress: the file was cut short or punched between the two calls.  "Data" is
     * then the safe answer.
     */
    uint64_t sector_end = search->start + image->geometry.sector;
    found(search, hole > (off_t)search->start ? (uint64_t)hole : sector_end, false);
    return 0;
}

static int seek_extents(struct request *request)
{
    struct search *search = request->opaque;
    int r = 0;

    while (r == 0 && search->count < search->max && search->start < search->end)
        r = seek_step(search);
    return r;
}

/* Fills search->found. */
static int find_some(struct image *image, struct search *search)
{
    struct request request = {.op = REQUEST_CALL, .call = seek_extents, .opaque = search};

    search->count = 0;
    if (image->key.block || atomic_load_explicit(&image->extents.no_seek, memory_order_relaxed)) {
        found(search, search->end, false);
        return 0;
    }
    int r = backend_run(image->room.backend, &request);
    if (r == -EINVAL || r == -EOPNOTSUPP) {
        atomic_store(&image->extents.no_seek, true);
        r = 0;
    }
    return r;
}

int image_extents(struct image *image, uint64_t length, uint64_t offset, bool only_one,
                  int (*add)(void *opaque, const struct extent *extent), void *opaque)
{
    struct search search;
    int r;

    search.image = image;
    search.start = offset;
    search.end = offset + length;
    search.max = only_one ? 1 : EXTENTS_PER_CALL;
    do {
        r = find_some(image, &search);
        for (unsigned i = 0; i < search.count && r == 0; i++)
            r = add(opaque, &search.found[i]);
    } while (r == 0 && !only_one && search.start < search.end);
    return r;
}
