/* SPDX-License-Identifier: BSD-3-Clause */
/* The parameters: parses and checks them, and resolves backend=auto.
 *
 * Each error is one line that names the key, the value and what is allowed.
 *
 * Runs on nbdkit's main thread before nbdkit forks.  Never creates a thread and never keeps a
 * descriptor open, because nbdkit may fork, change directory and drop privileges afterwards.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "backends/backend.h"
#include "plugin/config.h"
#include "plugin/log.h"
#include "plugin/source.h"
#include "plugin/watch/metrics-file.h"

#define DEFAULT_MAX_THREADS 64u
#define DEFAULT_QUEUE_DEPTH 128u
#define MAX_QUEUE_DEPTH 4096u
#define MAX_FD (1u << 20)
#define DEFAULT_SLOW_S 10u
#define MAX_SLOW_S 1000000u
#define NS_PER_S UINT64_C(1000000000)
#define MAX_WORDS 16 /* allowed values of backend=, with the NULL at the end */
#define AUTO "auto"
#define UNKNOWN_VALUE "unknown value"

struct config config = {
    .fd = -1,
    .directory = {.fd = -1},
    .backend = AUTO,
    .max_threads = DEFAULT_MAX_THREADS,
    .queue_depth = DEFAULT_QUEUE_DEPTH,
    .slow_request_ns = DEFAULT_SLOW_S * NS_PER_S,
};

/* The parameters whose values are words. */
enum word_key {
    KEY_CACHE,
    KEY_DIRECT,
    KEY_DISPATCH,
    KEY_LOCKING,
    KEY_SYMLINKS,
    KEY_FADVISE,
    KEY_DISCARD,
    KEY_DETECT_ZEROES,
    WORD_KEYS
};
static struct {
    const char *key;
    const char *const *words;
    bool given; /* main thread only */
    int word;   /* index of the word that was given last, or of the default; main thread only */
} word_parameters[WORD_KEYS] = {
#define WORDS(...) \
    (const char *const[]) \
    { \
        __VA_ARGS__, NULL \
    }
    /* cache= and direct= name the same choice: the words of one value have the same index. */
    [KEY_CACHE] = {"cache", WORDS([CACHE_DEFAULT] = "default", [CACHE_NONE] = "none")},
    [KEY_DIRECT] = {"direct", WORDS([CACHE_DEFAULT] = "off", [CACHE_NONE] = "on")},
    [KEY_DISPATCH] = {"dispatch", WORDS([DISPATCH_AUTO] = "auto", [DISPATCH_POOL] = "pool")},
    [KEY_LOCKING] = {"locking",
                     WORDS([LOCKING_AUTO] = "auto", [LOCKING_ON] = "on", [LOCKING_OFF] = "off")},
    [KEY_SYMLINKS] = {"symlinks",
                      WORDS([SYMLINKS_INSIDE] = "inside", [SYMLINKS_ANYWHERE] = "anywhere",
                            [SYMLINKS_NONE] = "none")},
    [KEY_FADVISE] = {"fadvise",
                     WORDS([POSIX_FADV_NORMAL] = "normal", [POSIX_FADV_RANDOM] = "random",
                           [POSIX_FADV_SEQUENTIAL] = "sequential")},
    [KEY_DISCARD] = {"discard", WORDS([DISCARD_UNMAP] = "unmap", [DISCARD_IGNORE] = "ignore")},
    [KEY_DETECT_ZEROES] = {"detect-zeroes",
                           WORDS([DETECT_ZEROES_OFF] = "off", [DETECT_ZEROES_ON] = "on",
                                 [DETECT_ZEROES_UNMAP] = "unmap")},
#undef WORDS
};

/* Stores the index of `value` in `words` and returns 0.  If `words` does not contain the value,
 * reports `problem` and the allowed words, stores 0 and returns -1.
 */
static int parse_word(const char *key, const char *value, const char *const *words,
                      const char *problem, int *word)
{
    char allowed[256] = "";
    size_t used = 0;

    for (*word = 0; words[*word]; ++*word) {
        if (strcmp(value, words[*word]) == 0)
            return 0;
        used +=
            snprintf(allowed + used, sizeof allowed - used, "%s%s", used ? ", " : "", words[*word]);
        assert(used < sizeof allowed);
    }
    *word = 0;
    log_error("%s=%s: %s; allowed are: %s", key, value, problem, allowed);
    return -1;
}

/* The allowed values are "auto" and the backends that this build contains. */
static int parse_backend(const char *key, const char *value)
{
    const char *words[MAX_WORDS] = {AUTO};
    int word;

    for (size_t i = 0; backend_name(i); i++) {
        assert(i + 2 < MAX_WORDS);
        words[i + 1] = backend_name(i);
    }
    int r = parse_word(key, value, words, UNKNOWN_VALUE " in this build", &word);
    config.backend = words[word];
    return r;
}

