/* SPDX-License-Identifier: BSD-3-Clause */
/* Large folios of the page cache, split before small writes. */
#ifndef AIODISK_FOLIO_H
#define AIODISK_FOLIO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct image;

struct folio_state {
    /* Set once by folio_init. */
    bool splits; /* this image is one whose small writes large folios slow down */

    /* Small writes to each region, modulo 256; COUNTERS counters (folio.c).  NULL until the first
     * small write, which allocates them; freed by folio_destroy.  Any thread, relaxed.
     */
    _Atomic(_Atomic uint8_t *) writes;
};

/* Called by image_open. */
void folio_init(struct image *image);
void folio_destroy(struct folio_state *state);

/* Called before each write through the page cache.  Splits the folio at `offset` if the write is
 * small and the folio was not looked at lately.  Changes no byte of the image; a failure has no
 * effect but a slow write.  The thread of a request; blocks.
 */
void folio_before_write(struct image *image, uint64_t length, uint64_t offset);

#endif
