/* SPDX-License-Identifier: BSD-3-Clause */
/* libnbdkit-corked.so, to which this program is linked: send() and the other functions below are
 * the library's. A marked piece waits for the next unmarked piece. No byte is lost, sent twice or
 * overtaken by a later byte, also after errors, close, dup and fork. corked-fuzz.c tests the same
 * with random pieces and with several threads.
 */
#include "tests/lib/pool-test.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define HELD_MAX 16384 /* as in corked.c */
#define PIECE_MAX 1024

static void pair(int s[2], int type)
{
    CHECK(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, s) == 0);
}

/* Number of bytes that have arrived at fd and were not read. */
static int arrived(int fd)
{
    int bytes;

    CHECK(ioctl(fd, FIONREAD, &bytes) == 0);
    return bytes;
}

/* Exactly this text has arrived, and fd is at its end if that is wanted. */
static void expect(int fd, const char *text, bool end)
{
    char got[256];
    ssize_t length = 0, r;

    while ((r = recv(fd, got + length, sizeof got - (size_t)length, MSG_DONTWAIT)) > 0)
        length += r;
    CHECK(end ? r == 0 : r < 0 && errno == EAGAIN);
    if (length != (ssize_t)strlen(text) || memcmp(got, text, (size_t)length) != 0) {
        fprintf(stderr, "arrived: '%.*s', expected: '%s'\n", (int)length, got, text);
        abort();
    }
}

static void hold(int fd, const char *text)
{
    CHECK(send(fd, text, strlen(text), MSG_MORE) == (ssize_t)strlen(text));
}

/* Fills the socket until it takes not a single byte more, past the library. */
static size_t fill(int fd)
{
    static const char zeros[4096];
    size_t filled = 0;

    for (size_t size = sizeof zeros; size > 0; size /= 2) {
        long r;
        while ((r = syscall(SYS_sendto, fd, zeros, size, MSG_DONTWAIT, NULL, 0)) > 0)
            filled += (size_t)r;
    }
    return filled;
}

static void empty(int fd, size_t bytes)
{
    char got[4096];

    while (bytes > 0) {
        ssize_t r = recv(fd, got, bytes < sizeof got ? bytes : sizeof got, 0);
        CHECK(r > 0);
        bytes -= (size_t)r;
    }
}

/* --- One thread --- */

static void a_marked_piece_waits_for_the_next_unmarked_piece(void **state)
{
    static char large[PIECE_MAX + 1], got[sizeof large + 10];
    int s[2];

    pair(s, SOCK_STREAM);
    hold(s[0], "one ");
    CHECK(send(s[0], NULL, 0, MSG_MORE) == 0);
    hold(s[0], "two ");
    expect(s[1], "", false);
    CHECK(send(s[0], "three", 5, 0) == 5);
    expect(s[1], "one two three", false);
    CHECK(send(s[0], "four", 4, MSG_NOSIGNAL) == 4);
    expect(s[1], "four", false);
    hold(s[0], "five");
    CHECK(send(s[0], NULL, 0, 0) == 0);
    expect(s[1], "five", false);
    /* A large piece is not held, marked or not. */
    memset(large, 'x', sizeof large);
    hold(s[0], "six");
    CHECK(send(s[0], large, sizeof large, MSG_MORE) == sizeof large);
    CHECK(recv(s[1], got, sizeof got, 0) == 3 + sizeof large);
    CHECK(memcmp(got, "sixx", 4) == 0);
    /* What is held is bounded. */
    for (int sent = 8; sent <= 10 * HELD_MAX; sent += 8) {
        hold(s[0], "8 bytes.");
        CHECK(sent - arrived(s[1]) <= HELD_MAX);
    }
    close(s[0]);
    CHECK(arrived(s[1]) == 10 * HELD_MAX);
    close(s[1]);
}

