/* SPDX-License-Identifier: BSD-3-Clause */
/* libnbdkit-corked.so under load. Random pieces are sent by the library and, with the same seed, by
 * direct system calls: the peer must read the same bytes, although sockets are full, non-blocking
 * and interrupted by signals, and pieces leave in parts. Then many threads send on one socket, and
 * on many sockets whose descriptors are closed and used again.
 *
 * A run that fails prints its seed. test-corked-fuzz SEED repeats the run.
 */
#include "tests/lib/pool-test.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define RUNS ROUNDS(150)
#define PIECES 300
#define LARGEST 70000u
#define THREADS 8

static unsigned first_seed = 1, last_seed = RUNS, current_seed;

static void print_seed(int number)
{
    fprintf(stderr, "seed %u\n", current_seed);
}

static unsigned draw(unsigned *seed, unsigned below)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (unsigned)(((uint64_t)*seed * below) >> 32);
}

/* The byte that belongs at this position of every stream: lost, doubled and swapped bytes show. */
static unsigned char byte_at(size_t position)
{
    return (unsigned char)((position * 2654435761u) >> 15);
}

static void pair(int s[2], int type)
{
    CHECK(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, s) == 0);
}

/* --- The fuzz --- */

struct run {
    bool corked;
    unsigned seed;
    int writer, reader;    /* sockets */
    size_t sent, received; /* bytes */
    pthread_t thread;      /* the writer's */
    _Atomic bool done;
};

static struct {
    unsigned partial, again, interrupted; /* results of the library */
} seen;

static void ignore_signal(int number)
{
}

enum kind { SEND, WRITE, WRITEV, SENDMSG, SENDTO, KINDS };

static ssize_t transmit(struct run *run, enum kind kind, char *piece, size_t length, int flags)
{
    struct iovec parts[2] = {{piece, length / 3}, {piece + length / 3, length - length / 3}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    int fd = run->writer;

    switch (kind) {
    case WRITE:
        return run->corked ? write(fd, piece, length) : syscall(SYS_write, fd, piece, length);
    case WRITEV:
        return run->corked ? writev(fd, parts, 2) : syscall(SYS_writev, fd, parts, 2);
    case SENDMSG:
        return run->corked ? sendmsg(fd, &message, flags)
                           : syscall(SYS_sendmsg, fd, &message, flags);
    case SENDTO:
        return run->corked ? sendto(fd, piece, length, flags, NULL, 0)
                           : syscall(SYS_sendto, fd, piece, length, flags, NULL, 0);
    default:
        return run->corked ? send(fd, piece, length, flags)
                           : syscall(SYS_sendto, fd, piece, length, flags, NULL, 0);
    }
}

/* As nbdkit does: until the whole piece has been taken. */
static void transmit_all(struct run *run, enum kind kind, size_t length, int flags, unsigned *tries)
{
    static char piece[LARGEST];

    for (size_t i = 0; i < length; i++)
        piece[i] = (char)byte_at(run->sent + i);
    for (size_t done = 0; done < length;) {
        int dont_wait = draw(tries, 4) == 0 ? MSG_DONTWAIT : 0;
        ssize_t r = transmit(run, kind, piece + done, length - done, flags | dont_wait);
        if (r < 0) {
            CHECK(errno == EAGAIN || errno == EINTR);
            seen.again += run->corked && errno == EAGAIN;
            seen.interrupted += run->corked && errno == EINTR;
            if (errno == EAGAIN)
                sleep_us(20);
            continue;
        }
        CHECK(r > 0 && (size_t)r <= length - done);
        done += (size_t)r;
        seen.partial += run->corked && done < length;
    }
    run->sent += length;
}

static void *read_all(void *opaque)
{
    struct run *run = opaque;
    unsigned seed = run->seed;
    static char got[LARGEST];

    for (;;) {
        ssize_t r = read(run->reader, got, 1 + draw(&seed, draw(&seed, 4) ? 3000 : LARGEST));
        CHECK(r >= 0);
        if (r == 0)
            return NULL;
        for (ssize_t i = 0; i < r; i++)
            CHECK((unsigned char)got[i] == byte_at(run->received + (size_t)i));
        run->received += (size_t)r;
        if (draw(&seed, 30) == 0)
            sleep_us(draw(&seed, 500));
    }
}

static void *interrupt(void *opaque)
{
    struct run *run = opaque;

    while (!run->done) {
        pthread_kill(run->thread, SIGUSR1);
        sleep_us(100);
    }
    return NULL;
}

static size_t draw_length(unsigned *seed)
{
    switch (draw(seed, 16)) {
    case 0:
        return 1 + draw(seed, LARGEST);
    case 1:
    case 2:
        return 1 + draw(seed, 5000);
    case 3:
        return 1015 + draw(seed, 20); /* around what is copied */
    default:
        return 1 + draw(seed, 40);
    }
}

static void write_all(struct run *run)
{
    unsigned seed = run->seed, tries = run->seed;
    unsigned marked = 1 + draw(&seed, draw(&seed, 2) ? 20 : 400); /* of so many, all but one */

    for (unsigned i = 0; i < PIECES; i++) {
        enum kind kind = draw(&seed, 10) ? SEND : (enum kind)draw(&seed, KINDS);
        int flags = MSG_NOSIGNAL | (draw(&seed, marked) ? MSG_MORE : 0);
        transmit_all(run, kind, draw_length(&seed), flags, &tries);
        if (draw(&seed, 100) == 0) {
            int copy = dup(run->writer);
            CHECK(copy >= 0);
            close(run->writer);
            run->writer = copy;
        }
    }
    if (draw(&seed, 2))
        shutdown(run->writer, SHUT_WR);
    close(run->writer);
}

static size_t carry_out(unsigned seed, bool corked)
{
    struct run run = {.corked = corked, .seed = seed, .thread = pthread_self()};
    pthread_t reader, pest;
    int s[2], size = 4096 << draw(&seed, 6);
    bool interrupts = draw(&seed, 3) == 0;

    pair(s, SOCK_STREAM);
    run.writer = s[0];
    run.reader = s[1];
    CHECK(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    if (draw(&seed, 2))
        CHECK(fcntl(s[0], F_SETFL, O_NONBLOCK) == 0);
    CHECK(pthread_create(&reader, NULL, read_all, &run) == 0);
    if (interrupts)
        CHECK(pthread_create(&pest, NULL, interrupt, &run) == 0);
    write_all(&run);
    run.done = true;
    pthread_join(reader, NULL);
    if (interrupts)
        pthread_join(pest, NULL);
    close(run.reader);
    CHECK(run.received == run.sent);
    return run.received;
}

static void random_pieces_arrive_as_without_the_library(void **state)
{
    struct sigaction action = {.sa_handler = ignore_signal}; /* no SA_RESTART */

    sigaction(SIGUSR1, &action, NULL);
    signal(SIGABRT, print_seed);
    for (unsigned seed = first_seed; seed <= last_seed; seed++) {
        current_seed = seed;
        size_t plain = carry_out(seed, false);
        CHECK(carry_out(seed, true) == plain);
    }
    signal(SIGABRT, SIG_DFL);
    printf("the library's results: %u partial, %u EAGAIN, %u EINTR\n", seen.partial, seen.again,
           seen.interrupted);
    if (last_seed - first_seed >= 10)
        CHECK(seen.partial > 0 && seen.again > 0 && seen.interrupted > 0);
}

/* --- Many threads --- */

struct record {
    unsigned thread, number;
};

static struct {
    int writer, reader;
    pthread_mutex_t replies; /* as nbdkit's write lock */
} shared;

static void start(pthread_t threads[THREADS], void *(*function)(void *))
{
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, function, (void *)i) == 0);
}

