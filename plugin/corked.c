/* SPDX-License-Identifier: BSD-3-Clause */
/* libnbdkit-corked.so, which is preloaded into nbdkit: a reply leaves in one piece.
 *
 * nbdkit sends a reply piece by piece and marks all pieces but the last with MSG_MORE. TCP joins a
 * marked piece with what follows (send(2), TCP_CORK in tcp(7)). AF_UNIX ignores the mark, so each
 * piece wakes the client. This library does for AF_UNIX stream sockets what TCP does: send() copies
 * a small marked piece into a buffer of the socket and returns. The next unmarked piece, large
 * piece or other write leaves together with the held bytes in one sendmsg(2). Large pieces are
 * never copied. All other descriptors pass through.
 *
 * The functions run on the threads of their callers; the library has no thread of its own and opens
 * no descriptor. It removes itself from LD_PRELOAD, so that children of nbdkit do not get it.
 */
/* Without the 64-bit names: fcntl and fcntl64 are two symbols, and both are defined below. */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* A descriptor with this number or a higher one passes through. */
#define DESCRIPTORS_MAX 65536
/* Bytes that are held for one socket: 2000 extents of a map. */
#define HELD_MAX 16384u
/* Bytes: a larger piece is not copied. nbdkit's headers have 4 to 28 bytes. */
#define PIECE_MAX 1024u
/* How long close() and shutdown() wait for room in a non-blocking socket. */
#define DRAIN_MS 1000

/* One AF_UNIX stream socket. Memory of a struct cork is used again but never freed: a thread may
 * still wait for `lock` when another thread closes the descriptor. */
struct cork {
    /* Set once by new_cork, under table_lock. */
    struct cork *next;
    /* Entries of `table` that refer to this socket. Under table_lock. */
    unsigned references;

    /* Held while bytes of this socket are copied or sent. Taken before table_lock. */
    pthread_mutex_t lock;
    /* Bytes held. Written under lock, read by anyone. Positive until sendmsg(2) has taken the last
     * held byte, so that no other piece overtakes the held pieces. */
    _Atomic unsigned length;
    /* Under lock. */
    unsigned char bytes[HELD_MAX];
};

/* The cork of each descriptor: NULL if unknown, &plain if the descriptor is no AF_UNIX stream
 * socket. Duplicates of a descriptor share one cork. Written under table_lock, read by anyone. */
static _Atomic(struct cork *) table[DESCRIPTORS_MAX];
static struct cork plain;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
/* Every struct cork that was ever made. Under table_lock. */
static struct cork *corks;
/* No descriptor from here on has an entry. Written under table_lock, read by anyone. */
static _Atomic int table_end;

/* --- The functions that this library replaces ---
 *
 * The library does not see sendmmsg(2), sendfile(2), splice(2), close_range(2), io_uring, stdio and
 * direct system calls on a socket, nor duplicates that the process has inherited or has passed to
 * another process. nbdkit uses none of them for its connections. Held pieces are lost if the
 * process is killed or calls execve(2). A signal handler must not send on a socket on which the
 * interrupted code sends, and a thread must not be cancelled while it sends.
 */
static struct {
    __typeof__(&send) send;
    __typeof__(&sendto) sendto;
    __typeof__(&sendmsg) sendmsg;
    __typeof__(&write) write;
    __typeof__(&writev) writev;
    __typeof__(&shutdown) shutdown;
    __typeof__(&close) close;
    __typeof__(&dup) dup;
    __typeof__(&dup2) dup2;
    __typeof__(&dup3) dup3;
    __typeof__(&fcntl) fcntl;
    __typeof__(&fcntl64) fcntl64;
} next;

static void find_next(void)
{
#define FIND(name) next.name = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
    FIND(send);
    FIND(sendto);
    FIND(sendmsg);
    FIND(write);
    FIND(writev);
    FIND(shutdown);
    FIND(close);
    FIND(dup);
    FIND(dup2);
    FIND(dup3);
    FIND(fcntl);
    FIND(fcntl64);
}

/* Constructors of other libraries may run before this library's constructor and call, for example,
 * close(). */
#define NEXT(name) (next.name ? next.name : (find_next(), next.name))

/* --- The table of descriptors --- */

