/* SPDX-License-Identifier: BSD-3-Clause */
/* The model of the disk, and the operations that are compared with the model. See model.h.
 *
 * One thread runs everything. libnbd's callbacks must not call libnbd, so a callback only records
 * the result of an operation; retire() does the rest.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/conformance/model.h"

#define MAX_DISK (1024 * MiB)
#define ANSWER_TIMEOUT 30000 /* ms */
#define HISTORY 16384u       /* operations */

static const char *const kind_names[] = {"read",         "write", "zero", "trim",
                                         "block status", "cache", "flush"};

static struct nbd_handle *connections[CONNECTIONS];
struct op ops[OPS];
static struct op history[HISTORY]; /* operation number n is at n % HISTORY */
uint64_t issued, seed;
static uint64_t refused, counts[FLUSH + 1], rng;
unsigned in_flight;
bool sparse;

uint64_t disk_size;
static uint8_t *data;
/* A trimmed byte reads as zero or as the value before the trim, until a read has shown which of
 * them, or the byte is written again.
 */
static bool *trimmed;

uint64_t rnd(uint64_t below)
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
                offset >= op->offset && offset < op->offset + op->length ? ""
                                                                         : " (the same block)");
        left--;
    }
}

void fail_at(uint64_t offset, const char *format, ...)
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

bool modifies(enum kind kind)
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

/* Block status reports the range as zeros, so no other value may be in the model. */
static void check_zeros(uint64_t start, uint64_t end)
{
    for (uint64_t at = start; at < end; at++) {
        if (data[at] == 0)
            continue;
        if (!trimmed[at])
            fail_at(at,
                    "block status reports that [%" PRIu64 ", %" PRIu64
                    ") reads as zeros, but byte %" PRIu64 " is 0x%02x",
                    start, end, at, data[at]);
        data[at] = 0;
    }
}

/* No operation modifies the range while the request is in flight, so the model is exact there. */
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
            fail_at(at, "block status reports data on a new disk, at %" PRIu64, at);
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
    /* No byte is zero, so that wrong zeros always differ from the data. */
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

void issue(struct op *op)
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
    /* The read has shown the values of trimmed bytes. */
    memset(trimmed + op->offset, false, op->length);
}

/* Compares the answer of the operation with the model, then updates the model. */
static void retire(struct op *op)
{
    bool outside = op->offset > disk_size || op->length > disk_size - op->offset;
    bool may_fail = outside || op->length == 0 ? op->error == EINVAL || op->error == ENOSPC
                                               : op->error == EOPNOTSUPP && op->flags & FAST;

    op->busy = false;
    in_flight--;
    if (op->error ? !may_fail : outside)
        fail_at(op->offset, "%s of %" PRIu64 " at %" PRIu64 ": %s", kind_names[op->kind],
                op->length, op->offset,
                op->error ? strerror(op->error) : "success, outside of the disk");
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
        fail_at(op->offset, "block status at %" PRIu64 " gave %u extents", op->offset, op->extents);
}

void move_on(void)
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
            fail_at(0, "the connection is dead: %s", nbd_get_error());
    }
}

void reap(void)
{
    for (struct op *op = ops; op < ops + OPS; op++)
        if (op->busy && op->done)
            retire(op);
}

void run_one(enum kind kind, uint32_t flags, uint64_t offset, uint64_t length)
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

void connect_all(const char *uri, uint64_t start)
{
    seed = start;
    rng = seed * 0x9e3779b97f4a7c15 + 1;
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
            fail_at(0, "the server lacks a feature that the plugin promises");
    }
    int64_t bytes = nbd_get_size(connections[0]);
    if (bytes < (int64_t)(8 * MiB) || bytes > (int64_t)MAX_DISK)
        fail_at(0, "a disk of %" PRIi64 " bytes is too small or too large to test on", bytes);
    disk_size = bytes;
    data = calloc(disk_size, 1);
    trimmed = calloc(disk_size, sizeof *trimmed);
    if (!data || !trimmed)
        fail_at(0, "out of memory");
}

void model_read(const char *path)
{
    FILE *file = fopen(path, "r");

    if (!file || fread(data, 1, disk_size, file) != disk_size || fgetc(file) != EOF)
        fail_at(0, "%s does not have the size of the disk", path);
    fclose(file);
}

void print_summary(void)
{
    printf("seed %" PRIu64 ": %" PRIu64 " operations agree with the model:", seed, issued);
    for (int kind = READ; kind <= FLUSH; kind++)
        printf(" %" PRIu64 " %s,", counts[kind], kind_names[kind]);
    printf(" %" PRIu64 " refused\n", refused);
}

void disconnect_all(void)
{
    for (int i = 0; i < CONNECTIONS; i++)
        nbd_shutdown(connections[i], 0);
}
