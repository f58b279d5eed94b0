/* SPDX-License-Identifier: BSD-3-Clause */
/* Making, reading and freeing a tally.  See tally.h, where the functions of the busy threads are.
 *
 * Runs on the thread that makes or reads a tally.  Never takes a lock.
 */
#include "pool/tally.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_SHARDS 16u
#define COUNTERS_PER_LINE (64u / sizeof(uint64_t)) /* a cache line has 64 bytes */

static unsigned shards_wanted(void)
{
    long processors = sysconf(_SC_NPROCESSORS_CONF);
    unsigned shards = 1;

    while ((long)shards < processors && shards < MAX_SHARDS)
        shards *= 2;
    return shards;
}

struct tally *tally_new(unsigned count)
{
    struct tally *tally = malloc(sizeof *tally);
    unsigned shards = shards_wanted();

    if (!tally)
        return NULL;
    tally->shard_mask = shards - 1;
    tally->stride = (count + COUNTERS_PER_LINE - 1) / COUNTERS_PER_LINE * COUNTERS_PER_LINE;
    size_t bytes = (size_t)shards * tally->stride * sizeof *tally->counters;
    tally->counters = aligned_alloc(COUNTERS_PER_LINE * sizeof *tally->counters, bytes);
    if (!tally->counters) {
        free(tally);
        return NULL;
    }
    memset(tally->counters, 0, bytes);
    return tally;
}

void tally_free(struct tally *tally)
{
    if (!tally)
        return;
    free(tally->counters);
    free(tally);
}

uint64_t tally_read(const struct tally *tally, unsigned counter)
{
    uint64_t sum = 0;

    for (unsigned shard = 0; shard <= tally->shard_mask; shard++)
        sum += atomic_load_explicit(&tally->counters[shard * tally->stride + counter],
                                    memory_order_relaxed);
    return sum;
}
