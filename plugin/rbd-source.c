/* SPDX-License-Identifier: BSD-3-Clause */
/* Ceph RBD images as a source: rbd=, rbd-pool= and the parameters of the cluster.  See source.h.
 *
 * Runs on nbdkit's main thread at start, and on nbdkit's threads when a client connects or lists
 * the exports.  A build without Ceph knows the parameters, and refuses them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/config.h"
#include "plugin/log.h"
#include "plugin/source.h"

#ifdef HAVE_RBD

#include "plugin/disk/rbd-disk.h"

#define DEFAULT_TIMEOUT_S 30u
#define MAX_TIMEOUT_S 3600u

/* Set on the main thread, then read by any thread.  pool, space, image and snapshot point into
 * `text`.
 */
static struct ceph_name given = {.timeout_s = DEFAULT_TIMEOUT_S};
static char *text, *conf, *user;
/* The last parameter that is of use only with rbd= or rbd-pool=, or NULL. */
static const char *needs_source;

/* Cuts `rest` at the first `mark`.  Returns what follows, or NULL without a mark. */
static char *cut(char *rest, char mark)
{
    char *found = strchr(rest, mark);

    if (found)
        *found++ = '\0';
    return found;
}

static bool is_empty(const char *part)
{
    return part && part[0] == '\0';
}

/* POOL/[NAMESPACE/]IMAGE[@SNAPSHOT], or with rbd-pool= POOL[/NAMESPACE]. */
static int parse_name(const char *key, const char *value, bool whole_pool)
{
    if (source_require_first(key, value) < 0)
        return -1;
    text = strdup(value);
    if (!text) {
        log_error("%s: out of memory", key);
        return -1;
    }
    char *second = cut(text, '/');
    char *third = second ? cut(second, '/') : NULL;

    given.pool = text;
    given.space = whole_pool ? second ? second : "" : third ? second : "";
    given.image = whole_pool ? NULL : third ? third : second;
    given.snapshot = given.image ? cut((char *)given.image, '@') : NULL;
    bool is_wrong = whole_pool ? third != NULL : !given.image || strchr(given.image, '/');
    if (is_wrong || is_empty(given.pool) || is_empty(second) || is_empty(third) ||
        is_empty(given.image) || is_empty(given.snapshot)) {
        log_error("%s=%s: the form is %s", key, value,
                  whole_pool ? "POOL[/NAMESPACE]" : "POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]");
        return -1;
    }
    return 0;
}

static int parse_text(const char *key, const char *value, char *copy, char **result)
{
    if (value[0] == '\0') {
        log_error("%s=: the name is empty", key);
        return -1;
    }
    free(*result);
    *result = copy;
    if (!copy)
        log_error("%s: out of memory", key);
    return copy ? 0 : -1;
}

static int parse_timeout(const char *key, const char *value)
{
    char *end;
    unsigned long seconds = strtoul(value, &end, 10);

    if (value[0] < '0' || value[0] > '9' || *end != '\0' || seconds < 1 ||
        seconds > MAX_TIMEOUT_S) {
        log_error("%s=%s: not a number of seconds; allowed is 1 to %u", key, value, MAX_TIMEOUT_S);
        return -1;
    }
    given.timeout_s = seconds;
    return 0;
}

static int set(const char *key, const char *value)
{
    int r = 1;

    if (strcmp(key, "rbd") == 0)
        return parse_name(key, value, false);
    if (strcmp(key, "rbd-pool") == 0)
        return parse_name(key, value, true);
    if (strcmp(key, "rbd-conf") == 0) {
        needs_source = "rbd-conf";
        /* nbdkit changes its directory to / when it goes into the background. */
        r = parse_text(key, value, value[0] ? nbdkit_absolute_path(value) : NULL, &conf);
        given.conf = conf;
    } else if (strcmp(key, "rbd-user") == 0) {
        needs_source = "rbd-user";
        r = parse_text(key, value, value[0] ? strdup(value) : NULL, &user);
        given.user = user;
    } else if (strcmp(key, "rbd-timeout") == 0) {
        needs_source = "rbd-timeout";
        r = parse_timeout(key, value);
    }
    return r;
}

static bool is_given(void)
{
    return text;
}

static int complete(void)
{
    if (needs_source && !text) {
        log_error("%s: needs rbd=POOL/IMAGE or rbd-pool=POOL", needs_source);
        return -1;
    }
    return 0;
}

static int check(char why[LOG_LINE_SIZE])
{
    return rbd_disk_check(&given, why);
}

static bool has_names(void)
{
    return !given.image;
}

struct listing {
    int (*add)(void *opaque, const char *name, const char *description);
    void *opaque;
};

static int add_export(void *opaque, const char *name)
{
    const struct listing *listing = opaque;

    return listing->add(listing->opaque, name, "RBD image");
}

static int list(int (*add)(void *opaque, const char *name, const char *description), void *opaque,
                char why[LOG_LINE_SIZE])
{
    struct listing listing = {add, opaque};

    return ceph_image_list(&given, add_export, &listing, why, LOG_LINE_SIZE);
}

/* The export IMAGE or IMAGE@SNAPSHOT of a pool. */
static int open_export(char *export_name, const struct rbd_options *options, struct disk **disk,
                       char why[LOG_LINE_SIZE])
{
    struct ceph_name name = given;

    name.image = export_name;
    name.snapshot = cut(export_name, '@');
    if (is_empty(name.image) || is_empty(name.snapshot)) {
        snprintf(why, LOG_LINE_SIZE,
                 "rbd-pool=%s: the client named no export; the images are the exports", name.pool);
        return -ENOENT;
    }
    return rbd_disk_get(&name, options, disk, why);
}

static int open_disk(const char *export_name, const struct source_options *options,
                     struct disk **disk, char why[LOG_LINE_SIZE])
{
    const struct rbd_options rbd_options = {
        .room = options->room,
        .readonly = options->readonly,
        .uncached = config.cache == CACHE_NONE,
        .lock = config.locking == LOCKING_OFF  ? CEPH_LOCK_NONE
                : config.locking == LOCKING_ON ? CEPH_LOCK_NEEDED
                                               : CEPH_LOCK_AUTO,
        .tally = options->tally,
    };

    if (given.image)
        return rbd_disk_get(&given, &rbd_options, disk, why);
    char *copy = strdup(export_name);
    if (!copy)
        return -ENOMEM;
    int r = open_export(copy, &rbd_options, disk, why);
    free(copy);
    return r;
}

static void free_all(void)
{
    free(text);
    free(conf);
    free(user);
    text = conf = user = NULL;
}

const struct source rbd_source = {
    .set = set,
    .is_given = is_given,
    .complete = complete,
    .check = check,
    .has_names = has_names,
    .list = list,
    .open = open_disk,
    .free = free_all,
};

#else

static int refuse(const char *key, const char *value)
{
    static const char *const keys[] = {"rbd", "rbd-pool", "rbd-conf", "rbd-user", "rbd-timeout"};

    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strcmp(key, keys[i]) == 0) {
            log_error("%s=%s: this plugin was built without Ceph", key, value);
            return -1;
        }
    }
    return 1;
}

static bool is_never_given(void)
{
    return false;
}

const struct source rbd_source = {.set = refuse, .is_given = is_never_given};

#endif