static struct cork *find(int fd)
{
    return fd >= 0 && fd < DESCRIPTORS_MAX ? atomic_load(&table[fd]) : NULL;
}

static bool holds(int fd)
{
    struct cork *cork = find(fd);

    return cork && atomic_load(&cork->length) > 0;
}

/* Returns a cork without references, or NULL if there is no memory. The caller holds table_lock. */
static struct cork *new_cork(void)
{
    struct cork *cork;

    for (cork = corks; cork; cork = cork->next) {
        if (cork->references == 0)
            return cork;
    }
    cork = calloc(1, sizeof *cork);
    if (!cork)
        return NULL;
    pthread_mutex_init(&cork->lock, NULL);
    cork->next = corks;
    corks = cork;
    return cork;
}

/* Makes fd refer to the cork, unless it refers to one already. The caller holds table_lock. */
static void refer(int fd, struct cork *cork)
{
    if (find(fd))
        return;
    cork->references++;
    atomic_store(&table[fd], cork);
    if (fd >= atomic_load(&table_end))
        atomic_store(&table_end, fd + 1);
}

/* Returns the cork of fd, or &plain. Asks the kernel what fd is, if that is unknown. */
static struct cork *cork_of(int fd)
{
    struct cork *cork = find(fd);
    int domain, type, saved = errno;
    socklen_t size = sizeof(int);

    if (cork)
        return cork;
    /* An error is not remembered: the descriptor may be closed, and become a socket later. */
    if (fd < 0 || fd >= DESCRIPTORS_MAX ||
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0) {
        errno = saved;
        return &plain;
    }
    pthread_mutex_lock(&table_lock);
    cork = domain == AF_UNIX && type == SOCK_STREAM ? new_cork() : &plain;
    if (cork)
        refer(fd, cork);
    cork = find(fd);
    pthread_mutex_unlock(&table_lock);
    return cork ? cork : &plain;
}

/* Locks the cork of fd. Returns 1, or 0 if fd has none, or -1 with errno EAGAIN if another thread
 * is sending and flags contain MSG_DONTWAIT. */
static int lock_cork(int fd, int flags, struct cork **cork)
{
    for (;;) {
        *cork = find(fd);
        if (!*cork || *cork == &plain)
            return 0;
        if (!(flags & MSG_DONTWAIT)) {
            pthread_mutex_lock(&(*cork)->lock);
        } else if (pthread_mutex_trylock(&(*cork)->lock) != 0) {
            errno = EAGAIN;
            return -1;
        }
        /* Another thread may have closed fd, and the cork may belong to another socket now. */
        if (find(fd) == *cork)
            return 1;
        pthread_mutex_unlock(&(*cork)->lock);
    }
}

/* --- Sending --- */

/* Sends the held bytes and the piece, in one call if the socket takes all. Returns how many bytes
 * of the piece were sent (0 only if length is 0), or -1 with errno if none were. Held bytes that
 * were not sent stay held, so a later call sends them or fails too. The caller holds cork->lock. */
