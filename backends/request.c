/* SPDX-License-Identifier: BSD-3-Clause */
/* What all backends have in common: the table of them, choosing one, "sync is submit + wait", the
 * continuation of short transfers and EINTR, and the way through the pool.
 *
 * Runs on the submitter's thread, on the loop thread (completions) and on the pool's workers (request_perform).
 * Knows no ring: each is one file behind struct backend_ops.
 */
#include "backends/backend.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "backends/list.h"

/* In the order in which backend=auto tries them.  Threads come first because they measured fastest, and they
 * cannot fail; README.md, "Which backend", has the figures, tests/bench-backend and fio-jobs/compare the commands.
 */
static const struct backend_ops *const table[] = {
    &threads_ops,
#ifdef HAVE_LIBURING
    &uring_ops,
#endif
#ifdef HAVE_LIBAIO
    &laio_ops,
#endif
};

#define BACKENDS (sizeof table / sizeof table[0])

const char *backend_name(size_t i)
{
    return i < BACKENDS ? table[i]->name : NULL;
}

/* --- Choosing one --- */

static int open_named(const char *name, const struct backend_config *config,
                      struct backend **backend, char *why, size_t why_size)
{
    for (size_t i = 0; i < BACKENDS; i++) {
        if (strcmp(table[i]->name, name) != 0)
            continue;
        int r = table[i]->open(config, backend);
        if (r < 0)
            snprintf(why, why_size, "backend=%s does not work here: %s", name, strerror(-r));
        else
            snprintf(why, why_size, "backend %s, as named", name);
        return r;
    }
    snprintf(why, why_size, "backend=%s: unknown, or not compiled in", name);
    return -EINVAL;
}

static void append(char *list, size_t size, const char *name, const char *what)
{
    size_t used = strlen(list);

    snprintf(list + used, size - used, "; %s: %s", name, what);
}

/* Opens the first that works.  Those behind it are not tried: to make and end a ring takes long. */
static int open_auto(const struct backend_config *config, struct backend **backend, char *why,
                     size_t why_size)
{
    const char *chosen = NULL;
    char others[256] = "";
    int r = -ENOTSUP;

    for (size_t i = 0; i < BACKENDS; i++) {
        if (chosen) {
            append(others, sizeof others, table[i]->name, "measured slower, not tried");
            continue;
        }
        r = table[i]->open(config, backend);
        if (r == 0)
            chosen = table[i]->name;
        else
            append(others, sizeof others, table[i]->name, strerror(-r));
    }
    if (chosen)
        snprintf(why, why_size,
                 "backend %s, chosen by auto: measured fastest with cache=%s of those that work%s",
                 chosen, config->direct ? "none" : "default", others);
    else
        snprintf(why, why_size, "no backend works here%s", others);
    return r;
}

int backend_open(const char *name, const struct backend_config *config, struct backend **backend,
                 char *why, size_t why_size)
{
    if (strcmp(name, "auto") == 0)
        return open_auto(config, backend, why, why_size);
    return open_named(name, config, backend, why, why_size);
}

void backend_close(struct backend *backend)
{
    backend->ops->close(backend);
}

/* --- The two ways in --- */

/* A backend_run caller that waits for the loop thread.  On its stack: `wake` is the last touch. */
struct waiter {
    sem_t wake;
    bool given_back; /* written before `wake` is posted */
    void *opaque;    /* the request's own, kept while the waiter uses its place */
};

static bool takes(const struct backend *backend, const struct request *request)
{
    if (request->op == REQUEST_CALL)
        return !backend->ops->takes;
    return !backend->ops->takes || backend->ops->takes(backend, request);
}

int backend_submit(struct backend *backend, struct request *request)
{
    request->backend = backend;
    request->result = 0;
    request->transferred = 0;
    if (!takes(backend, request))
        return request_submit_to_pool(request);
    return backend->ops->submit(backend, request);
}

static void wake_waiter(struct request *request)
{
    struct waiter *waiter = request->opaque;

    sem_post(&waiter->wake);
}

static int submit_and_wait(struct backend *backend, struct request *request)
{
    struct waiter waiter = {.opaque = request->opaque};

    sem_init(&waiter.wake, 0, 0);
    request->opaque = &waiter;
    request->done = wake_waiter;
    int r = backend->ops->submit(backend, request);
    if (r == 0) {
        while (sem_wait(&waiter.wake) < 0)
            assert(errno == EINTR);
        r = request->result;
    }
    sem_destroy(&waiter.wake);
    request->opaque = waiter.opaque;
    return waiter.given_back ? request_run_on_pool(request) : r;
}

