/* SPDX-License-Identifier: BSD-3-Clause */
/* What tests of the disk layer share that play a part of the kernel: a file of the test's own, and
 * how its image is opened.
 *
 * The test's thread.  A broken promise is found by CHECK.
 */
#ifndef AIODISK_DISK_TEST_H
#define AIODISK_DISK_TEST_H

#include "tests/lib/pool-test.h"

#include <errno.h>
#include <fcntl.h>

#include "plugin/disk/image-table.h"
#include "plugin/disk/image.h"

#define KiB 1024u
#define MiB (1024u * KiB)

static char path[256]; /* of the file */

/* Makes an empty file, or one that is a hole. */
static inline void make_file(const char *test, uint64_t size)
{
    const char *directory = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/aiodisk-%s-%d", directory ? directory : "/var/tmp", test,
             (int)getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    close(fd);
}

/* Opens the file, with the backend "threads" and 16 slots unless options.room says otherwise.
 * Returns 0 or the -errno of image_get.
 */
static inline int try_open_with(struct image **image, struct image_options options)
{
    const struct room_config room = {
        .backend = "threads", .max_threads = 16, .queue_depth = 16, .helping = true};
    char why[LOG_LINE_SIZE] = "";
    int fd = open(path, options.inherited ? O_RDWR | O_CLOEXEC : O_PATH | O_CLOEXEC);
    CHECK(fd >= 0);
    options.room = options.room ? options.room : &room;
    int r = image_get(fd, path, &options, image, why);
    close(fd);
    CHECK(r == 0 || strstr(why, path));
    return r;
}

static inline struct image *open_image(bool direct)
{
    struct image *image;
    CHECK(try_open_with(&image, (struct image_options){.direct = direct, .locking = LOCKING_OFF}) ==
          0);
    return image;
}

/* What a wrapped call returns for 0 or an errno. */
static inline int answer(int err)
{
    errno = err;
    return err ? -1 : 0;
}

/* --- The calls that a test counts --- */

enum call {
    FALLOCATE,
    SYNC,
    ADVISE,
    WRITE,
    SEEK,
    MAP,
    COLD,
    JOIN,
    DISCARD,
    ZEROOUT,
    WARNING,
    CALLS
};
#define RANGES 64u

static _Atomic unsigned made[CALLS];    /* how often each was called */
static struct gate *_Atomic gate;       /* or NULL */
static _Atomic enum call waits_at_gate; /* which call passes the gate */
static uint64_t ranges[RANGES][2];      /* offset and length of calls on ranges */

/* Returns the number of the call. */
static inline unsigned count(enum call call)
{
    unsigned number = atomic_fetch_add(&made[call], 1);
    struct gate *g = atomic_load(&gate);
    if (g && atomic_load(&waits_at_gate) == call)
        gate_pass(g);
    return number;
}

static inline void count_range(enum call call, uint64_t offset, uint64_t length)
{
    unsigned number = count(call);
    if (number < RANGES) {
        ranges[number][0] = offset;
        ranges[number][1] = length;
    }
}

static inline void forget_calls(void)
{
    for (unsigned i = 0; i < CALLS; i++)
        atomic_store(&made[i], 0);
}

/* --- Requests of several threads --- */

enum op { OP_WRITE, OP_ZERO, OP_FLUSH, OP_CLOSE };

struct client {
    struct image *image;
    enum op op;
    unsigned number;
    pthread_t thread;
};

static inline void *run_client(void *opaque)
{
    const struct client *c = opaque;
    char data[512] = {0};
    if (c->op == OP_WRITE)
        CHECK(image_write(c->image, data, sizeof data, c->number * 4096, false) == 0);
    else if (c->op == OP_ZERO)
        CHECK(image_zero(c->image, 4096, c->number * 4096, ZERO_MAY_TRIM) == 0);
    else if (c->op == OP_FLUSH)
        CHECK(image_flush(c->image) == 0);
    else
        image_put(c->image);
    return NULL;
}

static inline void start_clients(struct client *clients, unsigned n, struct image *image,
                                 enum op op)
{
    for (unsigned i = 0; i < n; i++) {
        clients[i] = (struct client){.image = image, .op = op, .number = i};
        CHECK(pthread_create(&clients[i].thread, NULL, run_client, &clients[i]) == 0);
    }
}

static inline void join_clients(struct client *clients, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        pthread_join(clients[i].thread, NULL);
}

static inline void close_gate(struct gate *g, enum call call)
{
    gate_init(g);
    atomic_store(&waits_at_gate, call);
    atomic_store(&gate, g);
}

static inline void end_gate(struct gate *g)
{
    atomic_store(&gate, NULL);
    gate_destroy(g);
}

static inline unsigned arrived(struct gate *g)
{
    pthread_mutex_lock(&g->lock);
    unsigned n = g->arrived;
    pthread_mutex_unlock(&g->lock);
    return n;
}

#endif
