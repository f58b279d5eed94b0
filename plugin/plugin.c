/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdkit's face: the callbacks, in the order in which nbdkit calls them.
 *
 * This file translates.  It turns nbdkit's arguments into calls of plugin/disk/, and the -errno
 * that comes back into an errno that NBD has and a line in the log.  plugin/disk/ decides what a
 * disk means.
 *
 * Every request comes in through enter() and leaves through answer().  What concerns every request
 * (scheduling policy, errors) happens in these two functions.
 *
 * Runs on nbdkit's threads: the main thread until .after_fork has returned and from .unload on, one
 * of the connection's threads in between.  Never touches the disk itself.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/config.h"
#include "plugin/disk/bounce.h"
#include "plugin/disk/disk.h"
#include "plugin/disk/health.h"
#include "plugin/disk/space.h"
#include "plugin/log.h"
#include "plugin/recheck.h"
#include "plugin/runtime.h"
#include "plugin/source.h"
#include "plugin/thread-policy.h"
#include "plugin/watch/connection.h"
#include "plugin/watch/observer.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define FAST_ZERO "fast zero" /* for messages */

/* -D aiodisk.stats=1: print the counters of the pool in .unload.  nbdkit sets the variable. */
NBDKIT_DLL_PUBLIC int aiodisk_debug_stats;

/* Set once by .after_fork, read by any thread. */
static struct room_config room_config;

/* --- Before and after serving --- */

/* Runs instead of all other callbacks but .unload, before any parameter is set. */
static void aiodisk_dump_plugin(void)
{
    char why[ROOM_WHY_SIZE];

    printf("aiodisk_backends=");
    for (size_t i = 0, n = 0; backend_name(i); i++) {
        if (runtime_try(&config, backend_name(i), why) == 0)
            printf("%s%s", n++ ? " " : "", backend_name(i));
    }
    printf("\n");
    config_dump();
}

static int aiodisk_get_ready(void)
{
    char why[ROOM_WHY_SIZE];

    if (config_check() < 0)
        return -1;
    int r = recheck_before_fork(config_check);
    if (r < 0) {
        log_error("pthread_atfork: %s", strerror(-r));
        return -1;
    }
    /* Find out now whether the backend works: once nbdkit is in the background, errors reach only
     * syslog.  The first backend, "threads", works everywhere, so the start saves the time.
     */
    if (strcmp(config.backend, backend_name(0)) != 0 &&
        runtime_try(&config, config.backend, why) < 0) {
        log_error("%s", why);
        return -1;
    }
    if (strcmp(config.backend, "libaio") == 0 && config.cache != CACHE_NONE)
        log_warning("backend=libaio is asynchronous only with cache=none: with cache=default reads "
                    "and writes go to the worker pool");
    return 0;
}

/* Raises the soft limit of descriptors to the hard limit.  dir= may need descriptors for thousands
 * of images, and the usual soft limit of 1024 exists for programs that use select(2).
 */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* No thread runs yet: each image starts its own when its first client connects.  nbdkit has forked
 * the process that runs the command of --run, so that command does not inherit what changes here.
 */
static int aiodisk_after_fork(void)
{
    if (recheck_finish() < 0)
        return -1;
    raise_descriptor_limit();
    /* SIGXFSZ would end the process.  If it is ignored, a write beyond RLIMIT_FSIZE gives EFBIG. */
    signal(SIGXFSZ, SIG_IGN);
    room_config = runtime_room_config(&config, config.backend);
    call_set_slow(config.slow_request_ns);
    struct observer_config observer = {
        .slow_ns = config.slow_request_ns,
        .metrics = config.metrics,
        .labels = {.server = config.metrics_server, .cache = config_cache_name()},
    };
    int r = observer_start(&observer);
    if (r < 0)
        log_warning("metrics= and slow-request= do not work: %s", strerror(-r));
    return 0;
}

static void aiodisk_close(void *handle)
{
    struct connection *c = handle;

    connection_remove(c);
    if (c->calls.figures)
        figures_note_disk(c->calls.figures, c->disk);
    c->disk->ops->put(c->disk);
    call_list_free(&c->calls);
    free(c);
}

/* nbdkit unloads a plugin only when no callback runs, so no other thread uses the connections or
 * the images any more.  The last connection of an image flushes and closes the image.
 */
static void aiodisk_unload(void)
{
    while (connection_any())
        aiodisk_close(connection_any());
    observer_stop();
    figures_free_all();
    if (aiodisk_debug_stats && room_config.backend)
        runtime_print_counters();
    health_forget_all();
    bounce_free_all();
    config_free();
}

/* --- A client connects --- */

static int add_export(void *opaque, const char *name, const char *description)
{
    return nbdkit_add_export(opaque, name, description);
}

