/* SPDX-License-Identifier: BSD-3-Clause */
/* Whether a disk has lost a write.
 *
 * The kernel reports a lost write once and then forgets it (fsync(2), errseq_t).  This plugin does
 * not forget: after a failed sync the disk is failed until the process ends, also when the image is
 * closed and opened again.  The memory belongs to the disk (struct image_key), not to the image.
 */
#ifndef AIODISK_HEALTH_H
#define AIODISK_HEALTH_H

struct health;
struct image;
struct image_key;

/* Returns the health of the disk with this key, and a reference; NULL when there is no memory.  Any
 * thread; does not block.
 */
struct health *health_get(const struct image_key *key);

/* Gives the reference back.  The health of a failed disk is kept.  Any thread; does not block. */
void health_put(struct health *health);

/* Records that a sync failed with `err` (-errno), and warns, unless the disk has failed before.
 * name: of the disk, for the warning.  nbdkit's threads; does not block.
 */
void health_fail(struct health *health, const char *name, int err);

/* Returns 0, or the -errno that the disk failed with.  Any thread; does not block. */
int health_error(const struct health *health);

/* The same two for an image. */
void image_fail(struct image *image, int err);
int image_health(const struct image *image);

/* Forgets every failure.  Nothing is served any more.  Main thread. */
void health_forget_all(void);

#endif
