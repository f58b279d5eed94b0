/* SPDX-License-Identifier: BSD-3-Clause */
/* The open RBD images.  All clients of one image share one disk.  See rbd-disk.h.
 *
 * Runs on nbdkit's threads when clients connect and disconnect, and on the main thread before
 * nbdkit forks and at the end; a worker and the loop thread of an open disk read its size.  The
 * table's lock is never held while the cluster is asked.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plugin/disk/image.h"
#include "plugin/disk/rbd-disk.h"

/* A longer name is cut off in messages: the rest of the line needs its bytes. */
#define NAME_SIZE 1024
#define REASON_SIZE 400

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
/* Broadcast when a disk was opened or has left the table. */
static pthread_cond_t table_changed = PTHREAD_COND_INITIALIZER;
/* Under table_lock. */
static struct rbd_disk *table;
static uint64_t clients; /* how many have come to the table */

void rbd_disk_spell(const struct ceph_name *name, char *text, size_t size)
{
    snprintf(text, size, "%s%s%s%s%s%s%s", name->pool, name->space[0] ? "/" : "", name->space,
             name->image ? "/" : "", name->image ? name->image : "", name->snapshot ? "@" : "",
             name->snapshot ? name->snapshot : "");
}

static int fail(char *why, const char *name, int err, const char *reason)
{
    snprintf(why, LOG_LINE_SIZE, "rbd %.100s: %.*s", name, REASON_SIZE, reason);
    return err;
}

/* --- Opening and closing one disk --- */

/* FNV-1a. */
static uint64_t hash(const char *text)
{
    uint64_t h = UINT64_C(14695981039346656037);

    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * UINT64_C(1099511628211);
    return h;
}

/* health.c knows disks by the key of an image; no file has this device number. */
static struct health *find_health(const struct ceph_image_facts *facts)
{
    struct image_key key = {
        .block = true,
        .device = (dev_t)-1,
        .inode = hash(facts->id),
        .birth = hash(facts->cluster),
    };

    return health_get(&key);
}

static int open_room(struct rbd_disk *rbd, const struct rbd_options *options, struct tally *tally,
                     char *why)
{
    struct room_config config = *options->room;
    char reason[ROOM_WHY_SIZE];

    config.backend = backend_name(0);
    int r = room_open(&rbd->room, &config, true, tally, reason);
    if (r < 0)
        return fail(why, rbd->name, r, reason);
    struct backend_config backend = {
        .loop = rbd->room.loop,
        .pool = rbd->room.pool,
        .tally = tally,
    };
    r = ceph_backend_open(rbd->image, &backend, &rbd->backend);
    return r < 0 ? fail(why, rbd->name, r, strerror(-r)) : 0;
}

static int open_disk(struct rbd_disk *rbd, const struct ceph_name *name,
                     const struct rbd_options *options, char *why)
{
    const struct ceph_image_options image = {
        .uncached = options->uncached,
        .readonly = options->readonly,
        .lock = options->lock,
    };
    char reason[REASON_SIZE];

    int r = ceph_image_open(&rbd->image, name, &image, reason, sizeof reason);
    if (r < 0)
        return fail(why, rbd->name, r, reason);
    int64_t size = ceph_image_size(rbd->image);
    if (size < 0)
        return fail(why, rbd->name, size, "its size cannot be read");
    atomic_store(&rbd->size, size);
    rbd->health = find_health(ceph_image_facts(rbd->image));
    if (!rbd->health)
        return fail(why, rbd->name, -ENOMEM, strerror(ENOMEM));
    struct tally *tally = options->tally.find(options->tally.opaque);
    r = open_room(rbd, options, tally, why);
    if (r < 0)
        return r;
    rbd_disk_fill(rbd, tally);
    const struct ceph_image_facts *facts = ceph_image_facts(rbd->image);
    if (facts->why_readonly)
        log_warning("rbd %s: served read-only, because client.%s may not write: %s", rbd->name,
                    ceph_user(name), facts->why_readonly);
    log_debug("rbd %s: %llu bytes, %s, objects of %llu bytes, id %s", rbd->name,
              (unsigned long long)size, facts->readonly ? "read-only" : "read-write",
              (unsigned long long)facts->object_size, facts->id);
    return 0;
}

