/* SPDX-License-Identifier: BSD-3-Clause */
/* Does a server's disk behave as NBD and the manual say?  The same questions for every combination of backend, cache,
 * dispatch and target; conformance.sh sets those up.
 *
 *   conformance URI SECONDS SEED [--sparse|--random]
 *
 * First a table of fixed cases, then random operations, 16 in flight on each of 4 connections, against a model of
 * the disk in memory: byte by byte, and never two at once on one byte when one of them modifies, so the model is
 * exact.  But next door, in the same block, there is as much going on as can be arranged.  At the end the whole
 * disk is compared.  It has to be all zeros at the start; --sparse: and to say so.  --random: no fixed cases.
 *
 * One thread.  libnbd's callbacks must not call libnbd, so they note what came; retire() does the rest.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libnbd.h>

#define CONNECTIONS 4
#define DEPTH 16
#define OPS (CONNECTIONS * DEPTH)
#define MiB ((uint64_t)1 << 20)
#define MAX_DISK (1024 * MiB)
#define MAX_REQUEST (64 * MiB)
#define ANSWER_TIMEOUT 30000 /* ms */
#define HISTORY 16384u       /* operations */

#define FUA LIBNBD_CMD_FLAG_FUA
#define NO_HOLE LIBNBD_CMD_FLAG_NO_HOLE
#define FAST LIBNBD_CMD_FLAG_FAST_ZERO

enum kind { READ, WRITE, ZERO, TRIM, STATUS, CACHE, FLUSH };
static const char *const kind_names[] = {"read",         "write", "zero", "trim",
                                         "block status", "cache", "flush"};

struct op {
    enum kind kind;
    uint32_t flags;
    uint64_t offset, length; /* bytes; of the last one, when not busy */
    bool busy, done;
    int error;
    unsigned extents; /* how many came */
    char *buffer;
    size_t capacity;
};

static struct nbd_handle *connections[CONNECTIONS];
static struct op ops[OPS];
static struct op history[HISTORY]; /* what was asked for, number n at n % HISTORY */
static uint64_t issued, refused, counts[FLUSH + 1], seed, rng;
static unsigned in_flight;
static bool sparse;

/* The model. */
static uint64_t size;
static uint8_t *data;
static bool *
    trimmed; /* reads as zero or as what it was, until somebody has looked or it is written again */

static uint64_t rnd(uint64_t below)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (rng >> 11) % below;
}

static void print_history(uint64_t offset)
{
    uint64_t start = offset / 4096 * 4096, end = start + 4096;
    unsigned left = 16;

    fprintf(stderr, "the last operations on the 4 KiB around %" PRIu64 ", newest first:\n", offset);
    for (uint64_t n = issued; n > 0 && n + HISTORY > issued && left > 0; n--) {
        const struct op *op = &history[n % HISTORY];
        if (op->offset >= end || op->offset + op->length <= start)
            continue;
        fprintf(stderr, "  #%" PRIu64 ": %s%s%s%s [%" PRIu64 ", %" PRIu64 ")%s\n", n,
                kind_names[op->kind], op->flags & FUA ? " FUA" : "",
                op->flags & NO_HOLE ? " no-hole" : "", op->flags & FAST ? " fast" : "", op->offset,
                op->offset + op->length,
                offset >= op->offset && offset < op->offset + op->length ? "" : " (next door)");
        left--;
    }
}

__attribute__((noreturn, format(printf, 2, 3))) static void fail_at(uint64_t offset,
                                                                    const char *format, ...)
{
    va_list args;

    fprintf(stderr, "FAILED (seed %" PRIu64 "): ", seed);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    print_history(offset);
    exit(1);
}

/* --- One operation --- */

static bool modifies(enum kind kind)
{
    return kind == WRITE || kind == ZERO || kind == TRIM;
}

static int completed(void *opaque, int *error)
{
    struct op *op = opaque;

    op->error = *error;
    op->done = true;
    return 1;
}

/* A range that reads as zeros, says the server. */
static void check_zeros(uint64_t start, uint64_t end)
{
    for (uint64_t at = start; at < end; at++) {
        if (data[at] == 0)
            continue;
        if (!trimmed[at])
            fail_at(at,
                    "block status says that [%" PRIu64 ", %" PRIu64
                    ") reads as zeros, but byte %" PRIu64 " is 0x%02x",
                    start, end, at, data[at]);
        data[at] = 0;
    }
}