static int aiodisk_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    const struct source *source = source_given();
    char why[LOG_LINE_SIZE] = "";

    if (!source->has_names())
        return nbdkit_use_default_export(exports);
    int r = source->list(add_export, exports, why);
    if (r < 0 && why[0] != '\0')
        log_error("%s", why);
    return r < 0 ? -1 : 0;
}

static struct tally *find_tally(void *export_name)
{
    struct figures *figures = config.metrics ? figures_get(export_name) : NULL;

    return figures ? figures->tally : NULL;
}

static int get_disk(struct connection *c, int readonly, char why[LOG_LINE_SIZE])
{
    const struct source *source = source_given();
    const char *name = source->has_names() ? nbdkit_export_name() : "";
    const struct source_options options = {
        .room = &room_config,
        .readonly = readonly,
        .tally = {.find = find_tally, .opaque = (void *)name},
    };

    if (!name)
        return -ENOMEM;
    int r = source->open(name, &options, &c->disk, why);
    if (r == 0) {
        /* The disk may be open under another name, so it may count into other figures. */
        call_list_init(&c->calls, c->disk->name, config.metrics ? figures_get(name) : NULL);
        c->image_figures = figures_of_tally(c->disk->tally);
    }
    return r;
}

static void *aiodisk_open(int readonly)
{
    char why[LOG_LINE_SIZE] = "out of memory"; /* unless get_disk stores another reason */
    struct connection *c = calloc(1, sizeof *c);

    if (!c || get_disk(c, readonly, why) < 0) {
        log_error("%s", why);
        free(c);
        return NULL;
    }
    if (c->calls.figures) {
        tally_add(c->calls.figures->tally, FIGURES_CONNECTIONS, 1);
        figures_note_disk(c->calls.figures, c->disk);
    }
    connection_add(c);
    return c;
}

static struct disk *disk_of(void *handle)
{
    return ((struct connection *)handle)->disk;
}

static const char *aiodisk_export_description(void *handle)
{
    const struct disk *disk = disk_of(handle);

    return nbdkit_printf_intern("%s, %llu bytes%s", disk->kind,
                                (unsigned long long)disk->ops->size(disk),
                                disk->readonly ? ", read-only" : "");
}

static int64_t aiodisk_get_size(void *handle)
{
    const struct disk *disk = disk_of(handle);

    return disk->ops->size(disk);
}

static int aiodisk_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
                              uint32_t *maximum)
{
    /* The plugin serves unaligned requests.  A larger minimum would make clients refuse them:
     * libnbd returns an error and qemu-img asserts.
     */
    *minimum = 1;
    *preferred = disk_of(handle)->preferred_block;
    *maximum = DISK_MAX_REQUEST;
    return 0;
}

static int can_write(void *handle)
{
    return !disk_of(handle)->readonly;
}

static int can_always(void *handle)
{
    return 1;
}

static int is_rotational(void *handle)
{
    return disk_of(handle)->rotational;
}

static int can_fua(void *handle)
{
    return NBDKIT_FUA_NATIVE;
}

static int can_cache(void *handle)
{
    return NBDKIT_CACHE_NATIVE;
}

/* --- Requests --- */

/* Every request comes in here.  answer() must follow, on the same thread. */
static struct call *enter(void *handle, enum client_op op, uint64_t length, uint64_t offset)
{
    struct connection *c = handle;

    thread_policy_enter(c->disk->direct      ? LOAD_DIRECT
                        : op == CLIENT_WRITE ? LOAD_CACHED_WRITE
                                             : LOAD_CACHED);
    return call_begin(&c->calls, op, length, offset);
}

/* Returns the errno that the client is told.  nbdkit turns an errno that NBD does not have into
 * EINVAL, which would blame the client, so such an errno becomes EIO.
 */
static int nbd_error(int err)
{
    switch (err) {
    case EPERM:
    case EROFS:
    case EIO:
    case ENOMEM:
    case EINVAL:
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case ESHUTDOWN:
        return err;
    default:
        return EIO;
    }
}

/* Every request leaves through here.  `r` is 0 or the -errno of the request.  Logs the error with
 * the original errno, sets the errno for the client and returns the value for nbdkit.
 */
static int answer(struct call *call, const char *operation, int r)
{
    uint64_t offset = atomic_load(&call->offset), length = atomic_load(&call->length);
    /* A fast zero that would be slow is no error and no line in the log: the client writes zeros
     * itself.  No other operation may give this errno to nbdkit; zero.c says why.
     */
    bool is_slow_zero = r == -EOPNOTSUPP && strcmp(operation, FAST_ZERO) == 0;
    int error = r >= 0 ? 0 : is_slow_zero ? EOPNOTSUPP : nbd_error(-r);
    uint64_t slow_ns = call_end(call, error);

    thread_policy_leave();
    if (slow_ns > 0)
        log_warning("%s: slow request ended: %s of %llu bytes at %llu after %.1f s: %s",
                    call->list->name, operation, (unsigned long long)length,
                    (unsigned long long)offset, (double)slow_ns / 1e9, strerror(error));
    if (error == 0)
        return 0;
    if (!is_slow_zero)
        log_error("%s: %s of %llu bytes at %llu: %s", call->list->name, operation,
                  (unsigned long long)length, (unsigned long long)offset, strerror(-r));
    nbdkit_set_error(error);
    return -1;
}

