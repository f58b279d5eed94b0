/* SPDX-License-Identifier: BSD-3-Clause */
/* Does the disk of a server behave as NBD and the man page say? The program asks the same questions
 * for every combination of backend, cache, dispatch and target; conformance.sh makes those.
 *
 *   conformance URI SECONDS SEED [--sparse|--random|--content=FILE]
 *
 * First come fixed cases, one operation at a time. Then come random operations, 16 in flight on
 * each of 4 connections, compared with a model of the disk in memory (model.h). Two operations
 * never share a byte if one of them modifies the byte, but they share blocks as often as possible.
 * At the end the program compares the whole disk.
 *
 * The disk must be all zeros at the start, or with --content have the content of the file. With
 * --sparse, block status must also report the new disk as holes. With --random and --content, the
 * program leaves out the fixed cases.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/conformance/model.h"

/* --- Fixed cases, one operation at a time --- */

/* Checks the range and 20000 bytes on both sides. */
static void look_around(uint64_t offset, uint64_t length)
{
    uint64_t start = offset < 20000 ? 0 : offset - 20000, end = offset + length + 20000;

    if (end > disk_size)
        end = disk_size;
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

#define END (INT64_MIN / 2) /* END + 3: 3 bytes past the end of the disk */
#define ALL INT64_MAX       /* the whole disk, or the largest request */

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
            uint64_t offset = from < 0 ? disk_size + (from - END) : (uint64_t)from, length = count;

            if (count == ALL)
                length = disk_size - offset < MAX_REQUEST ? disk_size - offset : MAX_REQUEST;
            run_one(cases[i].steps[n].kind, cases[i].steps[n].flags, offset, length);
            if (issued > 1)
                look_around(offset > disk_size ? 0 : offset, length);
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
        /* Directly after an operation that is in flight, or was the last in its place. */
        return other->offset + other->length;
    case 25 ... 49:
        return other->offset - length;
    case 50 ... 59:
        return disk_size - length - rnd(2) * rnd(9000);
    case 60 ... 74:
        return disk_size / 2 + rnd(262144);
    default:
        return rnd(disk_size);
    }
}

/* Another operation in flight shares a byte, and one of the two modifies the byte. */
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

    /* The program reads one modification in three back at once, and every failed one, together
     * with bytes before the range.
     */
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
    if (wanted.offset > disk_size || wanted.length > disk_size - wanted.offset || is_taken(&wanted))
        return;
    *op = wanted;
    issue(op);
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
    for (uint64_t at = 0; at < disk_size; at += 4 * MiB)
        run_one(READ, 0, at, disk_size - at < 4 * MiB ? disk_size - at : 4 * MiB);
}

int main(int argc, char **argv)
{
    static const char content[] = "--content=";

    if (argc < 4) {
        fprintf(stderr, "usage: conformance URI SECONDS SEED [--sparse|--random|%sFILE]\n",
                content);
        return 2;
    }
    const char *option = argc > 4 ? argv[4] : "";
    sparse = strcmp(option, "--sparse") == 0;
    connect_all(argv[1], strtoull(argv[3], NULL, 0));
    if (strncmp(option, content, strlen(content)) == 0)
        model_read(option + strlen(content));
    else if (strcmp(option, "--random") != 0)
        run_cases();
    stress(strtod(argv[2], NULL));
    print_summary();
    disconnect_all();
    return 0;
}
