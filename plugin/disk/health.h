/* SPDX-License-Identifier: BSD-3-Clause */
/* Whether a disk has lost a write. */
#ifndef AIODISK_HEALTH_H
#define AIODISK_HEALTH_H

struct image;

/* 0, or the -errno that the disk failed with. */
int image_health(const struct image *image);

/* Forgets every failure: only when nothing is served any more. */
void health_forget_all(void);

#endif
