/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdkit's face: its callbacks, in the order in which it calls them.
 *
 * Here -errno becomes what NBD knows, and a line in the log.  What a disk means is decided in the files that
 * are called.  Runs on nbdkit's threads: the main thread up to .after_fork and from .unload on, one
 * of a connection's threads between .open and .close.  Nothing here touches the disk itself.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/config.h"
#include "plugin/disk/bounce.h"
#include "plugin/disk/extents.h"
#include "plugin/disk/flush.h"
#include "plugin/disk/health.h"
#include "plugin/disk/image-table.h"
#include "plugin/disk/image.h"
#include "plugin/disk/log.h"
#include "plugin/disk/prefetch.h"
#include "plugin/disk/transfer.h"
#include "plugin/disk/zero.h"
#include "plugin/exports.h"
#include "plugin/runtime.h"
#include "plugin/thread-policy.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* -D aiodisk.stats=1: print the pool's counters at the end. */
NBDKIT_DLL_PUBLIC int aiodisk_debug_stats;

/* Main thread, before and after all connections; any thread reads it in between. */
static struct runtime runtime;

/* One client's connection. */
struct handle {
    struct image *image;
    struct handle *prev, *next; /* under handles_lock */
};

/* nbdkit 1.32 does not call .close for clients that are connected at its end. */
static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static struct handle *handles; /* under handles_lock */

/* --- Before and after serving --- */

static void aiodisk_dump_plugin(void)
{
    char why[RUNTIME_WHY_SIZE];

    printf("aiodisk_backends=");
    for (size_t i = 0, n = 0; backend_name(i); i++) {
        if (runtime_try(&config, backend_name(i), why) == 0)
            printf("%s%s", n++ ? " " : "", backend_name(i));
    }
    printf("\n");
    printf("aiodisk_max_threads=%u\n", config.max_threads);
    printf("aiodisk_min_threads=%u\n", config.min_threads);
    printf("aiodisk_queue_depth=%u\n", config.queue_depth);
    printf("aiodisk_cache=default none\n");
    printf("aiodisk_dispatch=auto pool\n");
    printf("aiodisk_locking=auto on off\n");
}

static int aiodisk_get_ready(void)
{
    char why[RUNTIME_WHY_SIZE];

    if (config_check() < 0)
        return -1;
    /* Later errors reach only syslog.  "threads" always works, and auto falls back to it. */
    if (strcmp(config.backend, "auto") != 0 && runtime_try(&config, config.backend, why) < 0) {
        nbdkit_error("%s", why);
        return -1;
    }
    if (strcmp(config.backend, "libaio") == 0 && config.cache != CACHE_NONE)
        log_warning(
            "backend=libaio is asynchronous only with cache=none: here reads and writes go to the worker pool");
    /* A write beyond RLIMIT_FSIZE is to fail with EFBIG, not to end the process. */
    signal(SIGXFSZ, SIG_IGN);
    return 0;
}

/* dir= may have thousands of images open, and the usual soft limit of 1024 is there for programs that use select(2).
 * Done after the fork, so that a --run command keeps what it was given.
 */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* The process is now the one that serves: threads and descriptors made here stay. */
static int aiodisk_after_fork(void)
{
    char why[RUNTIME_WHY_SIZE];

    raise_descriptor_limit();
    if (runtime_start(&runtime, &config, config.backend, why) < 0) {
        nbdkit_error("%s", why);
        return -1;
    }
    nbdkit_debug("%s", why);
    return 0;
}

static void print_counters(void)
{
    struct pool_counters c;

    pool_read_counters(runtime.pool, &c);
    fprintf(
        stderr,
        "aiodisk: counters: submitted=%llu enqueued=%llu worker_runs=%llu helped=%llu taken_back=%llu "
        "stranded_runs=%llu stranded_errors=%llu cancelled=%llu completions=%llu threads_created=%llu "
        "spawn_failures=%llu\n",
        (unsigned long long)c.submitted, (unsigned long long)c.enqueued,
        (unsigned long long)c.worker_runs, (unsigned long long)c.helped,
        (unsigned long long)c.taken_back, (unsigned long long)c.stranded_runs,
        (unsigned long long)c.stranded_errors, (unsigned long long)c.cancelled,
        (unsigned long long)c.completions, (unsigned long long)c.threads_created,
        (unsigned long long)c.spawn_failures);
}