int backend_run(struct backend *backend, struct request *request)
{
    request->backend = backend;
    request->result = 0;
    request->transferred = 0;
    if (!takes(backend, request))
        return request_run_on_pool(request);
    if (backend->ops->run)
        return backend->ops->run(backend, request);
    return submit_and_wait(backend, request);
}

void request_finish(struct request *request, int result)
{
    request->result = result;
    request->done(request);
}

void request_give_back(struct request *request)
{
    if (request->done == wake_waiter) {
        /* Its caller waits and can do it: by pool_run, which never fails for lack of threads. */
        struct waiter *waiter = request->opaque;
        waiter->given_back = true;
        sem_post(&waiter->wake);
        return;
    }
    int r = request_submit_to_pool(request);
    if (r < 0)
        request_finish(request, r);
}

/* --- One request, by blocking calls --- */

/* Moves the request on by n bytes. */
static void consume(struct request *request, uint64_t n)
{
    request->offset += n;
    request->length -= n;
    request->transferred += n;
    while (n > 0) {
        size_t part = request->iov->iov_len < n ? request->iov->iov_len : n;

        request->iov->iov_base = (char *)request->iov->iov_base + part;
        request->iov->iov_len -= part;
        n -= part;
        if (request->iov->iov_len == 0) {
            request->iov++;
            request->iovcnt--;
        }
    }
}

bool request_advance(struct request *request, ssize_t ret)
{
    if (ret == -EINTR)
        return false;
    if (ret < 0) {
        request->result = ret;
        return true;
    }
    request->result = 0;
    if (request->op != REQUEST_READ && request->op != REQUEST_WRITE)
        return true;
    assert((uint64_t)ret <= request->length);
    if (ret == 0 && request->length > 0) {
        request->result = request->op == REQUEST_READ ? -EIO : -ENOSPC;
        return true;
    }
    consume(request, ret);
    return request->length == 0;
}

static ssize_t ioctl_on_range(const struct request *request, unsigned long command)
{
    uint64_t range[2] = {request->offset, request->length};

    return ioctl(request->fd, command, range);
}

/* One try.  Returns a byte count or -errno. */
static ssize_t perform_once(struct request *r)
{
    ssize_t n = -1;

    switch (r->op) {
    case REQUEST_READ:
        n = preadv(r->fd, r->iov, r->iovcnt, r->offset);
        break;
    case REQUEST_WRITE:
        if (r->flags & REQUEST_FUA)
            n = pwritev2(r->fd, r->iov, r->iovcnt, r->offset, RWF_DSYNC);
        else
            n = pwritev(r->fd, r->iov, r->iovcnt, r->offset);
        /* A kernel or a seccomp filter without pwritev2(2). */
        if (n < 0 && errno == ENOSYS)
            errno = EOPNOTSUPP;
        break;
    case REQUEST_FDATASYNC:
        n = fdatasync(r->fd);
        break;
    case REQUEST_FALLOCATE:
        n = fallocate(r->fd, r->mode, r->offset, r->length);
        break;
    case REQUEST_DISCARD:
        n = ioctl_on_range(r, BLKDISCARD);
        break;
    case REQUEST_ZEROOUT:
        n = ioctl_on_range(r, BLKZEROOUT);
        break;
    case REQUEST_CALL:
        return r->call(r);
    }
    return n < 0 ? -errno : n;
}

int request_perform(struct request *request)
{
    while (!request_advance(request, perform_once(request)))
        ;
    return request->result;
}

/* --- The way through the pool --- */

static struct request *request_of(struct task *task)
{
    return (struct request *)((char *)task - offsetof(struct request, task));
}

static int perform_task(struct task *task)
{
    return request_perform(request_of(task));
}

static void finish_task(struct task *task)
{
    request_finish(request_of(task), task->result);
}

static enum pool_lane lane_of(const struct request *request)
{
    switch (request->op) {
    case REQUEST_READ:
        return POOL_FAST;
    case REQUEST_WRITE:
        return request->flags & REQUEST_FUA ? POOL_SLOW : POOL_FAST;
    case REQUEST_CALL:
        return request->flags & REQUEST_SLOW ? POOL_SLOW : POOL_FAST;
    default:
        return POOL_SLOW;
    }
}

static void prepare_task(struct request *request)
{
    request->task =
        (struct task){.run = perform_task, .done = finish_task, .lane = lane_of(request)};
}

int request_submit_to_pool(struct request *request)
{
    prepare_task(request);
    return pool_submit(request->backend->config.pool, &request->task);
}

int request_run_on_pool(struct request *request)
{
    prepare_task(request);
    return request->result = pool_run(request->backend->config.pool, &request->task);
}
