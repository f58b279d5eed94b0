/* SPDX-License-Identifier: BSD-3-Clause */
/* The memory of failed disks.  See health.h.
 *
 * Runs on the threads of requests, and on nbdkit's threads when an image is opened or closed.
 * Never blocks and never touches a disk.
 */
#include "plugin/disk/health.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/disk/image.h"
#include "pool/probe.h"
#include "pool/schedule-point.h"

struct health {
    /* Set once by health_get. */
    struct image_key key;

    /* Any thread.  0, or the -errno of the first failed sync.  Never becomes 0 again. */
    _Atomic int error;

    /* Under healths_lock. */
    unsigned references;
    struct health *next;
};

static pthread_mutex_t healths_lock = PTHREAD_MUTEX_INITIALIZER;
static struct health *healths; /* under healths_lock */

struct health *health_get(const struct image_key *key)
{
    struct health *health;

    pthread_mutex_lock(&healths_lock);
    for (health = healths; health && !image_key_equal(&health->key, key);)
        health = health->next;
    if (!health) {
        health = calloc(1, sizeof *health);
        if (health) {
            health->key = *key;
            health->next = healths;
            healths = health;
        }
    }
    if (health)
        health->references++;
    pthread_mutex_unlock(&healths_lock);
    return health;
}

void health_put(struct health *health)
{
    pthread_mutex_lock(&healths_lock);
    if (--health->references == 0 && atomic_load(&health->error) == 0) {
        struct health **link = &healths;
        while (*link != health)
            link = &(*link)->next;
        *link = health->next;
        free(health);
    }
    pthread_mutex_unlock(&healths_lock);
}

void health_fail(struct health *health, const char *name, int err)
{
    int expected = 0;

    SCHEDULE_POINT();
    PROBE(flush_failed, name, -err);
    if (atomic_compare_exchange_strong(&health->error, &expected, err))
        log_warning("%s: a sync failed (%s), so writes may be lost: every flush and FUA write on "
                    "it fails from now on. Check the disk below, restore or repair the image, then "
                    "restart nbdkit",
                    name, strerror(-err));
}

int health_error(const struct health *health)
{
    return atomic_load(&health->error);
}

void image_fail(struct image *image, int err)
{
    health_fail(image->flush.health, image->name, err);
}

int image_health(const struct image *image)
{
    return health_error(image->flush.health);
}

void health_forget_all(void)
{
    while (healths) {
        struct health *health = healths;
        healths = health->next;
        free(health);
    }
}