static int aiodisk_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct disk *disk = disk_of(handle);
    struct call *call = enter(handle, CLIENT_READ, count, offset);

    return answer(call, "read", disk->ops->read(disk, buf, count, offset));
}

static int aiodisk_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset,
                          uint32_t flags)
{
    struct disk *disk = disk_of(handle);
    struct call *call = enter(handle, CLIENT_WRITE, count, offset);
    int r = space_write(&config.space, disk, buf, count, offset, flags & NBDKIT_FLAG_FUA);

    return answer(call, "write", r);
}

static int aiodisk_flush(void *handle, uint32_t flags)
{
    struct disk *disk = disk_of(handle);
    struct call *call = enter(handle, CLIENT_FLUSH, disk->ops->size(disk), 0);

    return answer(call, "flush", disk->ops->flush(disk));
}

static int aiodisk_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct disk *disk = disk_of(handle);
    struct call *call = enter(handle, CLIENT_TRIM, count, offset);
    int r = space_trim(&config.space, disk, count, offset, flags & NBDKIT_FLAG_FUA ? ZERO_FUA : 0);

    return answer(call, "trim", r);
}

static int aiodisk_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct disk *disk = disk_of(handle);
    struct call *call = enter(handle, CLIENT_ZERO, count, offset);
    int r = space_zero(&config.space, disk, count, offset,
                       (flags & NBDKIT_FLAG_MAY_TRIM ? ZERO_MAY_TRIM : 0) |
                           (flags & NBDKIT_FLAG_FAST_ZERO ? ZERO_FAST : 0) |
                           (flags & NBDKIT_FLAG_FUA ? ZERO_FUA : 0));

    return answer(call, flags & NBDKIT_FLAG_FAST_ZERO ? FAST_ZERO : "zero", r);
}

static int add_extent(void *opaque, const struct extent *extent)
{
    uint32_t type = extent->hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;

    return nbdkit_add_extent(opaque, extent->offset, extent->length, type) < 0 ? -errno : 0;
}

static int aiodisk_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                           struct nbdkit_extents *extents)
{
    struct disk *disk = disk_of(handle);
    struct call *call = enter(handle, CLIENT_EXTENTS, count, offset);
    int r =
        disk->ops->extents(disk, count, offset, flags & NBDKIT_FLAG_REQ_ONE, add_extent, extents);

    return answer(call, "extents", r);
}

static int aiodisk_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct disk *disk = disk_of(handle);
    struct call *call = enter(handle, CLIENT_CACHE, count, offset);

    disk->ops->prefetch(disk, count, offset);
    return answer(call, "cache", 0);
}

static struct nbdkit_plugin plugin = {
    .name = "aiodisk",
    .version = AIODISK_VERSION,
    .longname = "nbdkit asynchronous disk plugin",
    .description =
        "Serves disk images and block devices through a worker pool, io_uring or libaio.",
    .unload = aiodisk_unload,
    .dump_plugin = aiodisk_dump_plugin,
    .config = config_set,
    .config_complete = config_complete,
    .config_help = CONFIG_HELP,
    .magic_config_key = "file",
    .get_ready = aiodisk_get_ready,
    .after_fork = aiodisk_after_fork,
    .list_exports = aiodisk_list_exports,
    .open = aiodisk_open,
    .close = aiodisk_close,
    .export_description = aiodisk_export_description,
    .get_size = aiodisk_get_size,
    .block_size = aiodisk_block_size,
    .can_write = can_write,
    .can_flush = can_always,
    .is_rotational = is_rotational,
    .can_trim = can_write,
    .can_zero = can_write,
    .can_fast_zero = can_write,
    .can_extents = can_always,
    .can_fua = can_fua,
    .can_multi_conn = can_always,
    .can_cache = can_cache,
    .pread = aiodisk_pread,
    .pwrite = aiodisk_pwrite,
    .flush = aiodisk_flush,
    .trim = aiodisk_trim,
    .zero = aiodisk_zero,
    .extents = aiodisk_extents,
    .cache = aiodisk_cache,
    /* answer() sets the errno by nbdkit_set_error. */
    .errno_is_preserved = 0,
};

NBDKIT_REGISTER_PLUGIN(plugin)