/* Nobody modifies the range while the request is in flight, so the model is up to date there. */
static int got_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
                       size_t n, int *error)
{
    struct op *op = opaque;
    uint64_t at = op->offset, end = op->offset + op->length;

    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
        return 0;
    if (offset != at || n < 2 || *error)
        fail_at(at, "block status at %" PRIu64 " answered with %zu entries at %" PRIu64, at, n / 2,
                offset);
    for (size_t i = 0; i + 1 < n && at < end; i += 2) {
        uint64_t next = at + entries[i] < end ? at + entries[i] : end;
        if (entries[i] == 0)
            fail_at(at, "an extent of 0 bytes at %" PRIu64, at);
        if (entries[i + 1] & (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO))
            check_zeros(at, next);
        else if (sparse && issued == 1)
            fail_at(at, "nothing was written yet, and block status says there is data at %" PRIu64,
                    at);
        at = next;
    }
    op->extents += n / 2;
    return 0;
}

static void prepare_buffer(struct op *op)
{
    if (op->capacity < op->length + 8) {
        op->capacity = op->length + 65536;
        op->buffer = realloc(op->buffer, op->capacity);
        if (!op->buffer)
            fail_at(0, "out of memory");
    }
    if (op->kind != WRITE)
        return;
    /* No byte is zero, so that zeros where data should be are always seen. */
    for (uint64_t i = 0; i < op->length; i += 8) {
        rnd(1);
        memcpy(op->buffer + i, &(uint64_t){rng | 0x0101010101010101}, 8);
    }
}

static int64_t submit(struct nbd_handle *h, struct op *op)
{
    nbd_completion_callback done = {.callback = completed, .user_data = op};
    nbd_extent_callback extents = {.callback = got_extents, .user_data = op};

    switch (op->kind) {
    case READ:
        return nbd_aio_pread(h, op->buffer, op->length, op->offset, done, op->flags);
    case WRITE:
        return nbd_aio_pwrite(h, op->buffer, op->length, op->offset, done, op->flags);
    case ZERO:
        return nbd_aio_zero(h, op->length, op->offset, done, op->flags);
    case TRIM:
        return nbd_aio_trim(h, op->length, op->offset, done, op->flags);
    case STATUS:
        return nbd_aio_block_status(h, op->length, op->offset, extents, done, op->flags);
    case CACHE:
        return nbd_aio_cache(h, op->length, op->offset, done, op->flags);
    default:
        return nbd_aio_flush(h, done, 0);
    }
}

static void issue(struct op *op)
{
    issued++;
    counts[op->kind]++;
    history[issued % HISTORY] = *op;
    in_flight++;
    op->busy = true;
    op->done = false;
    op->extents = 0;
    if (op->kind == READ || op->kind == WRITE)
        prepare_buffer(op);
    if (submit(connections[(op - ops) / DEPTH], op) < 0)
        fail_at(op->offset, "%s: %s", kind_names[op->kind], nbd_get_error());
}

static void check_read(const struct op *op)
{
    const uint8_t *got = (const uint8_t *)op->buffer;

    if (memcmp(got, data + op->offset, op->length) != 0) {
        for (uint64_t i = 0; i < op->length; i++) {
            uint64_t at = op->offset + i;
            if (got[i] != data[at] && !(trimmed[at] && got[i] == 0))
                fail_at(at,
                        "read of %" PRIu64 " at %" PRIu64 ": byte %" PRIu64
                        " is 0x%02x, expected 0x%02x%s",
                        op->length, op->offset, at, got[i], data[at], trimmed[at] ? " or 0" : "");
            data[at] = got[i];
        }
    }
    /* Once seen, it stays. */
    memset(trimmed + op->offset, false, op->length);
}