static void forget(struct handle *h)
{
    pthread_mutex_lock(&handles_lock);
    *(h->prev ? &h->prev->next : &handles) = h->next;
    if (h->next)
        h->next->prev = h->prev;
    pthread_mutex_unlock(&handles_lock);
}

static void aiodisk_close(void *handle)
{
    struct handle *h = handle;

    forget(h);
    image_put(h->image);
    free(h);
}

/* nbdkit does not unload while a callback runs, so nobody else uses any of this any more. */
static void aiodisk_unload(void)
{
    while (handles)
        aiodisk_close(handles);
    image_close_all();
    if (aiodisk_debug_stats && runtime.pool)
        print_counters();
    runtime_stop(&runtime);
    health_forget_all();
    bounce_free_all();
    config_free();
}

/* --- A client comes --- */

static int add_export(void *opaque, const char *name, const struct stat *st)
{
    char description[64] = "block device";

    if (S_ISREG(st->st_mode))
        snprintf(description, sizeof description, "file, %lld bytes", (long long)st->st_size);
    return nbdkit_add_export(opaque, name, description);
}

static int aiodisk_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    char why[LOG_LINE_SIZE] = "";

    if (!config.directory)
        return nbdkit_use_default_export(exports);
    int r = exports_list(config.directory, add_export, exports, why);
    if (r < 0 && why[0] != '\0')
        nbdkit_error("%s", why);
    return r < 0 ? -1 : 0;
}

/* Returns a descriptor that names the image, or -errno with the reason in `why`. */
static int open_source(const char **name, char why[LOG_LINE_SIZE])
{
    if (config.directory) {
        *name = nbdkit_export_name();
        if (!*name)
            return -ENOMEM;
        return exports_open_one(config.directory, *name, why);
    }
    *name = config.file ? config.file : nbdkit_printf_intern("fd=%d", config.fd);
    if (!*name)
        return -ENOMEM;
    return config.file ? exports_open_file(config.file, why) : config.fd;
}

static int get_image(int readonly, struct image **image, char why[LOG_LINE_SIZE])
{
    const char *name;
    struct image_options options = {
        .backend = runtime.backend,
        .readonly = readonly,
        .direct = config.cache == CACHE_NONE,
        .locking = config.locking,
        .inherited = config.fd >= 0,
        .keep = !config.directory,
        .callers_write = config.dispatch == DISPATCH_AUTO && runtime.backend->ops->run,
    };

    int path_fd = open_source(&name, why);
    if (path_fd < 0)
        return path_fd;
    int r = image_get(path_fd, name, &options, image, why);
    if (path_fd != config.fd)
        close(path_fd);
    return r;
}

static void *aiodisk_open(int readonly)
{
    char why[LOG_LINE_SIZE] = "out of memory";
    struct handle *h = calloc(1, sizeof *h);

    if (!h || get_image(readonly, &h->image, why) < 0) {
        nbdkit_error("%s", why);
        free(h);
        return NULL;
    }
    pthread_mutex_lock(&handles_lock);
    h->next = handles;
    if (handles)
        handles->prev = h;
    handles = h;
    pthread_mutex_unlock(&handles_lock);
    return h;
}

static const char *aiodisk_export_description(void *handle)
{
    const struct image *image = ((struct handle *)handle)->image;

    return nbdkit_printf_intern("%s, %llu bytes%s", image->key.block ? "block device" : "file",
                                (unsigned long long)atomic_load(&image->size),
                                image->readonly ? ", read-only" : "");
}

static int64_t aiodisk_get_size(void *handle)
{
    return atomic_load(&((struct handle *)handle)->image->size);
}

