/* SPDX-License-Identifier: BSD-3-Clause */
/* A backend with its loop and pool, and a file, for the tests of the backends.  Included after
 * backend-faults.h by backend.c and backend-async.c.
 */
#ifndef AIODISK_BACKEND_RIG_H
#define AIODISK_BACKEND_RIG_H

#include <fcntl.h>

#include "backends/backend.h"
#include "tests/lib/pool-test.h"
#include "tests/unit/backend-faults.h"

#define FILE_SIZE (8u << 20)

/* Set by open_backend.  Each writer owns its part of `model`. */
struct bench {
    struct loop *loop;
    struct pool *pool;
    struct backend *backend;
    int fd;
    unsigned flags;       /* of each read and write: REQUEST_PAGE_CACHE or 0 */
    unsigned char *model; /* what the file must contain */
};

static const char *name;    /* the backend under test */
static struct tally *tally; /* of the backends that are opened, or NULL */

static inline void open_backend(struct bench *b, unsigned queue_depth, bool direct)
{
    struct pool_config pool = {.max_threads = 8, .helping = true};
    char why[256];

    memset(&faults, 0, sizeof faults);
    memset(b, 0, sizeof *b);
    CHECK(loop_new(&b->loop) == 0);
    CHECK(pool_new(b->loop, &pool, &b->pool) == 0);
    struct backend_config config = {.loop = b->loop,
                                    .pool = b->pool,
                                    .queue_depth = queue_depth,
                                    .try_cached = !direct,
                                    .tally = tally};
    CHECK(backend_open(name, &config, &b->backend, why, sizeof why) == 0);
    const char *directory = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/aiodisk-test.XXXXXX", directory ? directory : "/var/tmp");
    int made = mkstemp(path);
    CHECK(made >= 0);
    CHECK(ftruncate(made, FILE_SIZE) == 0);
    b->fd = open(path, O_RDWR | O_CLOEXEC | (direct ? O_DIRECT : 0));
    CHECK(b->fd >= 0);
    close(made);
    unlink(path);
    b->flags = direct ? 0 : REQUEST_PAGE_CACHE;
    b->model = calloc(1, FILE_SIZE);
    CHECK(b->model);
}

static inline void close_backend(struct bench *b)
{
    backend_close(b->backend);
    pool_free(b->pool, POOL_DRAIN);
    loop_free(b->loop);
    close(b->fd);
    free(b->model);
}

static inline unsigned char *blocks_new(unsigned count)
{
    void *p;
    CHECK(posix_memalign(&p, BLOCK, (size_t)count * BLOCK) == 0);
    return p;
}

static inline int transfer(struct bench *b, enum request_op op, unsigned flags, void *data,
                           uint64_t length, uint64_t offset)
{
    /* Three pieces if the transfer is long enough, so that request_advance must find its place in
     * iov.
     */
    uint64_t piece = length / 3 / BLOCK * BLOCK;
    struct iovec iov[3] = {{data, piece},
                           {(char *)data + piece, piece},
                           {(char *)data + 2 * piece, length - 2 * piece}};
    struct request request = {.op = op,
                              .flags = b->flags | flags,
                              .fd = b->fd,
                              .offset = offset,
                              .length = length,
                              .iov = piece ? iov : iov + 2,
                              .iovcnt = piece ? 3 : 1};
    int r = backend_run(b->backend, &request);
    CHECK(r != 0 || request.transferred == length);
    return r;
}

static inline int simple(struct bench *b, enum request_op op, int mode, uint64_t offset,
                         uint64_t length)
{
    struct request request = {
        .op = op, .fd = b->fd, .mode = mode, .offset = offset, .length = length};
    return backend_run(b->backend, &request);
}

struct backend_case {
    const char *name;
    CMUnitTestFunction fn;
};

/* Runs `cases` over every backend; *state is the name of the backend.  Returns the failures. */
static inline int run_over_backends(const struct backend_case *cases, size_t count)
{
    int failed = 0;

    for (size_t i = 0; backend_name(i); i++) {
        struct CMUnitTest tests[16];
        CHECK(count <= 16);
        for (size_t j = 0; j < count; j++)
            tests[j] = (struct CMUnitTest){cases[j].name, cases[j].fn, NULL, NULL,
                                           (void *)backend_name(i)};
        failed += _cmocka_run_group_tests(backend_name(i), tests, count, NULL, NULL);
    }
    return failed;
}

#endif
