/* SPDX-License-Identifier: BSD-3-Clause */
/* See fake-rbd.h: what every call begins with, and librados.  The program exports these functions
 * and those of fake-rbd.c, and dlsym(3) finds them in place of the libraries' own.
 */
#include "tests/unit/fake-rbd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rbd/librbd.h>

#define OPTIONS 16

struct fake_rbd fake;

pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t fake_changed = PTHREAD_COND_INITIALIZER;

/* Under fake_lock. */
static const char *held;
static unsigned waiting;

static struct {
    char name[40], value[40];
} options[OPTIONS];

void fake_reset(uint64_t size)
{
    static char id[24];
    static unsigned number;

    snprintf(id, sizeof id, "image%u", ++number);
    memset(&fake, 0, sizeof fake);
    fake.size = size;
    fake.object_size = 4u << 20;
    fake.features = RBD_FEATURE_EXCLUSIVE_LOCK | RBD_FEATURE_FAST_DIFF;
    fake.stripes = 1;
    fake.id = id;
    fake.may_write = true;
}

void fake_hold(const char *name)
{
    pthread_mutex_lock(&fake_lock);
    held = name;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
}

void fake_go_on(void)
{
    fake_hold(NULL);
}

unsigned fake_held(void)
{
    pthread_mutex_lock(&fake_lock);
    unsigned n = waiting;
    pthread_mutex_unlock(&fake_lock);
    return n;
}

/* Each call begins here.  Returns 0, or the error with which the call is to end. */
int fake_fails(const char *name)
{
    int r = 0;

    pthread_mutex_lock(&fake_lock);
    fake.calls++;
    if (fake.calls == fake.fail_at || (fake.broken && strcmp(fake.broken, name) == 0)) {
        fake.failed = name;
        r = fake.error;
    }
    waiting++;
    while (held && strcmp(held, name) == 0)
        pthread_cond_wait(&fake_changed, &fake_lock);
    waiting--;
    pthread_mutex_unlock(&fake_lock);
    return r;
}

/* As fake_fails, for a call that makes something when it succeeds. */
int fake_makes(const char *name)
{
    int r = fake_fails(name);

    if (r == 0)
        fake.owed++;
    return r;
}

/* --- librados: the connection --- */

int rados_create(rados_t *cluster, const char *const id)
{
    int r = fake_makes(__func__);

    *cluster = r == 0 ? &fake : NULL;
    memset(options, 0, sizeof options);
    return r;
}

void rados_shutdown(rados_t cluster)
{
    fake.owed--;
}

static void set_option(const char *option, const char *value)
{
    int i = 0;

    while (options[i].name[0] && strcmp(options[i].name, option) != 0)
        i++;
    snprintf(options[i].name, sizeof options[i].name, "%s", option);
    snprintf(options[i].value, sizeof options[i].value, "%s", value);
}

int rados_conf_set(rados_t cluster, const char *option, const char *value)
{
    int r = fake_fails(__func__);

    if (r == 0)
        set_option(option, value);
    return r;
}

const char *fake_option(const char *name)
{
    for (int i = 0; i < OPTIONS; i++)
        if (strcmp(options[i].name, name) == 0)
            return options[i].value;
    return "";
}

int rados_conf_get(rados_t cluster, const char *option, char *buf, size_t len)
{
    int r = fake_fails(__func__);

    if (r == 0)
        snprintf(buf, len, "%s", fake_option(option));
    return r;
}

int rados_conf_read_file(rados_t cluster, const char *path)
{
    int r = fake_fails(__func__);

    if (r == 0)
        set_option("rados_osd_op_timeout", fake.request_timeout ? fake.request_timeout : "0");
    return r;
}

int rados_connect(rados_t cluster)
{
    return fake_fails(__func__);
}

int rados_ioctx_create(rados_t cluster, const char *pool_name, rados_ioctx_t *ioctx)
{
    int r = fake_makes(__func__);

    *ioctx = r == 0 ? &fake : NULL;
    return r;
}

void rados_ioctx_destroy(rados_ioctx_t io)
{
    fake.owed--;
}

void rados_ioctx_set_namespace(rados_ioctx_t io, const char *nspace)
{
}

int64_t rados_ioctx_get_id(rados_ioctx_t io)
{
    return 7;
}

uint64_t rados_get_instance_id(rados_t cluster)
{
    return FAKE_ID;
}

int rados_cluster_fsid(rados_t cluster, char *buf, size_t len)
{
    int r = fake_fails(__func__);

    if (r == 0)
        snprintf(buf, len, "fsid");
    return r;
}

/* --- librados: who is alive --- */

int rados_notify2(rados_ioctx_t io, const char *o, const char *buf, int buf_len,
                  uint64_t timeout_ms, char **reply_buffer, size_t *reply_buffer_len)
{
    int r = fake_makes(__func__);

    fake.alive_questions++;
    if (r == 0) {
        *reply_buffer = malloc(1);
        *reply_buffer_len = 1;
    }
    return r == 0 && fake.other && !fake.other_answers ? -ETIMEDOUT : r;
}

void rados_buffer_free(char *buf)
{
    fake.owed--;
    free(buf);
}

int rados_decode_notify_response(char *reply_buffer, size_t reply_buffer_len,
                                 struct notify_ack_t **acks, size_t *nr_acks,
                                 struct notify_timeout_t **timeouts, size_t *nr_timeouts)
{
    int r = fake_makes(__func__);

    if (r < 0)
        return r;
    *acks = calloc(3, sizeof **acks);
    *nr_acks = 0;
    if (fake.other_answers)
        (*acks)[(*nr_acks)++].notifier_id = fake.other;
    (*acks)[(*nr_acks)++].notifier_id = FAKE_ID;
    if (fake.someone_else_answers)
        (*acks)[(*nr_acks)++].notifier_id = 99;
    return 0;
}

void rados_free_notify_response(struct notify_ack_t *acks, size_t nr_acks,
                                struct notify_timeout_t *timeouts)
{
    fake.owed--;
    free(acks);
}
