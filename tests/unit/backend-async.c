/* SPDX-License-Identifier: BSD-3-Clause */
/* The asynchronous way in and the end of a backend, over every backend: what backend_close waits
 * for, a `done` that polls the loop, and the end of rooms.
 *
 * `done` runs on the loop thread; everything else on the test's threads.
 */
#include "backends/room.h"
#include "tests/unit/backend-rig.h"

struct async {
    struct request request;
    struct iovec iov;
    _Atomic unsigned done; /* calls of `done` */
    struct bench *b;
    struct async *next; /* submitted from inside `done`, or NULL */
};

static void count_done(struct request *request)
{
    struct async *a = container_of(request, struct async, request);
    if (a->next)
        CHECK(backend_submit(a->b->backend, &a->next->request) == 0);
    atomic_fetch_add(&a->done, 1);
}

static void async_init(struct async *a, struct bench *b, enum request_op op, void *data,
                       uint64_t offset)
{
    memset(a, 0, sizeof *a);
    a->b = b;
    a->iov = (struct iovec){data, BLOCK};
    a->request = (struct request){.op = op,
                                  .flags = b->flags,
                                  .fd = b->fd,
                                  .offset = offset,
                                  .length = BLOCK,
                                  .iov = &a->iov,
                                  .iovcnt = 1,
                                  .done = count_done};
}

/* backend_close runs while requests are in flight, some of them submitted from inside a `done`.
 * Each `done` is called exactly once and before backend_close returns.  Nothing touches a request
 * afterwards: the test frees the memory at once.
 */
static void close_waits_for_what_is_in_flight(void **state)
{
    name = *state;
    for (int round = 0; round < ROUNDS(100); round++) {
        struct bench b;
        struct async *all = calloc(64, sizeof *all);
        unsigned char *data = blocks_new(64);
        open_backend(&b, 16, round % 4 < 2);
        for (unsigned i = 0; i < 64; i++) {
            async_init(&all[i], &b, round % 2 ? REQUEST_READ : REQUEST_WRITE, data + i * BLOCK,
                       i * BLOCK);
            if (i >= 32)
                all[i - 32].next = &all[i];
        }
        for (unsigned i = 0; i < 32; i++)
            CHECK(backend_submit(b.backend, &all[i].request) == 0);
        close_backend(&b);
        for (unsigned i = 0; i < 64; i++)
            CHECK(atomic_load(&all[i].done) == 1 && all[i].request.result == 0);
        free(data);
        free(all);
    }
}

static void *close_and_say_so(void *opaque)
{
    struct bench *b = opaque;
    backend_close(b->backend);
    atomic_store(&faults.closed, true);
    return NULL;
}

static void *run_one_read(void *opaque)
{
    struct async *a = opaque;
    CHECK(backend_run(a->b->backend, &a->request) == 0);
    return NULL;
}

/* A ring gives a read back to its caller, who is in the pool's call when backend_close begins.
 * backend_close returns after that call only.
 */
static void close_waits_for_a_caller_in_the_pool(void **state)
{
    struct bench b;
    struct async a;
    pthread_t caller, closer;
    unsigned char *data = blocks_new(1);
    name = *state;
    open_backend(&b, 16, true);
    async_init(&a, &b, REQUEST_READ, data, 0);
    atomic_store(&faults.result_error, -EAGAIN);
    atomic_store(&faults.result_every, 1);
    atomic_store(&faults.hold_reads, true);
    CHECK(pthread_create(&caller, NULL, run_one_read, &a) == 0);
    WAIT_UNTIL(atomic_load(&faults.held_reads) == 1);
    CHECK(pthread_create(&closer, NULL, close_and_say_so, &b) == 0);
    usleep(50 * 1000); /* a backend_close that does not wait would return meanwhile */
    CHECK(!atomic_load(&faults.closed));
    atomic_store(&faults.hold_reads, false);
    pthread_join(caller, NULL);
    pthread_join(closer, NULL);
    pool_free(b.pool, POOL_DRAIN);
    loop_free(b.loop);
    close(b.fd);
    free(b.model);
    free(data);
}

/* --- Polling the loop from inside `done` --- */

#define POLLED 4u