/* What the operation means for the model. */
static void retire(struct op *op)
{
    bool outside = op->offset > size || op->length > size - op->offset;
    bool may_fail = outside || op->length == 0 ? op->error == EINVAL || op->error == ENOSPC
                                               : op->error == EOPNOTSUPP && op->flags & FAST;

    op->busy = false;
    in_flight--;
    if (op->error ? !may_fail : outside)
        fail_at(op->offset, "%s of %" PRIu64 " at %" PRIu64 ": %s", kind_names[op->kind],
                op->length, op->offset, op->error ? strerror(op->error) : "done, outside the disk");
    refused += op->error != 0;
    if (op->error)
        return;
    if (op->kind == READ)
        check_read(op);
    if (op->kind == WRITE)
        memcpy(data + op->offset, op->buffer, op->length);
    if (op->kind == ZERO)
        memset(data + op->offset, 0, op->length);
    if (modifies(op->kind))
        memset(trimmed + op->offset, op->kind == TRIM, op->length);
    if (op->kind == STATUS && op->length > 0 &&
        (op->extents == 0 || (op->flags & LIBNBD_CMD_FLAG_REQ_ONE && op->extents > 1)))
        fail_at(op->offset, "block status at %" PRIu64 " told %u extents", op->offset, op->extents);
}

/* Waits until something has happened. */
static void move_on(void)
{
    struct pollfd fds[CONNECTIONS];

    for (int i = 0; i < CONNECTIONS; i++) {
        unsigned direction = nbd_aio_get_direction(connections[i]);
        fds[i].fd = nbd_aio_get_fd(connections[i]);
        fds[i].events = (direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                        (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
    }
    int n = poll(fds, CONNECTIONS, ANSWER_TIMEOUT);
    for (const struct op *op = ops; n == 0 && op < ops + OPS; op++)
        if (op->busy)
            fail_at(op->offset, "no answer to a %s of %" PRIu64 " at %" PRIu64,
                    kind_names[op->kind], op->length, op->offset);
    for (int i = 0; i < CONNECTIONS; i++) {
        struct nbd_handle *h = connections[i];
        int r = 0;
        if (fds[i].revents & (POLLIN | POLLHUP | POLLERR) && fds[i].events & POLLIN)
            r = nbd_aio_notify_read(h);
        else if (fds[i].revents & POLLOUT)
            r = nbd_aio_notify_write(h);
        if (r < 0 || nbd_aio_is_dead(h))
            fail_at(0, "the connection is gone: %s", nbd_get_error());
    }
}

/* --- Fixed cases, one operation at a time, each on the next connection --- */

static void run_one(enum kind kind, uint32_t flags, uint64_t offset, uint64_t length)
{
    struct op *op = &ops[issued % CONNECTIONS * DEPTH];

    op->kind = kind;
    op->flags = flags;
    op->offset = offset;
    op->length = length;
    issue(op);
    while (!op->done)
        move_on();
    retire(op);
}

/* The range and 20000 bytes on both sides. */
static void look_around(uint64_t offset, uint64_t length)
{
    uint64_t start = offset < 20000 ? 0 : offset - 20000, end = offset + length + 20000;

    if (end > size)
        end = size;
    run_one(READ, 0, start, end - start < MAX_REQUEST ? end - start : MAX_REQUEST);
    run_one(STATUS, 0, start, end - start);
}

static void every_alignment(void)
{
    static const unsigned odd[] = {0, 1, 511, 512, 513, 4095, 4096, 4097, 65537};
    static const struct {
        enum kind kind;
        uint32_t flags;
    } ways[] = {
        {WRITE, 0},
        {ZERO, 0},
        {WRITE, FUA},
        {ZERO, NO_HOLE},
        {ZERO, FAST},
        {WRITE, 0},
        {TRIM, 0},
        {ZERO, FAST | NO_HOLE},
        {WRITE, 0},
        {TRIM, FUA},
        {ZERO, FUA | NO_HOLE},
    };

    for (unsigned i = 0, n = 0; i < 9; i++) {
        for (unsigned j = 1; j < 9; j++, n++) {
            run_one(ways[n % 11].kind, ways[n % 11].flags, MiB + 8192 + odd[i], odd[j]);
            look_around(MiB + 8192 + odd[i], odd[j]);
        }
    }
}

#define END (INT64_MIN / 2) /* END + 3: 3 bytes behind the end of the disk */
#define ALL INT64_MAX       /* as much as the disk has and one request takes */

static const struct {
    const char *name;
    struct {
        enum kind kind;
        uint32_t flags;
        int64_t offset, length;
    } steps[12];
} cases[] = {
    {"a new disk", {{STATUS, 0, 0, ALL}, {READ, 0, 0, ALL}}},
    {"0 bytes",
     {{READ, 0, 5, 0},
      {WRITE, 0, 5, 0},
      {ZERO, 0, 5, 0},
      {TRIM, 0, 5, 0},
      {STATUS, 0, 5, 0},
      {CACHE, 0, 5, 0}}},
    {"the largest",
     {{WRITE, 0, 0, ALL},
      {ZERO, 0, 1001, ALL},
      {WRITE, FUA, 1, ALL},
      {TRIM, 0, 4097, ALL},
      {CACHE, 0, 1, ALL},
      {WRITE, 0, 0, ALL}}},
    {"the last bytes",
     {{WRITE, 0, END - 1, 1},
      {ZERO, 0, END - 1, 1},
      {WRITE, 0, END - 30000, 30000},
      {ZERO, NO_HOLE, END - 777, 777},
      {WRITE, FUA, END - 778, 300},
      {TRIM, 0, END - 4097, 4097},
      {WRITE, 0, END - 10000, 9999},
      {ZERO, FAST, END - 8192, 8192},
      {ZERO, 0, END - 512, 100}}},
    {"past the end",
     {{READ, 0, END, 1},
      {WRITE, 0, END, 1},
      {READ, 0, END - 1, 2},
      {WRITE, 0, END - 1, 2},
      {ZERO, 0, END - 4096, 8192},
      {TRIM, 0, END - 1, 2},
      {STATUS, 0, END, 512},
      {CACHE, 0, END - 1, 2},
      {READ, 0, ALL - 512, 512},
      {WRITE, 0, ALL - 512, 513},
      {ZERO, NO_HOLE, ALL - 5, 5}}},
    {"flush, FUA",
     {{WRITE, 0, 3000, 5000},
      {FLUSH, 0, 0, 0},
      {WRITE, FUA, 6000, 5000},
      {ZERO, FUA, 7, 9000},
      {TRIM, FUA, 8192, 9000},
      {ZERO, FUA | NO_HOLE, 8000, 4096},
      {FLUSH, 0, 0, 0},
      {FLUSH, 0, 0, 0}}},
};

static void run_cases(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int n = 0; n < 12 && (n == 0 || cases[i].steps[n].kind || cases[i].steps[n].length);
             n++) {
            int64_t from = cases[i].steps[n].offset, count = cases[i].steps[n].length;
            uint64_t offset = from < 0 ? size + (from - END) : (uint64_t)from, length = count;

            if (count == ALL)
                length = size - offset < MAX_REQUEST ? size - offset : MAX_REQUEST;
            run_one(cases[i].steps[n].kind, cases[i].steps[n].flags, offset, length);
            if (issued > 1)
                look_around(offset > size ? 0 : offset, length);
        }
        printf("%s: ok\n", cases[i].name);
    }
    every_alignment();
    printf("every alignment: ok\n");
}