static void join(pthread_t threads[THREADS])
{
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

/* The records of each thread arrive in their order, and none is missing. Each record is sent in one
 * call. The calls of different threads are not serialised. */
static void *send_records(void *opaque)
{
    struct record record = {.thread = (unsigned)(uintptr_t)opaque};
    unsigned seed = record.thread;

    for (; record.number < ROUNDS(8000); record.number++) {
        int flags = draw(&seed, 3) ? MSG_MORE : 0;
        if (draw(&seed, 50) == 0)
            CHECK(write(shared.writer, &record, sizeof record) == sizeof record);
        else
            CHECK(send(shared.writer, &record, sizeof record, flags) == sizeof record);
    }
    return NULL;
}

static void *read_records(void *opaque)
{
    unsigned next[THREADS] = {0};
    struct record record;

    while (recv(shared.reader, &record, sizeof record, MSG_WAITALL) == sizeof record) {
        CHECK(record.thread < THREADS && record.number == next[record.thread]);
        next[record.thread]++;
    }
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(next[i] == ROUNDS(8000));
    return NULL;
}

/* A reply is a marked header and a body, under a lock. The bodies hold the header's numbers. */
static void *send_replies(void *opaque)
{
    static const unsigned sizes[] = {1, 3, 100, 512, 9000};
    struct record body[9000], record = {.thread = (unsigned)(uintptr_t)opaque};
    unsigned seed = record.thread;

    for (unsigned i = 0; i < ROUNDS(800); i++) {
        record.number = sizes[draw(&seed, 5)];
        for (unsigned j = 0; j < record.number; j++)
            body[j] = record;
        size_t size = record.number * sizeof record;
        pthread_mutex_lock(&shared.replies);
        CHECK(send(shared.writer, &record, 3, MSG_MORE) == 3);
        CHECK(send(shared.writer, (char *)&record + 3, 5, MSG_MORE) == 5);
        CHECK(send(shared.writer, body, size, 0) == (ssize_t)size);
        pthread_mutex_unlock(&shared.replies);
    }
    return NULL;
}

static void *read_replies(void *opaque)
{
    struct record record, body;
    unsigned replies = 0;

    while (recv(shared.reader, &record, sizeof record, MSG_WAITALL) == sizeof record) {
        for (unsigned i = 0; i < record.number; i++) {
            CHECK(recv(shared.reader, &body, sizeof body, MSG_WAITALL) == sizeof body);
            CHECK(memcmp(&body, &record, sizeof body) == 0);
        }
        replies++;
    }
    CHECK(replies == THREADS * ROUNDS(800));
    return NULL;
}

static void many_threads_share_a_socket(void **state)
{
    pthread_t threads[THREADS], reader;
    int s[2];

    for (int replies = 0; replies < 2; replies++) {
        pair(s, SOCK_STREAM);
        shared.writer = s[0];
        shared.reader = s[1];
        pthread_mutex_init(&shared.replies, NULL);
        pthread_create(&reader, NULL, replies ? read_replies : read_records, NULL);
        start(threads, replies ? send_replies : send_records);
        join(threads);
        close(s[0]);
        pthread_join(reader, NULL);
        close(s[1]);
    }
}

/* Each thread opens and closes sockets, so that all of them use the same descriptors in turn. */
static void *open_and_close(void *opaque)
{
    unsigned seed = (unsigned)(uintptr_t)opaque;

    for (unsigned i = 0; i < ROUNDS(2000); i++) {
        struct record records[3], got[4];
        int s[2], status;

        pair(s, SOCK_STREAM);
        for (unsigned j = 0; j < 3; j++) {
            records[j] = (struct record){.thread = (unsigned)(uintptr_t)opaque, .number = i + j};
            CHECK(send(s[0], &records[j], sizeof *records, MSG_MORE) == sizeof *records);
            if (draw(&seed, 4) == 0)
                CHECK(dup2(s[0], s[0]) == s[0]);
        }
        if (draw(&seed, 200) == 0) {
            pid_t child = fork();
            if (child == 0)
                _exit(close(s[0]));
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
        if (draw(&seed, 2)) {
            int copy = dup(s[0]);
            close(s[0]);
            s[0] = copy;
        }
        close(s[0]);
        CHECK(recv(s[1], got, sizeof got, MSG_WAITALL) == sizeof records);
        CHECK(memcmp(got, records, sizeof records) == 0);
        close(s[1]);
    }
    return NULL;
}

static void many_threads_use_descriptors_again(void **state)
{
    pthread_t threads[THREADS];

    start(threads, open_and_close);
    join(threads);
}

/* --- A thread that waits in send() --- */

static _Atomic bool sending;
static _Atomic ssize_t outcome;

static void *send_too_much(void *opaque)
{
    size_t size = 8 << 20;
    char *piece = calloc(1, size);

    CHECK(piece);
    CHECK(send(shared.writer, "header", 6, MSG_MORE) == 6);
    sending = true;
    outcome = send(shared.writer, piece, size, MSG_NOSIGNAL);
    sending = false;
    free(piece);
    return NULL;
}

static void a_waiting_thread_does_not_block_others(void **state)
{
    pthread_t thread;
    char got[6];
    int s[2], status;

    pair(s, SOCK_STREAM);
    shared.writer = s[0];
    sending = false;
    CHECK(pthread_create(&thread, NULL, send_too_much, NULL) == 0);
    /* The header has left, so the thread waits for room. */
    CHECK(recv(s[1], got, 6, MSG_WAITALL) == 6 && memcmp(got, "header", 6) == 0);
    sleep_us(20000);
    CHECK(sending);
    CHECK(send(s[0], "x", 1, MSG_MORE | MSG_DONTWAIT) == -1 && errno == EAGAIN);
    CHECK(send(s[0], "x", 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    /* The thread and its lock are not in a child. */
    pid_t child = fork();
    if (child == 0)
        _exit(send(s[0], "x", 1, MSG_MORE | MSG_DONTWAIT) != 1);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(shutdown(s[0], SHUT_RDWR) == 0);
    pthread_join(thread, NULL);
    CHECK(outcome < (ssize_t)(8 << 20));
    close(s[0]);
    close(s[1]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_pieces_arrive_as_without_the_library),
        cmocka_unit_test(many_threads_share_a_socket),
        cmocka_unit_test(many_threads_use_descriptors_again),
        cmocka_unit_test(a_waiting_thread_does_not_block_others),
    };

    if (argc > 1)
        first_seed = last_seed = (unsigned)atoi(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