static void other_calls_send_the_held_pieces_first(void **state)
{
    struct iovec part = {.iov_base = (void *)"b", .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    int s[2];

    pair(s, SOCK_STREAM);
    hold(s[0], "a");
    CHECK(write(s[0], "b", 1) == 1);
    hold(s[0], "a");
    CHECK(writev(s[0], &part, 1) == 1);
    hold(s[0], "a");
    CHECK(sendmsg(s[0], &message, MSG_MORE) == 1);
    hold(s[0], "a");
    CHECK(sendto(s[0], "b", 1, MSG_MORE, NULL, 0) == 1);
    hold(s[0], "a");
    CHECK(send(s[0], "b", 1, MSG_EOR) == 1);
    expect(s[1], "ababababab", false);
    close(s[0]);
    close(s[1]);
}

static _Atomic unsigned signals;

static void count_signal(int number)
{
    signals++;
}

static void a_failure_is_reported_by_the_next_call(void **state)
{
    static const char bytes[PIECE_MAX];
    int s[2];
    size_t filled;

    /* EAGAIN: the held pieces stay, and leave with the next call. */
    pair(s, SOCK_STREAM | SOCK_NONBLOCK);
    filled = fill(s[0]);
    hold(s[0], "one ");
    CHECK(send(s[0], "two", 3, 0) == -1 && errno == EAGAIN);
    CHECK(write(s[0], "two", 3) == -1 && errno == EAGAIN);
    CHECK(sendto(s[0], "two", 3, 0, NULL, 0) == -1 && errno == EAGAIN);
    empty(s[1], filled);
    CHECK(send(s[0], "two", 3, 0) == 3);
    expect(s[1], "one two", false);
    /* A marked piece fails too if the buffer is full. */
    filled = fill(s[0]);
    for (int i = 0; i < HELD_MAX / PIECE_MAX; i++)
        CHECK(send(s[0], bytes, PIECE_MAX, MSG_MORE) == PIECE_MAX);
    CHECK(send(s[0], bytes, 1, MSG_MORE) == -1 && errno == EAGAIN);
    empty(s[1], filled);
    CHECK(send(s[0], bytes, 1, MSG_MORE) == 1 && arrived(s[1]) == HELD_MAX + 1);
    /* EPIPE, with SIGPIPE if the failing call wants that. */
    signal(SIGPIPE, count_signal);
    hold(s[0], "three");
    close(s[1]);
    hold(s[0], "four");
    CHECK(send(s[0], "five", 4, MSG_NOSIGNAL) == -1 && errno == EPIPE && signals == 0);
    CHECK(send(s[0], "five", 4, 0) == -1 && errno == EPIPE && signals == 1);
    CHECK(write(s[0], "five", 4) == -1 && errno == EPIPE && signals == 2);
    CHECK(close(s[0]) == 0 && signals == 2);
    /* EBADF is not remembered. */
    CHECK(send(s[0], "six", 3, MSG_MORE) == -1 && errno == EBADF);
    pair(s, SOCK_STREAM);
    hold(s[0], "six");
    expect(s[1], "", false);
    close(s[0]);
    close(s[1]);
}

/* How many bytes an empty socket takes in one call without waiting. */
static size_t room_in(int fd)
{
    static const char zeros[1 << 20];

    return (size_t)syscall(SYS_sendto, fd, zeros, sizeof zeros, MSG_DONTWAIT, NULL, 0);
}

static void held_bytes_that_leave_in_parts_are_not_counted(void **state)
{
    static unsigned char bytes[HELD_MAX], got[HELD_MAX + 1];
    int s[2], size = 1;

    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 7 + (i >> 8));
    pair(s, SOCK_STREAM | SOCK_NONBLOCK);
    CHECK(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    size_t room = room_in(s[0]);
    CHECK(room < HELD_MAX - 1);
    empty(s[1], room);
    /* The socket takes fewer bytes than are held, and exactly as many. */
    for (int more = 1; more >= 0; more--) {
        size_t held = room + (size_t)more, length = 0;
        for (size_t i = 0, part; i < held; i += part) {
            part = held - i < PIECE_MAX ? held - i : PIECE_MAX;
            CHECK(send(s[0], bytes + i, part, MSG_MORE) == (ssize_t)part);
        }
        CHECK(send(s[0], "!", 1, 0) == -1 && errno == EAGAIN && arrived(s[1]) == (int)room);
        while (length < room)
            length += (size_t)recv(s[1], got + length, room - length, 0);
        CHECK(send(s[0], "!", 1, 0) == 1 && arrived(s[1]) == more + 1);
        CHECK(recv(s[1], got + length, sizeof got - length, 0) == more + 1);
        CHECK(memcmp(got, bytes, held) == 0 && got[held] == '!');
    }
    close(s[0]);
    close(s[1]);
}

static void close_and_shutdown_send_the_held_pieces(void **state)
{
    int s[2], t[2];
    size_t filled;

    pair(s, SOCK_STREAM);
    hold(s[0], "close");
    close(s[0]);
    expect(s[1], "close", true);
    close(s[1]);
    pair(s, SOCK_STREAM | SOCK_NONBLOCK);
    hold(s[0], "shut down");
    CHECK(shutdown(s[0], SHUT_RD) == 0);
    expect(s[1], "", false);
    CHECK(shutdown(s[0], SHUT_WR) == 0);
    expect(s[1], "shut down", true);
    close(s[0]);
    close(s[1]);
    for (int i = 0; i < 2; i++) {
        pair(s, SOCK_STREAM);
        pair(t, SOCK_STREAM);
        hold(s[0], "replaced");
        hold(t[0], "kept");
        CHECK((i ? dup3(t[0], s[0], O_CLOEXEC) : dup2(t[0], s[0])) == s[0]);
        expect(s[1], "replaced", true);
        CHECK(send(s[0], " too", 4, 0) == 4);
        expect(t[1], "kept too", false);
        close(s[0]);
        close(s[1]);
        close(t[0]);
        close(t[1]);
    }
    /* A peer that does not read costs a non-blocking close a second. A duplicate still sends the
     * held pieces later. */
    pair(s, SOCK_STREAM | SOCK_NONBLOCK);
    filled = fill(s[0]);
    hold(s[0], "not lost");
    close(dup(s[0]));
    empty(s[1], filled);
    CHECK(write(s[0], "!", 1) == 1);
    expect(s[1], "not lost!", false);
    fill(s[0]);
    hold(s[0], "lost");
    errno = 0;
    CHECK(close(s[0]) == 0 && errno == 0);
    close(s[1]);
}

static void a_descriptor_that_is_used_again_starts_afresh(void **state)
{
    int s[2], old, file;

    pair(s, SOCK_STREAM | SOCK_NONBLOCK);
    old = s[0];
    hold(old, "first");
    close(s[1]); /* "first" can go nowhere */
    close(old);
    for (int round = 0; round < 3; round++) {
        pair(s, SOCK_STREAM);
        if (s[0] != old) {
            CHECK(dup2(s[0], old) == old);
            close(s[0]);
        }
        hold(old, "again");
        expect(s[1], "", false);
        CHECK(send(old, ".", 1, 0) == 1);
        expect(s[1], "again.", false);
        close(old);
        close(s[1]);
    }
    /* Something else has the number: packets must not be joined, and a file is written as it is. */
    pair(s, SOCK_SEQPACKET);
    CHECK(s[0] == old);
    hold(old, "packet");
    CHECK(send(old, "another", 7, 0) == 7);
    expect(s[1], "packetanother", false);
    close(old);
    close(s[1]);
    file = open("/dev/null", O_WRONLY | O_CLOEXEC);
    CHECK(file == old && write(file, "x", 1) == 1 && send(file, "x", 1, MSG_MORE) == -1);
    CHECK(errno == ENOTSOCK);
    close(file);
    pair(s, SOCK_STREAM);
    hold(s[0], "x");
    expect(s[1], "", false);
    close(s[0]);
    close(s[1]);
}

static void duplicates_share_the_held_pieces(void **state)
{
    int s[2], copies[4];

    for (int first = 0; first < 2; first++) {
        pair(s, SOCK_STREAM);
        if (first)
            hold(s[0], "0");
        copies[0] = dup(s[0]);
        copies[1] = fcntl(s[0], F_DUPFD_CLOEXEC, 0);
        copies[2] = fcntl(copies[1], F_DUPFD, 100);
        copies[3] = dup2(copies[0], 200);
        CHECK(copies[2] >= 100 && copies[3] == 200);
        if (!first)
            hold(copies[2], "0");
        hold(copies[0], "1");
        hold(copies[3], "2");
        CHECK(write(copies[1], "3", 1) == 1);
        expect(s[1], "0123", false);
        hold(s[0], "4");
        close(s[0]);
        hold(copies[1], "5");
        for (int i = 0; i < 4; i++)
            close(copies[i]);
        expect(s[1], "45", true);
        close(s[1]);
    }
    CHECK(dup(-1) == -1 && dup2(-1, 200) == -1 && fcntl(-1, F_DUPFD, 0) == -1);
}

static void a_fork_neither_loses_nor_doubles_a_piece(void **state)
{
    int s[2], status;
    size_t filled;
    char got[16];

    pair(s, SOCK_STREAM | SOCK_NONBLOCK);
    hold(s[0], "before ");
    filled = fill(s[0]); /* so that fork() can send nothing */
    pid_t child = fork();
    if (child == 0) {
        /* What the parent holds is the parent's: neither close nor exit sends it. */
        hold(s[0], "child");
        close(s[0]);
        exit(0);
    }
    empty(s[1], filled);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    /* The child may have found no room. */
    ssize_t r = recv(s[1], got, sizeof got, MSG_DONTWAIT);
    CHECK((r < 0 && errno == EAGAIN) || (r == 5 && memcmp(got, "child", 5) == 0));
    CHECK(send(s[0], "parent", 6, 0) == 6);
    expect(s[1], "before parent", false);
    /* The child goes on, as after daemon(3). */
    hold(s[0], "parent ");
    child = fork();
    if (child == 0) {
        hold(s[0], "child");
        exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    expect(s[1], "parent child", false);
    close(s[0]);
    close(s[1]);
}

static void other_sockets_pass_through(void **state)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), s[2], queued;

    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    s[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(s[0], (struct sockaddr *)&address, size) == 0);
    s[1] = accept(listener, NULL, NULL);
    /* The kernel holds the piece, not the library. */
    hold(s[0], "TCP");
    CHECK(ioctl(s[0], TIOCOUTQ, &queued) == 0 && queued == 3);
    CHECK(send(s[0], "!", 1, 0) == 1);
    WAIT_UNTIL(arrived(s[1]) == 4);
    close(s[0]);
    close(s[1]);
    close(listener);
    pair(s, SOCK_DGRAM);
    hold(s[0], "datagram");
    expect(s[1], "datagram", false);
    close(s[0]);
    close(s[1]);
    CHECK(send(-1, "x", 1, MSG_MORE) == -1 && errno == EBADF);
    CHECK(send(1 << 20, "x", 1, MSG_MORE) == -1 && errno == EBADF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_marked_piece_waits_for_the_next_unmarked_piece),
        cmocka_unit_test(other_calls_send_the_held_pieces_first),
        cmocka_unit_test(a_failure_is_reported_by_the_next_call),
        cmocka_unit_test(held_bytes_that_leave_in_parts_are_not_counted),
        cmocka_unit_test(close_and_shutdown_send_the_held_pieces),
        cmocka_unit_test(a_descriptor_that_is_used_again_starts_afresh),
        cmocka_unit_test(duplicates_share_the_held_pieces),
        cmocka_unit_test(a_fork_neither_loses_nor_doubles_a_piece),
        cmocka_unit_test(other_sockets_pass_through),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