/* --- Random operations --- */

static const struct {
    enum kind kind;
    uint32_t flags;
    unsigned weight;
} mix[] = {
    {READ, 0, 28},      {WRITE, 0, 32}, {WRITE, FUA, 3}, {ZERO, 0, 4},
    {ZERO, NO_HOLE, 4}, {ZERO, FUA, 1}, {ZERO, FAST, 3}, {ZERO, FAST | NO_HOLE, 3},
    {TRIM, 0, 6},       {TRIM, FUA, 1}, {STATUS, 0, 8},  {STATUS, LIBNBD_CMD_FLAG_REQ_ONE, 2},
    {CACHE, 0, 2},      {FLUSH, 0, 3},
};

static uint64_t random_length(void)
{
    switch (rnd(100)) {
    case 0 ... 39:
        return 1 + rnd(600);
    case 40 ... 59:
        return (uint64_t)512 << rnd(8);
    case 60 ... 98:
        return 1 + rnd((uint64_t)64 << rnd(13));
    default:
        return MiB + rnd(3 * MiB);
    }
}

static uint64_t random_offset(uint64_t length)
{
    const struct op *other = &ops[rnd(OPS)];

    switch (rnd(100)) {
    case 0 ... 24:
        return other->offset +
               other->length; /* next door to what is in flight, or was a moment ago */
    case 25 ... 49:
        return other->offset - length;
    case 50 ... 59:
        return size - length - rnd(2) * rnd(9000);
    case 60 ... 74:
        return size / 2 + rnd(262144);
    default:
        return rnd(size);
    }
}