/* `first` submits the others and comes back when all of them have ended. */
struct polling {
    struct async first, others[POLLED];
    bool one_batch; /* let the others leave the ring in one batch, and poll from the first of it */
};

static void poll_for_others(struct polling *p)
{
    for (unsigned i = 0; i < POLLED; i++)
        while (!atomic_load(&p->others[i].done))
            loop_poll(p->first.b->loop, true);
}

static void first_of_batch_polls(struct request *request)
{
    struct polling *p = request->opaque;
    atomic_fetch_add(&container_of(request, struct async, request)->done, 1);
    poll_for_others(p);
}

static void submit_and_poll(struct request *request)
{
    struct polling *p = request->opaque;
    for (unsigned i = 0; i < POLLED; i++)
        CHECK(backend_submit(p->first.b->backend, &p->others[i].request) == 0);
    if (p->one_batch) {
        loop_poll(p->first.b->loop, false); /* the kernel has them now */
        usleep(20 * 1000);                  /* and has carried them out, so they leave together */
    } else {
        poll_for_others(p);
    }
    atomic_fetch_add(&p->first.done, 1);
}

/* `done` polls the loop for requests that it submitted, or for those that left the ring with its
 * own, also when transfers are short, given back to the pool or refused.
 */
static void done_may_poll(void **state)
{
    static const struct {
        int result_error; /* with result_every 1 or 2 */
        unsigned result_every, submit_every;
    } disturbances[] = {{0, 0, 0}, {0, 2, 0}, {-EAGAIN, 2, 0}, {-EINTR, 3, 0}, {0, 0, 2}};
    name = *state;
    for (unsigned round = 0; round < 2 * sizeof disturbances / sizeof disturbances[0]; round++) {
        struct bench b;
        struct polling p = {.one_batch = round % 2};
        unsigned char *data = blocks_new(POLLED + 1);
        open_backend(&b, 16, true);
        atomic_store(&faults.result_error, disturbances[round / 2].result_error);
        atomic_store(&faults.result_every, disturbances[round / 2].result_every);
        atomic_store(&faults.submit_error, -EINVAL);
        atomic_store(&faults.submit_every, disturbances[round / 2].submit_every);
        async_init(&p.first, &b, REQUEST_READ, data, 0);
        p.first.request.done = submit_and_poll;
        p.first.request.opaque = &p;
        for (unsigned i = 0; i < POLLED; i++) {
            async_init(&p.others[i], &b, REQUEST_READ, data + (i + 1) * BLOCK, i * BLOCK);
            p.others[i].request.opaque = &p;
            if (p.one_batch && i == 0)
                p.others[i].request.done = first_of_batch_polls;
        }
        CHECK(backend_submit(b.backend, &p.first.request) == 0);
        close_backend(&b);
        CHECK(atomic_load(&p.first.done) == 1);
        for (unsigned i = 0; i < POLLED; i++)
            CHECK(atomic_load(&p.others[i].done) == 1 && p.others[i].request.result == 0);
        free(data);
    }
}

/* --- Who carries a request --- */

/* A ring carries transfers and flushes itself; the pool would be slower. */
static void the_pool_carries_only_what_a_ring_cannot(void **state)
{
    struct bench b;
    unsigned char *data = blocks_new(1);
    name = *state;
    open_backend(&b, 16, true);
    uint64_t expected = strcmp(name, "threads") == 0 ? 3 : 0;
    uint64_t before = counters_of(b.pool).submitted;
    CHECK(transfer(&b, REQUEST_WRITE, 0, data, BLOCK, 0) == 0);
    CHECK(transfer(&b, REQUEST_READ, 0, data, BLOCK, 0) == 0);
    CHECK(simple(&b, REQUEST_FDATASYNC, 0, 0, 0) == 0);
    CHECK(counters_of(b.pool).submitted - before == expected);
    close_backend(&b);
    free(data);
}

/* A ring gives a request back, and the pool cannot carry it: its submitter learns the error. */
static void given_back_without_threads(void **state)
{
    struct bench b;
    struct async a;
    name = *state;
    if (strcmp(name, "threads") == 0)
        return; /* makes no ring */
    unsigned char *data = blocks_new(1);
    open_backend(&b, 16, true);
    atomic_store(&faults.result_error, -EAGAIN);
    atomic_store(&faults.result_every, 1);
    atomic_store(&faults.no_threads, true);
    async_init(&a, &b, REQUEST_READ, data, 0);
    CHECK(backend_submit(b.backend, &a.request) == 0);
    WAIT_UNTIL(atomic_load(&a.done) == 1);
    CHECK(a.request.result == -EAGAIN);
    close_backend(&b);
    free(data);
}

