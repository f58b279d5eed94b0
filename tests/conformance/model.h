/* SPDX-License-Identifier: BSD-3-Clause */
/* Operations on the server's disk and their model: the content of the disk in memory, byte by byte.
 *
 * The program has one thread, CONNECTIONS connections and OPS operations, DEPTH for each
 * connection. The caller fills the fields kind, flags, offset and length of an operation that is
 * not busy and calls issue(). move_on() waits for answers, and reap() compares them with the model
 * and updates the model. Every difference ends the program with a message and the history around
 * the byte.
 *
 * The caller never issues two operations on one byte at a time if one of them modifies the byte, so
 * the model is exact.
 */
#ifndef CONFORMANCE_MODEL_H
#define CONFORMANCE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <libnbd.h>

#define CONNECTIONS 4
#define DEPTH 16
#define OPS (CONNECTIONS * DEPTH)
#define MiB ((uint64_t)1 << 20)
#define MAX_REQUEST (64 * MiB)

#define FUA LIBNBD_CMD_FLAG_FUA
#define NO_HOLE LIBNBD_CMD_FLAG_NO_HOLE
#define FAST LIBNBD_CMD_FLAG_FAST_ZERO

enum kind { READ, WRITE, ZERO, TRIM, STATUS, CACHE, FLUSH };

struct op {
    enum kind kind;
    uint32_t flags;
    uint64_t offset, length; /* bytes; those of the last operation if not busy */
    bool busy, done;
    int error;        /* errno, or 0; valid when done */
    unsigned extents; /* received by a STATUS */
    char *buffer;
    size_t capacity; /* of the buffer, bytes */
};

extern struct op ops[OPS];
extern uint64_t disk_size;    /* bytes */
extern uint64_t issued, seed; /* issued: the number of operations so far */
extern unsigned in_flight;
extern bool sparse; /* a new disk must report holes */

/* A random number below the limit. */
uint64_t rnd(uint64_t below);

bool modifies(enum kind kind);

__attribute__((noreturn, format(printf, 2, 3))) void fail_at(uint64_t offset, const char *format,
                                                             ...);

/* Opens all connections and makes a model of all zeros. start: the seed of rnd(). */
void connect_all(const char *uri, uint64_t start);

/* Fills the model with the file, which has the content of the disk at the start. */
void model_read(const char *path);

/* Sends the operation on the connection that its position in ops[] belongs to. */
void issue(struct op *op);

/* Waits until a connection has made progress; fails if no answer arrives in time. */
void move_on(void);

/* Handles all operations that are done. */
void reap(void);

/* One operation from its issue to its end. Each is sent on the next connection. */
void run_one(enum kind kind, uint32_t flags, uint64_t offset, uint64_t length);

void print_summary(void);

void disconnect_all(void);

#endif
