/* SPDX-License-Identifier: BSD-3-Clause */
/* The parameters of the plugin, as the user gave them.
 *
 * nbdkit's main thread fills in `config` before nbdkit forks and serves.  Nothing changes `config`
 * while nbdkit serves, so any thread reads it without a lock.
 *
 * A new parameter needs a field in struct config, a line in CONFIG_HELP, a branch in config_set (or
 * a row in the table word_parameters of config.c, if its values are words) and an item in
 * nbdkit-aiodisk-plugin.pod.
 */
#ifndef AIODISK_CONFIG_H
#define AIODISK_CONFIG_H

#include <stdint.h>

#include "plugin/disk/qemu-lock.h"
#include "plugin/disk/space.h"
#include "plugin/exports.h"

enum cache_mode {
    CACHE_DEFAULT, /* the page cache */
    CACHE_NONE,    /* O_DIRECT where the filesystem has it */
};

enum dispatch_mode {
    DISPATCH_AUTO, /* the thread that waits for a request may carry out the request itself */
    DISPATCH_POOL, /* a worker of the pool carries out every request */
};

/* Main thread only until .after_fork and from .unload on; read by any thread in between. */
struct config {
    /* At most one of these three is set after config_complete (file-source.c).  dirfd= sets the
     * directory too.
     */
    char *file;                         /* absolute path, or NULL */
    struct exports_directory directory; /* its name is NULL if none is given */
    int fd;                             /* or -1 */

    enum cache_mode cache; /* after config_complete what cache= or direct= says */
    enum dispatch_mode dispatch;
    enum locking_mode locking;
    int advice; /* of posix_fadvise(2) */
    struct space_policy space;

    const char *backend;  /* after config_complete a name that backend_name() knows */
    unsigned max_threads; /* slots of the pool, 1-POOL_MAX_THREADS */
    unsigned min_threads; /* idle workers kept, 0-max_threads */
    unsigned queue_depth; /* entries of a ring, 1-4096 */

    char *metrics;            /* absolute path of the metrics file, or NULL */
    char *metrics_server;     /* the value of the label `server`, escaped, or NULL */
    uint64_t slow_request_ns; /* a request older than this is named in the log; 0: none is */
};

extern struct config config;

/* `nbdkit --help aiodisk` prints this text. */
#define CONFIG_HELP \
    "file=<FILE>      (required) The regular file or block device to serve, or a directory.\n" \
    "dir=<DIRECTORY>             Serve every regular file and block device in it, by name.\n" \
    "dirfd=<N>                   The same for this inherited descriptor of a directory.\n" \
    "symlinks=inside|anywhere|none  Which symbolic links in it are served (default inside).\n" \
    "fd=<N>                      Serve this inherited file descriptor.\n" \
    "rbd=<POOL/IMAGE>            Serve a Ceph RBD image: POOL/[NAMESPACE/]IMAGE[@SNAPSHOT].\n" \
    "rbd-pool=<POOL>             Serve every image of a Ceph pool, by name.\n" \
    "rbd-conf=<FILE>             The cluster's ceph.conf (default: the usual places).\n" \
    "rbd-user=<NAME>             Ceph user, without \"client.\" (default admin).\n" \
    "rbd-timeout=<SECONDS>       How long the monitors may be silent (default 30).\n" \
    "cache=default|none          Use the page cache (default), or O_DIRECT.\n" \
    "direct=off|on               The same as cache=default|none, for nbdkit's cache filter.\n" \
    "fadvise=normal|random|sequential  How clients will read (default normal).\n" \
    "backend=auto|threads|io_uring|libaio  How requests reach the kernel (default auto).\n" \
    "dispatch=auto|pool          pool: every request through the worker pool (default auto).\n" \
    "max-threads=<N>             How many blocking calls run at once (default 64).\n" \
    "min-threads=<N>             How many idle worker threads are kept (default 0).\n" \
    "queue-depth=<N>             Ring size of io_uring and libaio (default 128).\n" \
    "locking=auto|on|off         Take the locks that QEMU takes on images (default auto).\n" \
    "discard=unmap|ignore        ignore: no trim or zero gives space back (default unmap).\n" \
    "detect-zeroes=off|on|unmap  Make writes of zeros zeros, or holes (default off).\n" \
    "metrics=<FILE>              Write Prometheus metrics to this file each second.\n" \
    "metrics-server=<NAME>       Add the label server=\"NAME\" to each metric.\n" \
    "slow-request=<SECONDS>      Log a request that is older (default 10; 0: never)."

/* nbdkit's .config callback: sets one parameter.  Returns 0, or -1 after nbdkit_error. */
int config_set(const char *key, const char *value);

/* nbdkit's .config_complete callback: checks the parameters against each other and resolves
 * backend=auto.  Does not touch the disk.  Returns 0, or -1 after nbdkit_error.
 */
int config_complete(void);

/* Checks that the file, directory or descriptor exists, is of a kind that can be served and can be
 * read by the process as it is now: for nbdkit's .get_ready callback, and again after nbdkit has
 * changed its user (recheck.h).  If file= names a directory, moves the name to config.directory.
 * Returns 0, or -1 after nbdkit_error.  Blocks on the disk.
 */
int config_check(void);

/* "default" or "none", as cache= says. */
const char *config_cache_name(void);

/* For --dump-plugin: prints the values of the numeric parameters, and the allowed values of the
 * others, as aiodisk_KEY=VALUE lines on standard output.
 */
void config_dump(void);

/* Frees the paths.  Main thread, when nothing is served any more. */
void config_free(void);

#endif