static ssize_t push(struct cork *cork, int fd, const void *piece, size_t length, int flags)
{
    for (;;) {
        size_t held = atomic_load(&cork->length);

        if (held == 0 && length == 0)
            return 0;
        struct iovec parts[2] = {{.iov_base = cork->bytes, .iov_len = held},
                                 {.iov_base = (void *)piece, .iov_len = length}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t sent = NEXT(sendmsg)(fd, &message, flags);
        if (sent < 0)
            return -1;
        size_t gone = (size_t)sent < held ? (size_t)sent : held;
        memmove(cork->bytes, cork->bytes + gone, held - gone);
        atomic_store(&cork->length, (unsigned)(held - gone));
        if ((size_t)sent > gone)
            return sent - (ssize_t)gone;
        /* Only held bytes have left, and the caller must not count them. If a signal was the
         * reason, it is taken for a signal that came before this call. */
    }
}

/* Sends the bytes that are held for fd. Returns 0, or -1 with errno. */
static int flush(int fd, int flags)
{
    struct cork *cork;

    if (!holds(fd))
        return 0;
    int r = lock_cork(fd, flags, &cork);
    if (r <= 0)
        return r;
    r = (int)push(cork, fd, NULL, 0, flags & (MSG_DONTWAIT | MSG_NOSIGNAL));
    pthread_mutex_unlock(&cork->lock);
    return r;
}

/* Sends what can be sent without waiting, for all descriptors. */
static void flush_all(void)
{
    int saved = errno;

    for (int fd = 0; fd < atomic_load(&table_end); fd++)
        flush(fd, MSG_DONTWAIT | MSG_NOSIGNAL);
    errno = saved;
}

/* There is no timeout. TCP sends a held piece after 200 ms at the latest, for programs that mark a
 * piece and then wait for their peer. nbdkit sends the pieces of a reply one after another, under
 * the write lock of the connection. A reply whose last piece is empty (the name of the default
 * export) ends without an unmarked send(), and an unmarked acknowledgement follows at once. If
 * nbdkit gives up a reply in the middle, it closes the connection. */
static ssize_t send_corked(int fd, const void *piece, size_t length, int flags)
{
    struct cork *cork;
    ssize_t result = lock_cork(fd, flags, &cork);

    if (result == 0)
        return NEXT(send)(fd, piece, length, flags);
    if (result < 0)
        return -1;
    unsigned held = atomic_load(&cork->length);
    if ((flags & MSG_MORE) && length <= PIECE_MAX && length <= HELD_MAX - held) {
        if (length > 0)
            memcpy(cork->bytes + held, piece, length);
        atomic_store(&cork->length, held + (unsigned)length);
        result = (ssize_t)length;
    } else {
        result = push(cork, fd, piece, length, flags);
    }
    pthread_mutex_unlock(&cork->lock);
    return result;
}

EXPORT ssize_t send(int fd, const void *piece, size_t length, int flags)
{
    /* MSG_OOB and the like are not for us. */
    if (flags & ~(MSG_MORE | MSG_DONTWAIT | MSG_NOSIGNAL))
        return flush(fd, flags) < 0 ? -1 : NEXT(send)(fd, piece, length, flags);
    if (flags & MSG_MORE ? cork_of(fd) == &plain : !holds(fd))
        return NEXT(send)(fd, piece, length, flags);
    return send_corked(fd, piece, length, flags);
}

EXPORT ssize_t write(int fd, const void *piece, size_t length)
{
    return holds(fd) ? send_corked(fd, piece, length, 0) : NEXT(write)(fd, piece, length);
}

/* The other calls send the held bytes first. Another thread may hold a piece between the two calls;
 * its send() runs at the same time as this call, so either order is right. */
EXPORT ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return flush(fd, 0) < 0 ? -1 : NEXT(writev)(fd, parts, count);
}

EXPORT ssize_t sendto(int fd, const void *piece, size_t length, int flags, __CONST_SOCKADDR_ARG to,
                      socklen_t size)
{
    return flush(fd, flags) < 0 ? -1 : NEXT(sendto)(fd, piece, length, flags, to, size);
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return flush(fd, flags) < 0 ? -1 : NEXT(sendmsg)(fd, message, flags);
}

/* --- The end of a connection --- */

/* Sends the held bytes before the descriptor or the connection goes. A blocking socket waits, as
 * send(2) would have waited. A non-blocking socket gets DRAIN_MS for each part that it takes; what
 * the peer does not read in this time is lost. The caller holds cork->lock. */
static void drain(struct cork *cork, int fd)
{
    struct pollfd room = {.fd = fd, .events = POLLOUT};

    while (push(cork, fd, NULL, 0, MSG_NOSIGNAL) < 0) {
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN || poll(&room, 1, DRAIN_MS) == 0)
            return;
    }
}

/* The descriptor is about to be closed. Waits for a thread that is sending on it. */
static void release(int fd)
{
    int saved = errno;
    struct cork *cork;
    bool locked = lock_cork(fd, 0, &cork) > 0;

    if (locked)
        drain(cork, fd);
    pthread_mutex_lock(&table_lock);
    struct cork *old = atomic_exchange(&table[fd], NULL);
    /* A duplicate of the descriptor may send later what could not be sent now. */
    if (old && --old->references == 0)
        atomic_store(&old->length, 0);
    pthread_mutex_unlock(&table_lock);
    if (locked)
        pthread_mutex_unlock(&cork->lock);
    errno = saved;
}

