/* SPDX-License-Identifier: BSD-3-Clause */
/* What SCHEDULE_POINT() does in the build that tries schedules: nothing, yield, or sleep.
 *
 * Every run has a seed: AIODISK_SCHEDULE_SEED, or a random one; it is printed on stderr.  The seed
 * decides which places of the source are slow in this run, and what each thread does at its n-th
 * point.  The kernel decides the rest, so a seed makes a failure likely to come back, not certain.
 *
 * Few places are slow in a run, and these sleep long and often: a race needs one thread that stands
 * still in one place while the others go on.  All other places mostly let the thread pass.
 *
 * Any thread.  Blocks for 2 ms at most, also under a lock of the caller.  Preserves errno.
 */
#include "pool/schedule-point.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <time.h>

#define SLOW_PLACES 16u     /* one place of so many is slow */
#define SLOW_MAX_US 2000u   /* the longest sleep there */
#define PASSING_MAX_US 100u /* and elsewhere */
#define SLOW_SLEEPS 6u      /* one pass of so many sleeps in a slow place */
#define PASSING_SLEEPS 64u  /* and elsewhere */
#define YIELDS 8u           /* one pass of so many yields */

static uint64_t seed;            /* set once, before main */
static _Atomic unsigned threads; /* any thread: numbers the threads */

struct dice {
    uint64_t state; /* 0: the thread has passed no point yet */
};

static _Thread_local struct dice dice;

/* The finalizer of splitmix64: a well mixed number from a counter. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

__attribute__((constructor)) static void choose_seed(void)
{
    const char *given = getenv("AIODISK_SCHEDULE_SEED");
    uint32_t random = 0;

    if (given)
        seed = strtoull(given, NULL, 10);
    else if (getrandom(&random, sizeof random, 0) == sizeof random)
        seed = random;
    fprintf(stderr, "AIODISK_SCHEDULE_SEED=%llu\n", (unsigned long long)seed);
}

static unsigned roll(unsigned sides)
{
    dice.state += 0x9e3779b97f4a7c15u;
    return (unsigned)(mix(dice.state) % sides);
}

static uint64_t hash_of_place(const char *file, unsigned line)
{
    uint64_t hash = seed * 31 + line;

    for (; *file; file++)
        hash = hash * 31 + (unsigned char)*file;
    return mix(hash);
}

static void sleep_us(unsigned us)
{
    const struct timespec ts = {.tv_nsec = us * 1000L};

    nanosleep(&ts, NULL);
}

void schedule_point(const char *file, unsigned line)
{
    int saved = errno;

    if (dice.state == 0) {
        dice.state = mix(seed + atomic_fetch_add(&threads, 1)) | 1;
        prctl(PR_SET_TIMERSLACK, 1000ul); /* ns: else each sleep takes 50 us more */
    }
    if (hash_of_place(file, line) % SLOW_PLACES == 0) {
        if (roll(SLOW_SLEEPS) == 0)
            sleep_us(1 + roll(SLOW_MAX_US));
    } else if (roll(PASSING_SLEEPS) == 0) {
        sleep_us(1 + roll(PASSING_MAX_US));
    }
    if (roll(YIELDS) == 0)
        sched_yield();
    errno = saved;
}
