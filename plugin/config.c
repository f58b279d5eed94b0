/* SPDX-License-Identifier: BSD-3-Clause */
/* Parameters: parsing them, and telling the user in one line which one was wrong, what was wrong with it and
 * what is allowed.
 *
 * Runs on nbdkit's main thread, before it forks.  Creates no thread and keeps no descriptor open:
 * nbdkit may fork, change directory and drop privileges afterwards.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "backends/backend.h"
#include "plugin/config.h"
#include "plugin/exports.h"

#define DEFAULT_MAX_THREADS 64u
#define DEFAULT_QUEUE_DEPTH 128u
#define MAX_QUEUE_DEPTH 4096u

struct config config = {
    .fd = -1,
    .backend = "auto",
    .max_threads = DEFAULT_MAX_THREADS,
    .queue_depth = DEFAULT_QUEUE_DEPTH,
};

static const char *const cache_words[] = {[CACHE_DEFAULT] = "default", [CACHE_NONE] = "none", NULL};
static const char *const dispatch_words[] = {
    [DISPATCH_AUTO] = "auto", [DISPATCH_POOL] = "pool", NULL};
static const char *const locking_words[] = {
    [LOCKING_AUTO] = "auto", [LOCKING_ON] = "on", [LOCKING_OFF] = "off", NULL};
static const char *const backend_words[] = {"auto", "threads", "io_uring", "libaio", NULL};

/* The index of value in words, or -1 after an error that lists them. */
static int parse_word(const char *key, const char *value, const char *const *words)
{
    char allowed[128] = "";
    size_t used = 0;

    for (int i = 0; words[i]; i++) {
        if (strcmp(value, words[i]) == 0)
            return i;
        used += snprintf(allowed + used, sizeof allowed - used, "%s%s", i ? ", " : "", words[i]);
    }
    nbdkit_error("%s=%s: unknown value; allowed are: %s", key, value, allowed);
    return -1;
}

static int parse_number(const char *key, const char *value, unsigned min, unsigned max,
                        unsigned *number)
{
    char *end;

    errno = 0;
    unsigned long n = strtoul(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end != '\0') {
        nbdkit_error("%s=%s: not a number; allowed is %u to %u", key, value, min, max);
        return -1;
    }
    if (errno == ERANGE || n < min || n > max) {
        nbdkit_error("%s=%s: out of range; allowed is %u to %u", key, value, min, max);
        return -1;
    }
    *number = n;
    return 0;
}

static int parse_path(const char *key, const char *value, char **path)
{
    if (value[0] == '\0') {
        nbdkit_error("%s=: the name is empty", key);
        return -1;
    }
    if (config.file || config.directory || config.fd >= 0) {
        nbdkit_error("%s=%s: only one of file=, dir= and fd= may be given, and only once", key,
                     value);
        return -1;
    }
    /* nbdkit changes to / when it goes into the background. */
    *path = nbdkit_absolute_path(value);
    return *path ? 0 : -1;
}

static int parse_fd(const char *key, const char *value)
{
    unsigned fd;

    if (config.file || config.directory || config.fd >= 0) {
        nbdkit_error("%s=%s: only one of file=, dir= and fd= may be given, and only once", key,
                     value);
        return -1;
    }
    /* 0, 1 and 2 are nbdkit's own: it points them elsewhere when it goes into the background. */
    if (parse_number(key, value, STDERR_FILENO + 1, 1u << 20, &fd) < 0)
        return -1;
    config.fd = fd;
    return 0;
}

int config_set(const char *key, const char *value)
{
    int word;

    if (strcmp(key, "file") == 0)
        return parse_path(key, value, &config.file);
    if (strcmp(key, "dir") == 0 || strcmp(key, "directory") == 0)
        return parse_path(key, value, &config.directory);
    if (strcmp(key, "fd") == 0)
        return parse_fd(key, value);
    if (strcmp(key, "max-threads") == 0)
        return parse_number(key, value, 1, POOL_MAX_THREADS, &config.max_threads);
    if (strcmp(key, "min-threads") == 0)
        return parse_number(key, value, 0, POOL_MAX_THREADS, &config.min_threads);
    if (strcmp(key, "queue-depth") == 0)
        return parse_number(key, value, 1, MAX_QUEUE_DEPTH, &config.queue_depth);

    if (strcmp(key, "cache") == 0) {
        word = parse_word(key, value, cache_words);
        config.cache = word;
    } else if (strcmp(key, "dispatch") == 0) {
        word = parse_word(key, value, dispatch_words);
        config.dispatch = word;
    } else if (strcmp(key, "locking") == 0) {
        word = parse_word(key, value, locking_words);
        config.locking = word;
    } else if (strcmp(key, "backend") == 0) {
        word = parse_word(key, value, backend_words);
        config.backend = word < 0 ? "auto" : backend_words[word];
    } else {
        nbdkit_error(
            "%s=%s: unknown parameter; known are: file, dir, directory, fd, cache, backend, dispatch, "
            "max-threads, min-threads, queue-depth, locking",
            key, value);
        word = -1;
    }
    return word < 0 ? -1 : 0;
}

static bool backend_compiled_in(const char *name)
{
    for (size_t i = 0; backend_name(i); i++) {
        if (strcmp(backend_name(i), name) == 0)
            return true;
    }
    return strcmp(name, "auto") == 0;
}

int config_complete(void)
{
    if (!config.file && !config.directory && config.fd < 0) {
        nbdkit_error(
            "file: missing; name the image or block device to serve (or dir=DIRECTORY, or fd=N)");
        return -1;
    }
    if (config.min_threads > config.max_threads) {
        nbdkit_error("min-threads=%u: more than max-threads=%u", config.min_threads,
                     config.max_threads);
        return -1;
    }
    if (!backend_compiled_in(config.backend)) {
        nbdkit_error("backend=%s: this build does not have it", config.backend);
        return -1;
    }
    if (config.dispatch == DISPATCH_POOL) {
        if (strcmp(config.backend, "auto") == 0)
            config.backend = "threads";
        if (strcmp(config.backend, "threads") != 0) {
            nbdkit_error("dispatch=pool: needs backend=threads (or auto), not backend=%s",
                         config.backend);
            return -1;
        }
    }
    return 0;
}

int config_check(void)
{
    char why[LOG_LINE_SIZE];

    /* A bare directory means dir=. */
    if (config.file && exports_is_directory(config.file)) {
        config.directory = config.file;
        config.file = NULL;
    }
    int r = config.directory ? exports_check_directory(config.directory, why)
            : config.fd >= 0 ? exports_check_fd(config.fd, why)
                             : exports_check_file(config.file, why);
    if (r < 0) {
        nbdkit_error("%s", why);
        return -1;
    }
    return 0;
}

void config_free(void)
{
    free(config.file);
    free(config.directory);
    config.file = config.directory = NULL;
}