static int aiodisk_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
                              uint32_t *maximum)
{
    /* Unaligned requests are served, and clients obey a larger minimum more strictly than is good for them. */
    *minimum = 1;
    *preferred = ((struct handle *)handle)->image->geometry.preferred_block;
    *maximum = IMAGE_MAX_REQUEST;
    return 0;
}

static int can_write(void *handle)
{
    return !((struct handle *)handle)->image->readonly;
}

static int can_always(void *handle)
{
    return 1;
}

static int is_rotational(void *handle)
{
    return ((struct handle *)handle)->image->geometry.rotational;
}

static int can_fua(void *handle)
{
    return NBDKIT_FUA_NATIVE;
}

static int can_cache(void *handle)
{
    return NBDKIT_CACHE_NATIVE;
}

/* --- Its requests --- */

/* Every request comes in here, and leaves through answer(). */
static struct handle *enter(void *handle, enum thread_load load)
{
    struct handle *h = handle;

    thread_policy_enter(h->image->direct ? LOAD_DIRECT : load);
    return h;
}

/* What NBD clients are told; nbdkit would turn errors it does not know into EINVAL, which blames the client. */
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

/* Turns a request's result into its callback's return value. */
static int answer(const struct handle *h, int r, const char *what, uint64_t count, uint64_t offset)
{
    thread_policy_leave();
    if (r >= 0)
        return 0;
    nbdkit_error("%s: %s of %llu bytes at %llu: %s", h->image->name, what,
                 (unsigned long long)count, (unsigned long long)offset, strerror(-r));
    nbdkit_set_error(nbd_error(-r));
    return -1;
}

static int aiodisk_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct handle *h = enter(handle, LOAD_CACHED);

    return answer(h, image_read(h->image, buf, count, offset), "read", count, offset);
}

static int aiodisk_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset,
                          uint32_t flags)
{
    struct handle *h = enter(handle, LOAD_CACHED_WRITE);
    int r = image_write(h->image, buf, count, offset, flags & NBDKIT_FLAG_FUA);

    return answer(h, r, "write", count, offset);
}

static int aiodisk_flush(void *handle, uint32_t flags)
{
    struct handle *h = enter(handle, LOAD_CACHED);

    return answer(h, image_flush(h->image), "flush", atomic_load(&h->image->size), 0);
}

static int aiodisk_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct handle *h = enter(handle, LOAD_CACHED);
    int r = image_trim(h->image, count, offset, flags & NBDKIT_FLAG_FUA ? ZERO_FUA : 0);

    return answer(h, r, "trim", count, offset);
}

static int aiodisk_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct handle *h = enter(handle, LOAD_CACHED);
    int r = image_zero(h->image, count, offset,
                       (flags & NBDKIT_FLAG_MAY_TRIM ? ZERO_MAY_TRIM : 0) |
                           (flags & NBDKIT_FLAG_FAST_ZERO ? ZERO_FAST : 0) |
                           (flags & NBDKIT_FLAG_FUA ? ZERO_FUA : 0));

    if (r == -EOPNOTSUPP) {
        /* A fast zero that would be slow: an answer, not an error. */
        thread_policy_leave();
        nbdkit_set_error(EOPNOTSUPP);
        return -1;
    }
    return answer(h, r, "zero", count, offset);
}

static int add_extent(void *opaque, const struct extent *extent)
{
    uint32_t type = extent->hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;

    return nbdkit_add_extent(opaque, extent->offset, extent->length, type) < 0 ? -errno : 0;
}

static int aiodisk_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                           struct nbdkit_extents *extents)
{
    struct handle *h = enter(handle, LOAD_CACHED);
    int r =
        image_extents(h->image, count, offset, flags & NBDKIT_FLAG_REQ_ONE, add_extent, extents);

    return answer(h, r, "extents", count, offset);
}

static int aiodisk_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct handle *h = enter(handle, LOAD_CACHED);

    image_prefetch(h->image, count, offset);
    return answer(h, 0, "cache", count, offset);
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
    /* Our own messages name the errno. */
    .errno_is_preserved = 0,
};

NBDKIT_REGISTER_PLUGIN(plugin)
