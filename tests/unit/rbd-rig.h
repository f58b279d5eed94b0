/* SPDX-License-Identifier: BSD-3-Clause */
/* An RBD image over fake-rbd.c, for rbd.c and rbd-open.c.  The test's threads call these. */
#ifndef AIODISK_RBD_RIG_H
#define AIODISK_RBD_RIG_H

#include "tests/lib/pool-test.h"

#include <dlfcn.h>

#include <rbd/librbd.h>

#include "plugin/disk/rbd-disk.h"
#include "tests/lib/silent-log.h"
#include "tests/unit/fake-rbd.h"

#define MiB ((uint64_t)1 << 20)
#define GiB ((uint64_t)1 << 30)

/* --- The functions that the program wraps: the libraries are the program itself --- */

static bool no_library;            /* dlopen(3) fails */
static const char *missing_symbol; /* dlsym(3) does not find it */

void *__real_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags)
{
    (void)name;
    (void)flags;
    return __real_dlopen(no_library ? "/nonexistent" : NULL, RTLD_NOW);
}

void *__real_dlsym(void *library, const char *symbol);
void *__wrap_dlsym(void *library, const char *symbol);
void *__wrap_dlsym(void *library, const char *symbol)
{
    return missing_symbol && strcmp(symbol, missing_symbol) == 0 ? NULL
                                                                 : __real_dlsym(library, symbol);
}

static unsigned pauses; /* the half seconds for which a client without the lock waits: not at all */

int __real_nanosleep(const struct timespec *time, struct timespec *rest);
int __wrap_nanosleep(const struct timespec *time, struct timespec *rest);
int __wrap_nanosleep(const struct timespec *time, struct timespec *rest)
{
    if (time->tv_sec > 0 || time->tv_nsec != 500000000)
        return __real_nanosleep(time, rest);
    pauses++;
    return 0;
}

/* --- A disk --- */

static struct ceph_name image_name = {
    .timeout_s = 30, .pool = "rbd", .space = "", .image = "image"};
static _Thread_local char why[LOG_LINE_SIZE];

static struct tally *tally; /* of every disk; or NULL */

static inline struct tally *find_tally(void *opaque)
{
    (void)opaque;
    return tally;
}

static inline int try_get(struct disk **disk, enum ceph_lock lock, bool readonly)
{
    const struct room_config room = {.max_threads = 2, .helping = true};
    const struct rbd_options options = {
        .room = &room, .readonly = readonly, .lock = lock, .tally = {.find = find_tally}};
    why[0] = '\0';
    return rbd_disk_get(&image_name, &options, disk, why);
}

static inline struct disk *get_with(enum ceph_lock lock, bool readonly)
{
    struct disk *disk;
    int r = try_get(&disk, lock, readonly);
    if (r < 0)
        fprintf(stderr, "%s\n", why);
    CHECK(r == 0);
    return disk;
}

static inline struct disk *get(void)
{
    return get_with(CEPH_LOCK_AUTO, false);
}

static inline struct rbd_disk *rbd_of(struct disk *disk)
{
    return container_of(disk, struct rbd_disk, disk);
}

/* Gives the disk back.  After the last client of the only disk nothing may be open. */
static inline void put(struct disk *disk)
{
    bool last = rbd_of(disk)->references == 1;
    disk->ops->put(disk);
    CHECK(!last || fake.owed == 0);
}

/* Whether the request with this index, 0 for the last one, was this one. */
static inline bool asked(unsigned i, const char *op, uint64_t offset, uint64_t length, int flags)
{
    const struct fake_request *r = &fake.requests[i];
    return i < fake.request_count && strcmp(r->op, op) == 0 && r->offset == offset &&
           r->length == length && r->flags == flags;
}

/* --- Extents --- */

static struct extent extents[2048];
static unsigned extent_count;

static inline int add_extent(void *opaque, const struct extent *extent)
{
    (void)opaque;
    CHECK(extent_count < 2048);
    extents[extent_count++] = *extent;
    return 0;
}

static inline int refuse_extent(void *opaque, const struct extent *extent)
{
    (void)opaque;
    (void)extent;
    return -ENOMEM;
}

static inline void extents_of(struct disk *disk, uint64_t length, uint64_t offset, bool only_one)
{
    extent_count = 0;
    CHECK(disk->ops->extents(disk, length, offset, only_one, add_extent, NULL) == 0);
}

static inline bool found(unsigned i, uint64_t offset, uint64_t length, bool hole)
{
    const struct extent *e = &extents[i];
    return i < extent_count && e->offset == offset && e->length == length && e->hole == hole;
}

#endif