/* The time of a request that the kernel carries in pieces is that of all pieces. */
static void pieces_are_timed_together(void **state)
{
    const unsigned result_us = 5000;
    struct progress progress = {.op = CLIENT_READ}; /* only a client's request is timed */
    struct bench b;
    struct async a;
    name = *state;
    if (strcmp(name, "threads") == 0)
        return; /* makes no ring */
    unsigned char *data = blocks_new(4);
    tally = tally_new(BACKEND_TALLY_END);
    open_backend(&b, 16, true);
    atomic_store(&faults.result_every, 2); /* the second is not shortened again */
    atomic_store(&faults.results, 1);
    atomic_store(&faults.result_us, result_us);
    async_init(&a, &b, REQUEST_READ, data, 0);
    a.iov.iov_len = a.request.length = 4 * BLOCK;
    progress_here = &progress;
    uint64_t begin = tally_now();
    CHECK(backend_submit(b.backend, &a.request) == 0);
    progress_here = NULL;
    WAIT_UNTIL(atomic_load(&a.done) == 1);
    uint64_t time =
        tally_read(tally, BACKEND_TALLY_TIME + CLIENT_READ * TALLY_HISTOGRAM + TALLY_BUCKETS);
    CHECK(a.request.result == 0 && atomic_load(&faults.results) == 3);
    CHECK(time >= 2 * result_us * UINT64_C(1000) && time <= tally_now() - begin);
    close_backend(&b);
    tally_free(tally);
    tally = NULL;
    free(data);
}

/* --- Rooms --- */

#define ROOM_USERS 4u
#define ROOM_ROUNDS 5

static int do_nothing(struct task *task)
{
    return 0;
}

static void *use_rooms(void *opaque)
{
    const struct room_config config = {
        .backend = name, .max_threads = 1, .queue_depth = 4, .helping = true};
    struct pool_counters sum;
    char why[ROOM_WHY_SIZE];

    for (int round = 0; round < ROOM_ROUNDS; round++) {
        struct task task = {.run = do_nothing};
        struct room room;
        CHECK(room_open(&room, &config, true, NULL, why) == 0);
        CHECK(pool_run(room.pool, &task) == 0);
        pthread_barrier_wait(opaque);
        room_close(&room);
        room_read_totals(&sum);
    }
    return NULL;
}

/* Rooms that are closed at the same time are all counted.  Under TSan: without a data race. */
static void rooms_that_close_at_once_are_counted(void **state)
{
    struct pool_counters before, after;
    pthread_t users[ROOM_USERS];
    pthread_barrier_t barrier;

    name = *state;
    memset(&faults, 0, sizeof faults);
    pthread_barrier_init(&barrier, NULL, ROOM_USERS);
    room_read_totals(&before);
    for (unsigned i = 0; i < ROOM_USERS; i++)
        CHECK(pthread_create(&users[i], NULL, use_rooms, &barrier) == 0);
    for (unsigned i = 0; i < ROOM_USERS; i++)
        pthread_join(users[i], NULL);
    room_read_totals(&after);
    CHECK(after.submitted - before.submitted == ROOM_USERS * ROOM_ROUNDS);
    CHECK(after.helped - before.helped == ROOM_USERS * ROOM_ROUNDS);
    pthread_barrier_destroy(&barrier);
}

int main(void)
{
    static const struct backend_case cases[] = {
        {"close waits for what is in flight", close_waits_for_what_is_in_flight},
        {"close waits for a caller in the pool", close_waits_for_a_caller_in_the_pool},
        {"done may poll", done_may_poll},
        {"the pool carries only what a ring cannot", the_pool_carries_only_what_a_ring_cannot},
        {"given back without threads", given_back_without_threads},
        {"pieces are timed together", pieces_are_timed_together},
        {"rooms that close at once are counted", rooms_that_close_at_once_are_counted},
    };

    return run_over_backends(cases, sizeof cases / sizeof cases[0]);
}
