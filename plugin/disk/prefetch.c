/* SPDX-License-Identifier: BSD-3-Clause */
/* Extents by SEEK_DATA and SEEK_HOLE, many in one request to the pool, and prefetch.
 *
 * image_extents runs on the request's thread; seek_extents and prefetch_run wherever the pool runs
 * them.  There is no lock: lseek(2) with these answers a question, and nobody uses the file position.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/disk/extents.h"
#include "plugin/disk/image.h"
#include "plugin/disk/prefetch.h"

/* So many are found in one request to the pool; 12 KiB of stack. */
#define EXTENTS_PER_CALL 512

/* What is in flight in the background, for all images, has a small part of the pool, so that it never keeps a flush waiting: a
 * hint that comes while one in so many of the pool's slots is taken is dropped.
 */
#define SLOTS_PER_PREFETCH 8

/* Of a longer hint the rest is dropped. */
#define PREFETCH_MAX ((uint64_t)64 << 20)

/* One call of posix_fadvise; the kernel reads ahead no more than about this at once anyway. */
#define PREFETCH_STEP ((uint64_t)2 << 20)

struct search {
    struct image *image;
    uint64_t start, end; /* bytes */
    unsigned max;        /* how many to find */
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

/* Everything from search->start on lies behind the last data.  Up to the end of the file it is a hole; behind that, where the
 * file was cut short, a read fails, so it is not called zeros.
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

static int seek_extents(struct request *request)
{
    struct search *search = request->opaque;
    const struct image *image = search->image;
    int fd = image->fd;

    while (search->count < search->max && search->start < search->end) {
        off_t data = lseek(fd, search->start, SEEK_DATA);
        if (data < 0 && errno == ENXIO) {
            int r = found_end(search);
            if (r < 0)
                return r;
            continue;
        }
        if (data < 0)
            return -errno;
        if ((uint64_t)data > search->start) {
            found(search, data, true);
            if (search->count == search->max || search->start == search->end)
                break;
        }
        off_t hole = lseek(fd, search->start, SEEK_HOLE);
        if (hole < 0 && errno != ENXIO)
            return -errno;
        /* ENXIO, or no progress: it was cut short or punched between the two questions.  Then "data" is the safe answer. */
        found(search,
              hole > (off_t)search->start ? (uint64_t)hole : search->start + image->geometry.sector,
              false);
    }
    return 0;
}

int image_extents(struct image *image, uint64_t length, uint64_t offset, bool only_one,
                  int (*add)(void *opaque, const struct extent *extent), void *opaque)
{
    struct search search;
    int r = 0;

    search.image = image;
    search.start = offset;
    search.end = offset + length;
    search.max = only_one ? 1 : EXTENTS_PER_CALL;
    do {
        search.count = 0;
        if (image->key.block || atomic_load_explicit(&image->no_seek, memory_order_relaxed)) {
            found(&search, search.end, false);
        } else {
            struct request request = {.op = REQUEST_CALL, .call = seek_extents, .opaque = &search};
            r = backend_run(image->backend, &request);
            if (r == -EINVAL || r == -EOPNOTSUPP) {
                atomic_store(&image->no_seek, true);
                r = 0;
            }
        }
        for (unsigned i = 0; i < search.count && r == 0; i++)
            r = add(opaque, &search.found[i]);
    } while (r == 0 && !only_one && search.start < search.end);
    return r;
}

/* Outlives its caller, so it is allocated; image_put waits for it. */
struct prefetch {
    struct request request;
    struct image *image;
    uint64_t offset, length; /* bytes */
};

static _Atomic unsigned prefetches; /* in flight, of all images */

static bool is_closing(struct image *image)
{
    pthread_mutex_lock(&image->prefetch_lock);
    bool closing = image->closing;
    pthread_mutex_unlock(&image->prefetch_lock);
    return closing;
}

static int prefetch_run(struct request *request)
{
    struct prefetch *prefetch = request->opaque;
    uint64_t end = prefetch->offset + prefetch->length;

    for (uint64_t at = prefetch->offset; at < end && !is_closing(prefetch->image);
         at += PREFETCH_STEP) {
        uint64_t step = end - at < PREFETCH_STEP ? end - at : PREFETCH_STEP;
        if (posix_fadvise(prefetch->image->buffered_fd, at, step, POSIX_FADV_WILLNEED) != 0)
            break;
    }
    return 0;
}

/* Gives its place back.  The image may be freed as soon as the lock is. */
static void leave(struct image *image)
{
    atomic_fetch_sub(&prefetches, 1);
    pthread_mutex_lock(&image->prefetch_lock);
    image->prefetches--;
    pthread_cond_signal(&image->prefetch_done);
    pthread_mutex_unlock(&image->prefetch_lock);
}

static void prefetch_finished(struct request *request)
{
    struct prefetch *prefetch = request->opaque;
    struct image *image = prefetch->image;

    free(prefetch);
    leave(image);
}

static bool enter(struct image *image)
{
    struct pool_counters pool;

    pool_read_counters(image->backend->config.pool, &pool);
    unsigned room =
        pool.max_threads > SLOTS_PER_PREFETCH ? pool.max_threads / SLOTS_PER_PREFETCH : 1;
    if (atomic_fetch_add(&prefetches, 1) >= room) {
        atomic_fetch_sub(&prefetches, 1);
        return false;
    }
    pthread_mutex_lock(&image->prefetch_lock);
    image->prefetches++;
    pthread_mutex_unlock(&image->prefetch_lock);
    return true;
}

void image_prefetch(struct image *image, uint64_t length, uint64_t offset)
{
    /* Nobody would read from the cache what O_DIRECT reads from the disk. */
    if (image->direct || !enter(image))
        return;
    struct prefetch *prefetch = calloc(1, sizeof *prefetch);
    if (!prefetch) {
        leave(image);
        return;
    }
    prefetch->image = image;
    prefetch->offset = offset;
    prefetch->length = length < PREFETCH_MAX ? length : PREFETCH_MAX;
    prefetch->request.op = REQUEST_CALL;
    prefetch->request.flags = REQUEST_SLOW;
    prefetch->request.call = prefetch_run;
    prefetch->request.opaque = prefetch;
    prefetch->request.done = prefetch_finished;
    if (backend_submit(image->backend, &prefetch->request) < 0) {
        free(prefetch);
        leave(image);
    }
}
