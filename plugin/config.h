/* SPDX-License-Identifier: BSD-3-Clause */
/* The parameters, as the user gave them: read and checked before nbdkit forks, then never changed. */
#ifndef AIODISK_CONFIG_H
#define AIODISK_CONFIG_H

#include <stdbool.h>

#include "plugin/disk/qemu-lock.h"

enum cache_mode { CACHE_DEFAULT, CACHE_NONE };
enum dispatch_mode { DISPATCH_AUTO, DISPATCH_POOL };

/* Main thread writes it before .after_fork; any thread reads it from then on. */
struct config {
    char *file;      /* absolute, or NULL */
    char *directory; /* absolute, or NULL */
    int fd;          /* or -1 */
    enum cache_mode cache;
    enum dispatch_mode dispatch;
    enum locking_mode locking;
    const char *backend; /* "auto", or a name that backend_name() knows */
    unsigned max_threads, min_threads, queue_depth;
};

extern struct config config;

#define CONFIG_HELP \
    "file=<FILE>      (required) The regular file or block device to serve, or a directory.\n" \
    "dir=<DIRECTORY>             Instead: serve every regular file and block device in it, by name.\n" \
    "fd=<N>                      Instead: serve this inherited file descriptor.\n" \
    "cache=default|none          Use the page cache (default), or O_DIRECT.\n" \
    "backend=auto|threads|io_uring|libaio  How requests reach the kernel (default auto).\n" \
    "dispatch=auto|pool          pool: every request through the worker pool (default auto).\n" \
    "max-threads=<N>             How many blocking calls run at once (default 64).\n" \
    "min-threads=<N>             How many idle worker threads are kept (default 0).\n" \
    "queue-depth=<N>             Ring size of io_uring and libaio (default 128).\n" \
    "locking=auto|on|off         Take the locks that QEMU takes on images (default auto)."

/* nbdkit's .config: one key=value.  0, or -1 after nbdkit_error. */
int config_set(const char *key, const char *value);

/* nbdkit's .config_complete: what can be judged without touching the disk.  0, or -1 after nbdkit_error. */
int config_complete(void);

/* For .get_ready, with the privileges that nbdkit was started with: does what was named exist, is it
 * of a kind that can be served, can it be read?  0, or -1 after nbdkit_error.
 */
int config_check(void);

void config_free(void);

#endif
