/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading into the page cache before a client asks for the data. */
#ifndef AIODISK_PREFETCH_H
#define AIODISK_PREFETCH_H

#include <stdint.h>

struct image;

/* Starts reading the range into the page cache, and does not wait.  Best effort.  Nbdkit's threads. */
void image_prefetch(struct image *image, uint64_t length, uint64_t offset);

#endif
