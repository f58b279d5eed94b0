/* SPDX-License-Identifier: BSD-3-Clause */
/* Bounce buffers: one image stays within half of the shared memory, an image whose buffers never
 * come back leaves memory for others, a large request is not starved by smaller ones, and every
 * request gets a buffer in the end.
 */
#include "tests/lib/pool-test.h"

#include "plugin/disk/bounce.h"

/* What one image may hold when no other image holds anything. */
#define ALONE (BOUNCE_SHARED_MAX / 2)

/* --- One image --- */

#define THREADS 96u
#define EACH ROUNDS(400)

static struct bounce_share only;
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
        /* At first all are the largest: more than the image may hold. */
        size_t bytes = round < EACH / 2 ? BOUNCE_MAX : bytes_for(seed + round * 7);
        struct bounce bounce;

        CHECK(bounce_get(&only, &bounce, bytes) == 0);
        CHECK((uintptr_t)bounce.memory % 4096 == 0);
        size_t now = atomic_fetch_add(&in_use, bytes) + bytes;
        for (size_t seen = atomic_load(&most);
             now > seen && !atomic_compare_exchange_weak(&most, &seen, now);)
            ;
        /* Every buffer that the image may have is in use at once. */
        if (round == 0)
            WAIT_UNTIL(atomic_load(&most) >= ALONE);
        /* No other thread has this buffer. */
        memset(bounce.memory, (int)seed, 512);
        sleep_us(50);
        for (unsigned i = 0; i < 512; i++)
            CHECK(bounce.memory[i] == (char)seed);
        atomic_fetch_sub(&in_use, bytes);
        bounce_put(&bounce);
    }
    return NULL;
}

static void one_image_holds_half_at_most(void **state)
{
    pthread_t threads[THREADS];

    bounce_share_init(&only, NULL);
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, get_and_put, (void *)(uintptr_t)i) == 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(most == ALONE);
    CHECK(bounce_allocated() <= BOUNCE_SHARED_MAX);
    bounce_free_all();
    CHECK(bounce_allocated() == 0);
}

/* --- A large request among smaller ones (it waited for ever) --- */

#define MIDDLE_THREADS 300u
#define MIDDLE_BYTES ((size_t)256 << 10)

static atomic_bool large_served;
static _Atomic unsigned middle_served;

static void *keep_taking(void *opaque)
{
    (void)opaque;
    while (!atomic_load(&large_served)) {
        struct bounce bounce;

        CHECK(bounce_get(&only, &bounce, MIDDLE_BYTES) == 0);
        atomic_fetch_add(&middle_served, 1);
        sleep_us(500);
        bounce_put(&bounce);
    }
    return NULL;
}

static void a_large_request_is_served_among_smaller_ones(void **state)
{
    pthread_t threads[MIDDLE_THREADS];
    struct bounce bounce;

    bounce_share_init(&only, NULL);
    atomic_store(&large_served, false);
    for (unsigned i = 0; i < MIDDLE_THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, keep_taking, NULL) == 0);
    /* Every buffer is in use, and requests queue. */
    WAIT_UNTIL(atomic_load(&middle_served) > 2 * ALONE / MIDDLE_BYTES);
    for (unsigned round = 0; round < ROUNDS(100); round++) {
        CHECK(bounce_get(&only, &bounce, BOUNCE_MAX) == 0);
        bounce_put(&bounce);
    }
    atomic_store(&large_served, true);
    for (unsigned i = 0; i < MIDDLE_THREADS; i++)
        pthread_join(threads[i], NULL);
    bounce_free_all();
}

/* --- Images whose buffers do not come back --- */

#define STUCK 30u
#define STUCK_THREADS 64u

struct stuck {
    struct bounce_share share;
    struct gate gate;
    pthread_t threads[STUCK_THREADS];
};

static void *get_and_keep(void *opaque)
{
    struct stuck *stuck = opaque;
    struct bounce bounce;

    CHECK(bounce_get(&stuck->share, &bounce, BOUNCE_MAX) == 0);
    gate_pass(&stuck->gate);
    bounce_put(&bounce);
    return NULL;
}

/* Each stuck image takes half of what is left, so the later ones get one buffer each. */
static void stuck_images_leave_memory_for_others(void **state)
{
    static struct stuck stuck[STUCK];
    size_t left = BOUNCE_SHARED_MAX;

    for (unsigned i = 0; i < STUCK; i++) {
        size_t takes = left / 2 / BOUNCE_MAX;
        takes = takes < STUCK_THREADS ? takes : STUCK_THREADS;
        takes = takes > 0 ? takes : 1;
        bounce_share_init(&stuck[i].share, NULL);
        gate_init(&stuck[i].gate);
        for (unsigned j = 0; j < STUCK_THREADS; j++)
            CHECK(pthread_create(&stuck[i].threads[j], NULL, get_and_keep, &stuck[i]) == 0);
        gate_wait_for(&stuck[i].gate, (unsigned)takes);
        left -= takes * BOUNCE_MAX < left ? takes * BOUNCE_MAX : left;

        /* A healthy image goes on. */
        struct bounce_share healthy;
        struct bounce bounce;
        bounce_share_init(&healthy, NULL);
        for (unsigned round = 0; round < 10; round++) {
            CHECK(bounce_get(&healthy, &bounce, BOUNCE_MAX) == 0);
            bounce_put(&bounce);
        }
    }
    CHECK(bounce_allocated() <= BOUNCE_SHARED_MAX + STUCK * BOUNCE_OWN);
    for (unsigned i = 0; i < STUCK; i++) {
        gate_open(&stuck[i].gate);
        for (unsigned j = 0; j < STUCK_THREADS; j++)
            pthread_join(stuck[i].threads[j], NULL);
        CHECK(stuck[i].share.held == 0);
        gate_destroy(&stuck[i].gate);
    }
    bounce_free_all();
}

/* Small buffers at rest make room for large ones, also where no larger buffer is at rest. */
static void small_buffers_at_rest_make_room(void **state)
{
    static struct bounce small[ALONE / (64 << 10)], large[2 * ALONE / BOUNCE_MAX];
    const unsigned smalls = sizeof small / sizeof small[0], first = ALONE / BOUNCE_MAX;
    const unsigned larges = first + first / 2; /* a second image may hold half of the rest */
    struct bounce_share shares[2];
    for (unsigned i = 0; i < 2; i++)
        bounce_share_init(&shares[i], NULL);
    for (unsigned i = 0; i < smalls; i++)
        CHECK(bounce_get(&shares[0], &small[i], 64 << 10) == 0);
    for (unsigned i = 0; i < smalls; i++)
        bounce_put(&small[i]);
    CHECK(bounce_allocated() == ALONE);
    for (unsigned i = 0; i < larges; i++) {
        CHECK(bounce_get(&shares[i >= first], &large[i], BOUNCE_MAX) == 0);
        CHECK(bounce_allocated() <= BOUNCE_SHARED_MAX);
    }
    CHECK(bounce_allocated() == BOUNCE_SHARED_MAX); /* no more was freed than necessary */
    for (unsigned i = 0; i < larges; i++)
        bounce_put(&large[i]);
    bounce_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_image_holds_half_at_most),
        cmocka_unit_test(a_large_request_is_served_among_smaller_ones),
        cmocka_unit_test(stuck_images_leave_memory_for_others),
        cmocka_unit_test(small_buffers_at_rest_make_room),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