static int parse_number(const char *key, const char *value, unsigned min, unsigned max,
                        unsigned *number)
{
    char *end;

    errno = 0;
    unsigned long n = strtoul(value, &end, 10);
    /* strtoul(3) accepts white space and a sign before the digits; a parameter does not. */
    if (value[0] < '0' || value[0] > '9' || *end != '\0') {
        log_error("%s=%s: not a number; allowed is %u to %u", key, value, min, max);
        return -1;
    }
    if (errno == ERANGE || n < min || n > max) {
        log_error("%s=%s: out of range; allowed is %u to %u", key, value, min, max);
        return -1;
    }
    *number = n;
    return 0;
}

static int parse_path(const char *key, const char *value, char **path)
{
    if (value[0] == '\0') {
        log_error("%s=: the name is empty", key);
        return -1;
    }
    if (source_require_first(key, value) < 0)
        return -1;
    /* nbdkit changes its directory to / when it goes into the background. */
    *path = nbdkit_absolute_path(value);
    return *path ? 0 : -1;
}

static int parse_fd(const char *key, const char *value, int *result)
{
    unsigned fd;

    if (source_require_first(key, value) < 0)
        return -1;
    /* nbdkit replaces descriptors 0, 1 and 2 when it goes into the background. */
    if (parse_number(key, value, STDERR_FILENO + 1, MAX_FD, &fd) < 0)
        return -1;
    *result = fd;
    return 0;
}

static int parse_dirfd(const char *key, const char *value)
{
    if (parse_fd(key, value, &config.directory.fd) < 0)
        return -1;
    if (asprintf(&config.directory.name, "%s=%s", key, value) >= 0)
        return 0;
    config.directory.name = NULL;
    log_error("%s: out of memory", key);
    return -1;
}

/* Any number of seconds, also a fraction. */
static int parse_slow_request(const char *key, const char *value)
{
    char *end;
    double n = strtod(value, &end);

    /* strtod(3) also accepts white space, a sign, "inf", "nan" and hexadecimal digits. */
    if (value[strspn(value, "0123456789.")] != '\0' || end == value || *end != '\0' ||
        n > MAX_SLOW_S) {
        log_error("%s=%s: not a number of seconds; allowed is 0 (never) to %u", key, value,
                  MAX_SLOW_S);
        return -1;
    }
    config.slow_request_ns = (uint64_t)(n * NS_PER_S);
    return 0;
}

static int parse_metrics(const char *key, const char *value)
{
    if (value[0] == '\0') {
        log_error("%s=: the name is empty", key);
        return -1;
    }
    free(config.metrics);
    /* nbdkit changes its directory to / when it goes into the background. */
    config.metrics = nbdkit_absolute_path(value);
    return config.metrics ? 0 : -1;
}

static int parse_metrics_server(const char *key, const char *value)
{
    if (value[0] == '\0' || value[strcspn(value, "\\\"\n")] != '\0') {
        log_error("%s=%s: allowed is any text without backslash, quote and newline", key, value);
        return -1;
    }
    free(config.metrics_server);
    config.metrics_server = strdup(value);
    if (!config.metrics_server)
        log_error("%s: out of memory", key);
    return config.metrics_server ? 0 : -1;
}

int config_set(const char *key, const char *value)
{
    for (unsigned i = 0; source_at(i); i++) {
        int r = source_at(i)->set ? source_at(i)->set(key, value) : 1;
        if (r <= 0)
            return r;
    }
    if (strcmp(key, "file") == 0)
        return parse_path(key, value, &config.file);
    if (strcmp(key, "dir") == 0 || strcmp(key, "directory") == 0)
        return parse_path(key, value, &config.directory.name);
    if (strcmp(key, "fd") == 0)
        return parse_fd(key, value, &config.fd);
    if (strcmp(key, "dirfd") == 0)
        return parse_dirfd(key, value);
    if (strcmp(key, "backend") == 0)
        return parse_backend(key, value);
    if (strcmp(key, "max-threads") == 0)
        return parse_number(key, value, 1, POOL_MAX_THREADS, &config.max_threads);
    if (strcmp(key, "min-threads") == 0)
        return parse_number(key, value, 0, POOL_MAX_THREADS, &config.min_threads);
    if (strcmp(key, "queue-depth") == 0)
        return parse_number(key, value, 1, MAX_QUEUE_DEPTH, &config.queue_depth);
    if (strcmp(key, "metrics") == 0)
        return parse_metrics(key, value);
    if (strcmp(key, "metrics-server") == 0)
        return parse_metrics_server(key, value);
    if (strcmp(key, "slow-request") == 0)
        return parse_slow_request(key, value);

    for (int i = 0; i < WORD_KEYS; i++) {
        if (strcmp(key, word_parameters[i].key) == 0) {
            word_parameters[i].given = true;
            return parse_word(key, value, word_parameters[i].words, UNKNOWN_VALUE,
                              &word_parameters[i].word);
        }
    }
    log_error("%s=%s: unknown parameter; known are: file, dir, directory, dirfd, symlinks, fd, "
              "cache, direct, fadvise, backend, dispatch, max-threads, min-threads, queue-depth, "
              "locking, discard, detect-zeroes, metrics, metrics-server, slow-request, rbd, "
              "rbd-pool, rbd-conf, rbd-user, rbd-timeout",
              key, value);
    return -1;
}