/* Another operation is at work on these bytes, and what one of them sees depends on the other. */
static bool is_taken(const struct op *wanted)
{
    for (const struct op *op = ops; op < ops + OPS; op++)
        if (op->busy && op->kind < CACHE && wanted->kind < CACHE &&
            (modifies(op->kind) || modifies(wanted->kind)) &&
            op->offset < wanted->offset + wanted->length &&
            wanted->offset < op->offset + op->length)
            return true;
    return false;
}

static void issue_random(struct op *op)
{
    struct op wanted = *op;

    /* One in three is looked at at once, with what is before it, and what was refused always. */
    if (modifies(op->kind) && (op->error || rnd(3) == 0)) {
        wanted.kind = READ;
        wanted.flags = 0;
        wanted.offset -= rnd(wanted.offset < 600 ? wanted.offset + 1 : 600);
        wanted.length = op->offset + op->length - wanted.offset;
    } else {
        unsigned i = 0, pick = rnd(100), unit = rnd(3) ? 1 : rnd(2) ? 512 : 4096;
        while (pick >= mix[i].weight)
            pick -= mix[i++].weight;
        wanted.kind = mix[i].kind;
        wanted.flags = mix[i].flags;
        wanted.length = (random_length() + unit - 1) / unit * unit;
        wanted.offset = random_offset(wanted.length) / unit * unit;
    }
    if (wanted.offset > size || wanted.length > size - wanted.offset || is_taken(&wanted))
        return;
    *op = wanted;
    issue(op);
}

static void reap(void)
{
    for (struct op *op = ops; op < ops + OPS; op++)
        if (op->busy && op->done)
            retire(op);
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void stress(double seconds)
{
    for (double end = now() + seconds; now() < end; reap()) {
        for (int tries = 0; tries < 4; tries++)
            for (struct op *op = ops; op < ops + OPS; op++)
                if (!op->busy)
                    issue_random(op);
        if (in_flight > 0)
            move_on();
    }
    for (; in_flight > 0; reap())
        move_on();
    run_one(FLUSH, 0, 0, 0);
    for (uint64_t at = 0; at < size; at += 4 * MiB)
        run_one(READ, 0, at, size - at < 4 * MiB ? size - at : 4 * MiB);
}

static void connect_all(const char *uri)
{
    for (int i = 0; i < CONNECTIONS; i++) {
        struct nbd_handle *h = connections[i] = nbd_create();
        if (!h || nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
            nbd_set_strict_mode(h, 0) < 0 || nbd_connect_uri(h, uri) < 0)
            fail_at(0, "connecting: %s", nbd_get_error());
        if (nbd_can_multi_conn(h) != 1 || nbd_can_flush(h) != 1 || nbd_can_fua(h) != 1 ||
            nbd_can_trim(h) != 1 || nbd_can_zero(h) != 1 || nbd_can_fast_zero(h) != 1 ||
            nbd_can_cache(h) != 1 || nbd_is_read_only(h) != 0 ||
            nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) != 1 ||
            nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM) != 1)
            fail_at(0, "something is not offered that should be");
    }
    int64_t bytes = nbd_get_size(connections[0]);
    if (bytes < (int64_t)(8 * MiB) || bytes > (int64_t)MAX_DISK)
        fail_at(0, "a disk of %" PRIi64 " bytes is too small or too large to test on", bytes);
    size = bytes;
    data = calloc(size, 1);
    trimmed = calloc(size, sizeof *trimmed);
    if (!data || !trimmed)
        fail_at(0, "out of memory");
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: conformance URI SECONDS SEED [--sparse|--random]\n");
        return 2;
    }
    seed = strtoull(argv[3], NULL, 0);
    rng = seed * 0x9e3779b97f4a7c15 + 1;
    sparse = argc > 4 && strcmp(argv[4], "--sparse") == 0;
    connect_all(argv[1]);
    if (argc < 5 || strcmp(argv[4], "--random") != 0)
        run_cases();
    stress(strtod(argv[2], NULL));
    printf("seed %" PRIu64 ": %" PRIu64 " operations agree with the model:", seed, issued);
    for (int kind = READ; kind <= FLUSH; kind++)
        printf(" %" PRIu64 " %s,", counts[kind], kind_names[kind]);
    printf(" %" PRIu64 " refused\n", refused);
    for (int i = 0; i < CONNECTIONS; i++)
        nbd_shutdown(connections[i], 0);
    return 0;
}
