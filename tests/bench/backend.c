/* SPDX-License-Identifier: BSD-3-Clause */
/* Measures one backend without nbdkit: random 4 KiB O_DIRECT requests.  Prints requests per second.
 * tests/bench/backend.py runs this program beside fio's own engines.
 *
 *   bench-backend BACKEND read|write DEPTH FILE MILLISECONDS
 *
 * With a ring, `done` on the loop thread submits the next request, so DEPTH requests stay in
 * flight, as in fio.  With threads, DEPTH threads call backend_run for one request at a time, as
 * nbdkit's threads do.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backends/backend.h"

#define BLOCK 4096u
#define MAX_DEPTH 1024u

static struct {
    /* Set once by main, read by any thread. */
    struct backend *backend;
    int fd;
    enum request_op op;
    uint64_t blocks; /* in the file */
    uint64_t end_ns; /* CLOCK_MONOTONIC: no request starts later */
    sem_t finished;  /* posted once, when the last request of a ring has ended */

    /* Any thread. */
    _Atomic uint64_t completed;
    _Atomic unsigned in_flight;
} bench;

/* One of the DEPTH requests.  Owned by the thread that waits for it, or with a ring by the loop
 * thread.
 */
struct slot {
    struct request request;
    struct iovec iov;
    void *data;       /* BLOCK bytes */
    uint64_t random;  /* state of the generator of offsets */
    pthread_t thread; /* with threads only */
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void die(const char *what, int error)
{
    fprintf(stderr, "bench-backend: %s: %s\n", what, strerror(error));
    exit(1);
}

static void done(struct request *request);

static void prepare(struct slot *slot)
{
    slot->random = slot->random * 6364136223846793005u + 1442695040888963407u;
    slot->iov = (struct iovec){slot->data, BLOCK};
    slot->request = (struct request){.op = bench.op,
                                     .fd = bench.fd,
                                     .length = BLOCK,
                                     .iov = &slot->iov,
                                     .iovcnt = 1,
                                     .offset = (slot->random >> 20) % bench.blocks * BLOCK,
                                     .done = done};
}

static void submit(struct slot *slot)
{
    prepare(slot);
    int r = backend_submit(bench.backend, &slot->request);
    if (r < 0)
        die("submission", -r);
}

/* Loop thread. */
static void done(struct request *request)
{
    if (request->result < 0)
        die("a request", -request->result);
    atomic_fetch_add(&bench.completed, 1);
    if (now_ns() < bench.end_ns)
        submit(container_of(request, struct slot, request));
    else if (atomic_fetch_sub(&bench.in_flight, 1) == 1)
        sem_post(&bench.finished);
}

static void *call_and_wait(void *opaque)
{
    struct slot *slot = opaque;
    while (now_ns() < bench.end_ns) {
        prepare(slot);
        int r = backend_run(bench.backend, &slot->request);
        if (r < 0)
            die("a request", -r);
        atomic_fetch_add(&bench.completed, 1);
    }
    return NULL;
}

static void run(struct slot *slots, unsigned depth, bool callers)
{
    bench.in_flight = depth;
    for (unsigned i = 0; i < depth; i++) {
        if (!callers)
            submit(&slots[i]);
        else if (pthread_create(&slots[i].thread, NULL, call_and_wait, &slots[i]) != 0)
            die("pthread_create", EAGAIN);
    }
    for (unsigned i = 0; i < depth && callers; i++)
        pthread_join(slots[i].thread, NULL);
    while (!callers && sem_wait(&bench.finished) < 0)
        ;
}

int main(int argc, char **argv)
{
    struct loop *loop;
    struct pool *pool;
    struct stat st;
    char why[256];

    if (argc != 6)
        die("usage: BACKEND read|write DEPTH FILE MILLISECONDS", EINVAL);
    unsigned depth = (unsigned)atoi(argv[3]);
    uint64_t runtime_ns = (uint64_t)atoi(argv[5]) * 1000000u;
    if (depth < 1 || depth > MAX_DEPTH || runtime_ns < 1)
        die("depth or milliseconds", EINVAL);
    bench.op = strcmp(argv[2], "write") == 0 ? REQUEST_WRITE : REQUEST_READ;
    bench.fd = open(argv[4], O_RDWR | O_DIRECT | O_CLOEXEC);
    if (bench.fd < 0 || fstat(bench.fd, &st) < 0)
        die(argv[4], errno);
    bench.blocks = (uint64_t)st.st_size / BLOCK;
    if (bench.blocks < 1)
        die(argv[4], EINVAL);
    sem_init(&bench.finished, 0, 0);

    struct pool_config pool_config = {.max_threads = 64, .helping = true};
    int r = loop_new(&loop);
    if (r == 0)
        r = pool_new(loop, &pool_config, &pool);
    if (r < 0)
        die("loop and pool", -r);
    struct backend_config config = {.loop = loop, .pool = pool, .queue_depth = 128};
    r = backend_open(argv[1], &config, &bench.backend, why, sizeof why);
    if (r < 0)
        die(why, -r);
    struct slot *slots = calloc(depth, sizeof *slots);
    if (!slots)
        die("memory", ENOMEM);
    for (unsigned i = 0; i < depth; i++) {
        slots[i].random = i * 7919 + 1;
        if (posix_memalign(&slots[i].data, BLOCK, BLOCK) != 0)
            die("memory", ENOMEM);
        memset(slots[i].data, (int)i, BLOCK);
    }
    uint64_t start_ns = now_ns();
    bench.end_ns = start_ns + runtime_ns;
    run(slots, depth, strcmp(argv[1], "threads") == 0);
    printf("%.0f\n", (double)bench.completed * 1e9 / (double)(now_ns() - start_ns));
    backend_close(bench.backend);
    pool_free(pool, POOL_DRAIN);
    loop_free(loop);
    for (unsigned i = 0; i < depth; i++)
        free(slots[i].data);
    free(slots);
    return 0;
}