EXPORT int close(int fd)
{
    if (find(fd))
        release(fd);
    return NEXT(close)(fd);
}

EXPORT int shutdown(int fd, int how)
{
    int saved = errno;
    struct cork *cork;

    /* Does not wait for a thread that is sending: that thread is sending the held bytes anyway, and
     * shutdown(2) is the means to interrupt it. */
    if (how != SHUT_RD && holds(fd) && lock_cork(fd, MSG_DONTWAIT, &cork) > 0) {
        drain(cork, fd);
        pthread_mutex_unlock(&cork->lock);
    }
    errno = saved;
    return NEXT(shutdown)(fd, how);
}

/* --- Duplicates --- */

/* Makes `to`, a new duplicate of `from` (or -1), share the cork of `from`. Returns `to`. */
static int share(int from, int to)
{
    if (to < 0 || to >= DESCRIPTORS_MAX)
        return to;
    struct cork *cork = cork_of(from);
    if (cork == &plain)
        return to;
    pthread_mutex_lock(&table_lock);
    refer(to, cork);
    pthread_mutex_unlock(&table_lock);
    return to;
}

EXPORT int dup(int fd)
{
    return share(fd, NEXT(dup)(fd));
}

EXPORT int dup2(int from, int to)
{
    if (from == to)
        return NEXT(dup2)(from, to);
    if (find(to))
        release(to);
    return share(from, NEXT(dup2)(from, to));
}

EXPORT int dup3(int from, int to, int flags)
{
    if (from != to && find(to))
        release(to);
    return share(from, NEXT(dup3)(from, to, flags));
}

/* The third argument is an int or a pointer. glibc reads it as a pointer too. */
#define DEFINE_FCNTL(name) \
    EXPORT int name(int fd, int command, ...) \
    { \
        va_list arguments; \
        va_start(arguments, command); \
        void *argument = va_arg(arguments, void *); \
        va_end(arguments); \
        int r = NEXT(name)(fd, command, argument); \
        return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? share(fd, r) : r; \
    }
DEFINE_FCNTL(fcntl)
DEFINE_FCNTL(fcntl64)

/* --- The process --- */

/* Parent and child must not both send the bytes that are held at fork(2). These bytes are sent
 * before the fork, as far as that is possible without waiting. The rest belongs to the parent. */
static void before_fork(void)
{
    flush_all();
    pthread_mutex_lock(&table_lock);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&table_lock);
}

static void after_fork_in_child(void)
{
    for (struct cork *cork = corks; cork; cork = cork->next) {
        /* A thread that is not in the child may have held the lock. */
        pthread_mutex_init(&cork->lock, NULL);
        atomic_store(&cork->length, 0);
    }
    pthread_mutex_unlock(&table_lock);
}

/* Whether the entry of LD_PRELOAD names this library: the last parts of the paths are equal. */
static bool is_this_library(const char *entry, size_t length, const char *path)
{
    const char *slash = memrchr(entry, '/', length), *name = strrchr(path, '/');

    if (slash) {
        length -= (size_t)(slash + 1 - entry);
        entry = slash + 1;
    }
    name = name ? name + 1 : path;
    return strlen(name) == length && memcmp(name, entry, length) == 0;
}

/* Removes this library from LD_PRELOAD and keeps all other entries in their order. */
static void leave_environment(void)
{
    const char *list = getenv("LD_PRELOAD");
    Dl_info library;

    if (!list || !dladdr(&plain, &library))
        return;
    char *kept = calloc(1, strlen(list) + 1);
    if (!kept)
        return;
    for (size_t length; *list; list += length) {
        list += strspn(list, ": ");
        length = strcspn(list, ": ");
        if (length == 0 || is_this_library(list, length, library.dli_fname))
            continue;
        if (kept[0])
            strcat(kept, ":");
        strncat(kept, list, length);
    }
    if (kept[0])
        setenv("LD_PRELOAD", kept, 1);
    else
        unsetenv("LD_PRELOAD");
    free(kept);
}

__attribute__((constructor)) static void start(void)
{
    find_next();
    leave_environment();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

__attribute__((destructor)) static void end(void)
{
    flush_all();
}
