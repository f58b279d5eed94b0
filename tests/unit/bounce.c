/* SPDX-License-Identifier: BSD-3-Clause */
/* However many requests there are, the bounce buffers stay within their bound, and every request gets one in the end. */
#include "tests/lib/pool-test.h"

#include "plugin/disk/bounce.h"

#define THREADS 96u
#define EACH ROUNDS(400)

static _Atomic size_t in_use, most; /* bytes */

static size_t bytes_for(unsigned n)
{
    static const size_t sizes[] = {BOUNCE_MAX, 4096,       BOUNCE_MAX, 256 << 10,
                                   512,        BOUNCE_MAX, 64 << 10,   16 << 10};

    return sizes[n % (sizeof sizes / sizeof sizes[0])];
}

static void *get_and_put(void *opaque)
{
    unsigned seed = (unsigned)(uintptr_t)opaque;

    for (unsigned round = 0; round < EACH; round++) {
        /* First all of them the largest: more than there may be at once. */
        size_t bytes = round < EACH / 2 ? BOUNCE_MAX : bytes_for(seed + round * 7);
        struct bounce bounce;

        CHECK(bounce_get(&bounce, bytes) == 0);
        CHECK((uintptr_t)bounce.memory % 4096 == 0);
        size_t now = atomic_fetch_add(&in_use, bytes) + bytes;
        for (size_t seen = atomic_load(&most);
             now > seen && !atomic_compare_exchange_weak(&most, &seen, now);)
            ;
        /* All that there may be are in use at once. */
        if (round == 0)
            WAIT_UNTIL(atomic_load(&most) >= BOUNCE_TOTAL_MAX);
        /* Nobody else has it meanwhile. */
        memset(bounce.memory, (int)seed, 512);
        sleep_us(50);
        for (unsigned i = 0; i < 512; i++)
            CHECK(bounce.memory[i] == (char)seed);
        atomic_fetch_sub(&in_use, bytes);
        bounce_put(&bounce);
    }
    return NULL;
}

static void all_buffers_together_stay_within_their_bound(void **state)
{
    pthread_t threads[THREADS];

    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, get_and_put, (void *)(uintptr_t)i) == 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(most == BOUNCE_TOTAL_MAX);
    bounce_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_buffers_together_stay_within_their_bound)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