static void close_disk(struct rbd_disk *rbd)
{
    if (rbd->backend)
        backend_close(rbd->backend);
    room_close(&rbd->room);
    if (rbd->image)
        ceph_image_close(rbd->image);
    if (rbd->health)
        health_put(rbd->health);
}

/* --- The table --- */

static struct rbd_disk *new_disk(const char *name, bool readonly)
{
    struct rbd_disk *rbd = calloc(1, sizeof *rbd);

    if (rbd)
        rbd->name = strdup(name);
    if (!rbd || !rbd->name) {
        free(rbd);
        return NULL;
    }
    rbd->wants_readonly = readonly;
    pthread_mutex_init(&rbd->flush.lock, NULL);
    pthread_cond_init(&rbd->flush.ended, NULL);
    return rbd;
}

static void free_disk(struct rbd_disk *rbd)
{
    pthread_mutex_destroy(&rbd->flush.lock);
    pthread_cond_destroy(&rbd->flush.ended);
    free(rbd->name);
    free(rbd);
}

/* Under table_lock. */
static struct rbd_disk *find(const char *name, bool readonly)
{
    struct rbd_disk *rbd = table;

    while (rbd && !(rbd->wants_readonly == readonly && strcmp(rbd->name, name) == 0))
        rbd = rbd->next;
    return rbd;
}

/* Under table_lock, which is released during the close.  Nobody has a reference. */
static void close_and_unlink(struct rbd_disk *rbd)
{
    struct rbd_disk **link = &table;

    assert(rbd->references == 0);
    rbd->state = RBD_CLOSING;
    pthread_mutex_unlock(&table_lock);
    close_disk(rbd);
    pthread_mutex_lock(&table_lock);
    while (*link != rbd)
        link = &(*link)->next;
    *link = rbd->next;
    pthread_cond_broadcast(&table_changed);
    free_disk(rbd);
}

/* --- The size of an open disk --- */

/* A worker.  librbd answers at once, unless the image's header has changed: then librbd reads the
 * header first, and waits for the cluster without limit.
 */
static int read_size(struct request *request)
{
    struct rbd_disk *rbd = request->opaque;
    int64_t size = ceph_image_size(rbd->image);

    if (size >= 0)
        atomic_store(&rbd->size, size);
    return 0;
}

/* The loop thread of the disk.  close_disk waits for the end of this function. */
static void size_was_read(struct request *request)
{
    struct rbd_disk *rbd = request->opaque;

    pthread_mutex_lock(&table_lock);
    rbd->size_reader.busy = false;
    rbd->size_reader.read_for = rbd->size_reader.reads_for;
    pthread_cond_broadcast(&table_changed);
    pthread_mutex_unlock(&table_lock);
}

/* Under table_lock.  Has the size read in the background, for all clients that have come so far. */
static int begin_to_read_size(struct rbd_disk *rbd)
{
    rbd->size_reader.request = (struct request){
        .op = REQUEST_CALL,
        .call = read_size,
        .opaque = rbd,
        .done = size_was_read,
    };
    rbd->size_reader.reads_for = clients;
    int r = backend_submit(rbd->backend, &rbd->size_reader.request);
    rbd->size_reader.busy = r == 0;
    return r;
}

/* --- Finding a disk --- */

static struct rbd_disk *add_to_table(const char *name, bool readonly)
{
    struct rbd_disk *rbd = new_disk(name, readonly);

    if (rbd) {
        rbd->next = table;
        table = rbd;
    }
    return rbd;
}

/* Under table_lock, which is released for timeout_s at most: while another thread opens or closes
 * the disk, because a close waits for the cluster without limit; and while the size of an open disk
 * is read.  The caller has no reference meanwhile, so a disk that is left by its last client is
 * closed on that client's thread, which may wait.  Stores the disk with a reference for the caller:
 * an open one, whose size was read after the call, or a new one that the caller is to open.
 * Returns 0, or -ENOMEM, -ETIMEDOUT or -EAGAIN (no thread) with a reason.
 */