/* Returns 0, or -1 after an error if cache= and direct= contradict each other. */
static int resolve_cache(void)
{
    int cache = word_parameters[KEY_CACHE].word, direct = word_parameters[KEY_DIRECT].word;
    bool both = word_parameters[KEY_CACHE].given && word_parameters[KEY_DIRECT].given;

    if (both && cache != direct) {
        const char *cache_word = word_parameters[KEY_CACHE].words[direct];
        const char *direct_word = word_parameters[KEY_DIRECT].words[direct];

        log_error("cache=%s and direct=%s contradict each other; direct=%s means cache=%s",
                  word_parameters[KEY_CACHE].words[cache], direct_word, direct_word, cache_word);
        return -1;
    }
    config.cache = word_parameters[KEY_CACHE].given ? cache : direct;
    return 0;
}

/* The only place that knows what "auto" means: the first backend of backend.c's table. */
static void resolve_backend(void)
{
    if (strcmp(config.backend, AUTO) == 0) {
        config.backend = backend_name(0);
        log_debug("backend %s (auto: it measured fastest in most cases; see \"CHOOSING A "
                  "BACKEND\" in nbdkit-aiodisk-plugin(1))",
                  config.backend);
    } else {
        log_debug("backend %s (as named by backend=)", config.backend);
    }
}

int config_complete(void)
{
    for (unsigned i = 0; source_at(i); i++) {
        if (source_at(i)->complete && source_at(i)->complete() < 0)
            return -1;
    }
    if (!source_given()) {
        log_error("file: missing; one of file=FILENAME, dir=DIRECTORY, fd=N, dirfd=N, "
                  "rbd=POOL/IMAGE and rbd-pool=POOL is required");
        return -1;
    }
    if (config.metrics_server && !config.metrics) {
        log_error("metrics-server=%s: needs metrics=FILE", config.metrics_server);
        return -1;
    }
    if (config.min_threads > config.max_threads) {
        log_error("min-threads=%u: more than max-threads=%u", config.min_threads,
                  config.max_threads);
        return -1;
    }
    if (resolve_cache() < 0)
        return -1;
    config.dispatch = word_parameters[KEY_DISPATCH].word;
    config.locking = word_parameters[KEY_LOCKING].word;
    config.space.discard = word_parameters[KEY_DISCARD].word;
    config.space.detect_zeroes = word_parameters[KEY_DETECT_ZEROES].word;
    config.advice = word_parameters[KEY_FADVISE].word;
    config.directory.symlinks = word_parameters[KEY_SYMLINKS].word;
    resolve_backend();
    if (config.space.detect_zeroes == DETECT_ZEROES_UNMAP &&
        config.space.discard == DISCARD_IGNORE) {
        log_error("detect-zeroes=unmap: contradicts discard=ignore; use detect-zeroes=on, or "
                  "discard=unmap");
        return -1;
    }
    if (config.dispatch == DISPATCH_POOL && strcmp(config.backend, "threads") != 0) {
        log_error("dispatch=pool: needs backend=threads (or auto), not backend=%s", config.backend);
        return -1;
    }
    return 0;
}

int config_check(void)
{
    char why[LOG_LINE_SIZE];

    int r = source_given()->check(why);
    if (r == 0 && config.metrics)
        r = metrics_file_check(config.metrics, why);
    if (r < 0) {
        log_error("%s", why);
        return -1;
    }
    return 0;
}

const char *config_cache_name(void)
{
    return word_parameters[KEY_CACHE].words[config.cache];
}

static void dump_words(const char *key, const char *const *words)
{
    printf("aiodisk_");
    for (; *key; key++)
        putchar(*key == '-' ? '_' : *key);
    putchar('=');
    for (int i = 0; words[i]; i++)
        printf("%s%s", i ? " " : "", words[i]);
    putchar('\n');
}

void config_dump(void)
{
    printf("aiodisk_max_threads=%u\n", config.max_threads);
    printf("aiodisk_min_threads=%u\n", config.min_threads);
    printf("aiodisk_queue_depth=%u\n", config.queue_depth);
    printf("aiodisk_slow_request=%u\n", DEFAULT_SLOW_S);
    for (int i = 0; i < WORD_KEYS; i++)
        dump_words(word_parameters[i].key, word_parameters[i].words);
#ifdef HAVE_RBD
    printf("aiodisk_rbd=yes\n");
#endif
}

void config_free(void)
{
    free(config.file);
    free(config.directory.name);
    free(config.metrics);
    free(config.metrics_server);
    for (unsigned i = 0; source_at(i); i++) {
        if (source_at(i)->free)
            source_at(i)->free();
    }
    config.file = config.directory.name = config.metrics = config.metrics_server = NULL;
}
