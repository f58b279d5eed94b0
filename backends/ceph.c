/* SPDX-License-Identifier: BSD-3-Clause */
/* Connects to a Ceph cluster by librados.  See ceph.h.
 *
 * Runs on nbdkit's threads when an image is opened, and on the main thread before nbdkit forks.
 * Never carries a request, and never prints: librados would write its own lines to standard error.
 */
#include "backends/ceph.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/ceph-api.h"

/* The longest value of a configuration option that a message shows, in bytes. */
#define OPTION_SIZE 160

/* What the user asks for stays, unless it is no limit or a longer one. */
static int limit_requests(struct ceph *ceph, unsigned timeout_s)
{
    char seconds[16];

    int r = ceph_api.rados_conf_get(ceph->cluster, "rados_osd_op_timeout", ceph->request_timeout,
                                    sizeof ceph->request_timeout);
    double asked = strtod(ceph->request_timeout, NULL);
    if (r < 0 || (asked > 0 && asked < timeout_s))
        return r;
    snprintf(seconds, sizeof seconds, "%u", timeout_s);
    return ceph_api.rados_conf_set(ceph->cluster, "rados_osd_op_timeout", seconds);
}

int ceph_lift_limit(struct ceph *ceph)
{
    return ceph_api.rados_conf_set(ceph->cluster, "rados_osd_op_timeout", ceph->request_timeout);
}

static int set_options(struct ceph *ceph, const struct ceph_name *name, bool uncached)
{
    rados_t cluster = ceph->cluster;
    char seconds[16];

    snprintf(seconds, sizeof seconds, "%u", name->timeout_s);
    /* The connection, and then each question to the monitors. */
    int r = ceph_api.rados_conf_set(cluster, "client_mount_timeout", seconds);
    if (r == 0)
        r = ceph_api.rados_conf_set(cluster, "rados_mon_op_timeout", seconds);
    if (r == 0)
        r = limit_requests(ceph, name->timeout_s);
    if (r == 0 && uncached)
        r = ceph_api.rados_conf_set(cluster, "rbd_cache", "false");
    if (r == 0)
        r = ceph_api.rados_conf_set(cluster, "log_to_stderr", "false");
    if (r == 0)
        r = ceph_api.rados_conf_set(cluster, "err_to_stderr", "false");
    return r;
}

static const char *conf_of(const struct ceph_name *name)
{
    return name->conf ? name->conf : "the usual ceph.conf";
}

static int explain_connect(rados_t cluster, const struct ceph_name *name, int err, char *why,
                           size_t why_size)
{
    const char *user = ceph_user(name);
    char monitors[OPTION_SIZE] = "", keyring[OPTION_SIZE] = "";

    ceph_api.rados_conf_get(cluster, "mon_host", monitors, sizeof monitors);
    ceph_api.rados_conf_get(cluster, "keyring", keyring, sizeof keyring);
    switch (err) {
    case -ETIMEDOUT:
        snprintf(why, why_size, "no monitor answered in %u s: mon_host=%s in %s", name->timeout_s,
                 monitors, conf_of(name));
        break;
    case -ENOENT:
    case -ENOTSUP:
        snprintf(why, why_size, "no key for client.%s: keyring=%s, with %s: %s", user, keyring,
                 conf_of(name), strerror(-err));
        break;
    case -EACCES:
    case -EPERM:
        snprintf(why, why_size, "the monitors refuse client.%s (keyring=%s, with %s): %s", user,
                 keyring, conf_of(name), strerror(-err));
        break;
    default:
        snprintf(why, why_size, "the monitors mon_host=%s in %s cannot be used: %s", monitors,
                 conf_of(name), strerror(-err));
    }
    return err;
}

static int connect_to_pool(struct ceph *ceph, const struct ceph_name *name, bool uncached,
                           char *why, size_t why_size)
{
    int r = ceph_api.rados_conf_read_file(ceph->cluster, name->conf);
    if (r < 0) {
        snprintf(why, why_size, "%s cannot be read: %s", conf_of(name), strerror(-r));
        return r;
    }
    r = set_options(ceph, name, uncached);
    if (r < 0) {
        snprintf(why, why_size, "an option of Ceph cannot be set: %s", strerror(-r));
        return r;
    }
    r = ceph_api.rados_connect(ceph->cluster);
    if (r < 0)
        return explain_connect(ceph->cluster, name, r, why, why_size);
    r = ceph_api.rados_ioctx_create(ceph->cluster, name->pool, &ceph->pool);
    if (r < 0) {
        snprintf(why, why_size, "%s%s: %s", r == -ENOENT ? "no pool " : "pool ", name->pool,
                 strerror(-r));
        return r;
    }
    ceph_api.rados_ioctx_set_namespace(ceph->pool, name->space);
    ceph->id = ceph_api.rados_get_instance_id(ceph->cluster);
    return 0;
}

const char *ceph_user(const struct ceph_name *name)
{
    return name->user ? name->user : "admin";
}

int ceph_connect(struct ceph *ceph, const struct ceph_name *name, bool uncached, char *why,
                 size_t why_size)
{
    *ceph = (struct ceph){.cluster = NULL};
    int r = ceph_api_load(why, why_size);
    if (r < 0)
        return r;
    r = ceph_api.rados_create(&ceph->cluster, ceph_user(name));
    if (r < 0) {
        snprintf(why, why_size, "librados does not start: %s", strerror(-r));
        return r;
    }
    r = connect_to_pool(ceph, name, uncached, why, why_size);
    if (r < 0)
        ceph_disconnect(ceph);
    return r;
}

void ceph_disconnect(struct ceph *ceph)
{
    if (ceph->pool)
        ceph_api.rados_ioctx_destroy(ceph->pool);
    ceph_api.rados_shutdown(ceph->cluster);
    *ceph = (struct ceph){.cluster = NULL};
}

bool ceph_is_alive(const struct ceph *ceph, const char *object, uint64_t id)
{
    struct notify_timeout_t *silent = NULL;
    struct notify_ack_t *answers = NULL;
    size_t reply_size = 0, n_answers = 0, n_silent = 0;
    char *reply = NULL;
    bool found = false;

    /* -ETIMEDOUT: some did not answer; the reply still lists those who did. */
    ceph_api.rados_notify2(ceph->pool, object, NULL, 0, CEPH_ALIVE_MS, &reply, &reply_size);
    if (!reply)
        return false;
    if (ceph_api.rados_decode_notify_response(reply, reply_size, &answers, &n_answers, &silent,
                                              &n_silent) == 0) {
        for (size_t i = 0; i < n_answers; i++) {
            if (id != 0 ? answers[i].notifier_id == id : answers[i].notifier_id != ceph->id)
                found = true;
        }
        ceph_api.rados_free_notify_response(answers, n_answers, silent);
    }
    ceph_api.rados_buffer_free(reply);
    return found;
}