static int find_or_add(const char *name, bool readonly, unsigned timeout_s,
                       struct rbd_disk **result, const char **reason)
{
    uint64_t client = ++clients;
    struct timespec end;
    struct rbd_disk *rbd;
    int r = 0;

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_s;
    while ((rbd = find(name, readonly))) {
        bool is_open = rbd->state == RBD_OPEN;
        if (is_open && rbd->size_reader.read_for >= client)
            break;
        if (r == ETIMEDOUT) {
            *reason = is_open ? "the image has changed, and an OSD with its new size did not "
                                "answer in the time of rbd-timeout"
                              : "another client's open or close of the image still waits for the "
                                "cluster";
            return -ETIMEDOUT;
        }
        r = is_open && !rbd->size_reader.busy ? begin_to_read_size(rbd) : 0;
        if (r < 0) {
            *reason = strerror(-r);
            return r;
        }
        r = pthread_cond_clockwait(&table_changed, &table_lock, CLOCK_MONOTONIC, &end);
    }
    if (!rbd)
        rbd = add_to_table(name, readonly);
    if (!rbd) {
        *reason = strerror(ENOMEM);
        return -ENOMEM;
    }
    rbd->references++;
    *result = rbd;
    return 0;
}

static int open_new(struct rbd_disk *rbd, const struct ceph_name *name,
                    const struct rbd_options *options, char *why)
{
    int r = open_disk(rbd, name, options, why);

    pthread_mutex_lock(&table_lock);
    if (r == 0) {
        rbd->state = RBD_OPEN;
        pthread_cond_broadcast(&table_changed);
    } else {
        rbd->references--;
        close_and_unlink(rbd);
    }
    pthread_mutex_unlock(&table_lock);
    return r;
}

int rbd_disk_get(const struct ceph_name *name, const struct rbd_options *options,
                 struct disk **disk, char why[LOG_LINE_SIZE])
{
    char text[NAME_SIZE];
    const char *reason;
    struct rbd_disk *rbd;

    rbd_disk_spell(name, text, sizeof text);
    pthread_mutex_lock(&table_lock);
    int r = find_or_add(text, options->readonly, name->timeout_s, &rbd, &reason);
    bool is_new = r == 0 && rbd->state == RBD_OPENING;
    pthread_mutex_unlock(&table_lock);
    if (r < 0)
        return fail(why, text, r, reason);
    if (is_new)
        r = open_new(rbd, name, options, why);
    if (r == 0)
        *disk = &rbd->disk;
    return r;
}

void rbd_disk_put(struct rbd_disk *rbd)
{
    pthread_mutex_lock(&table_lock);
    while (rbd->references == 1 && atomic_load(&rbd->dirty) && health_error(rbd->health) == 0) {
        pthread_mutex_unlock(&table_lock);
        rbd_disk_flush(rbd);
        pthread_mutex_lock(&table_lock);
    }
    if (--rbd->references == 0)
        close_and_unlink(rbd);
    pthread_mutex_unlock(&table_lock);
}

int rbd_disk_check(const struct ceph_name *name, char why[LOG_LINE_SIZE])
{
    const struct ceph_image_options options = {.readonly = true, .brief = true};
    struct ceph_image *image;
    char reason[REASON_SIZE], text[NAME_SIZE];
    struct ceph ceph;
    int r;

    rbd_disk_spell(name, text, sizeof text);
    if (name->image) {
        r = ceph_image_open(&image, name, &options, reason, sizeof reason);
        if (r == 0)
            ceph_image_close(image);
    } else {
        r = ceph_connect(&ceph, name, options.uncached, reason, sizeof reason);
        if (r == 0)
            ceph_disconnect(&ceph);
    }
    return r < 0 ? fail(why, text, r, reason) : 0;
}
