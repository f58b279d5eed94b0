/* SPDX-License-Identifier: BSD-3-Clause */
/* One suite that runs over every backend.  The names come from backend_name, so a new backend is
 * tested without a change here.
 *
 * Many threads read and write at once, and the test compares the data with a model, while the
 * wrapped functions of backend-faults.h disturb what the kernel returns.
 */
#include <signal.h>
#include <sys/resource.h>

#include "tests/unit/backend-rig.h"

/* --- Data against the model: many threads at once, each in its own part of the file --- */

#define WRITERS 16u
#define PART (FILE_SIZE / WRITERS)

struct writer {
    struct bench *b;
    unsigned index, operations;
    pthread_t thread;
};

static void *write_and_read(void *opaque)
{
    struct writer *w = opaque;
    struct bench *b = w->b;
    unsigned seed = w->index + 1;
    unsigned char *data = blocks_new(16);

    for (unsigned i = 0; i < w->operations; i++) {
        unsigned count = 1 + (unsigned)rand_r(&seed) % 16;
        uint64_t offset =
            w->index * PART + (unsigned)rand_r(&seed) % (PART / BLOCK - count + 1) * BLOCK;
        uint64_t length = (uint64_t)count * BLOCK;
        switch (rand_r(&seed) % 5) {
        case 0:
            CHECK(simple(b, REQUEST_FDATASYNC, 0, 0, 0) == 0);
            break;
        case 1:
            CHECK(simple(b, REQUEST_FALLOCATE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
                         length) == 0);
            memset(b->model + offset, 0, length);
            break;
        case 2:
        case 3:
            for (uint64_t j = 0; j < length; j++)
                data[j] = (unsigned char)rand_r(&seed);
            memcpy(b->model + offset, data, length);
            CHECK(transfer(b, REQUEST_WRITE, rand_r(&seed) % 8 ? 0 : REQUEST_FUA, data, length,
                           offset) == 0);
            break;
        default:
            memset(data, 0xee, length);
            CHECK(transfer(b, REQUEST_READ, 0, data, length, offset) == 0);
            CHECK(memcmp(data, b->model + offset, length) == 0);
            break;
        }
    }
    free(data);
    return NULL;
}

static void check_data(struct bench *b, unsigned operations)
{
    struct writer writers[WRITERS];
    unsigned char *data = blocks_new(PART / BLOCK);

    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){.b = b, .index = i, .operations = ROUNDS(operations)};
        CHECK(pthread_create(&writers[i].thread, NULL, write_and_read, &writers[i]) == 0);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(writers[i].thread, NULL);
    for (unsigned i = 0; i < WRITERS; i++) {
        CHECK(pread(b->fd, data, PART, i * PART) == PART);
        CHECK(memcmp(data, b->model + i * PART, PART) == 0);
    }
    free(data);
}

/* Data are right through the page cache and with O_DIRECT. */
static void data_are_right(void **state)
{
    struct bench b;
    name = *state;
    for (int direct = 0; direct < 2; direct++) {
        open_backend(&b, 128, direct);
        check_data(&b, 200);
        close_backend(&b);
    }
}

/* Rings of 1-4 entries and 16 writers: requests wait for room, and none fails. */
static void a_full_ring_fails_nothing(void **state)
{
    struct bench b;
    name = *state;
    for (unsigned depth = 1; depth <= 4; depth++) {
        open_backend(&b, depth, true);
        check_data(&b, 100);
        close_backend(&b);
    }
}

/* Each pair of disturbances, at several rates, changes neither data nor results. */
static void faults_are_invisible(void **state)
{
    static const int errors[] = {0, -EINTR, -EAGAIN, -ECANCELED};
    static const int submit_errors[] = {0, -EAGAIN, -EBUSY, -EINTR, -ENOMEM, -EPERM};
    struct bench b;
    name = *state;
    for (unsigned i = 0; i < 4; i++)
        for (unsigned j = 0; j < 6; j++) {
            open_backend(&b, 16, true);
            bool threads = strcmp(name, "threads") == 0;
            atomic_store(&faults.result_error, errors[i]);
            atomic_store(&faults.submit_error, submit_errors[j]);
            atomic_store(&faults.submit_every, 2 + (i + j) % 4);
            atomic_store(&faults.result_every, 2 + (i + j + 1) % 4);
            check_data(&b, 40);
            CHECK(atomic_load(&faults.results) > 10 &&
                  (threads || atomic_load(&faults.submissions) > 0));
            close_backend(&b);
        }
}

/* The kernel refuses every submission, for lack of room or for good: the pool carries every
 * request.
 */
static void submission_always_refused(void **state)
{
    static const int submit_errors[] = {-EAGAIN, -EPERM};
    struct bench b;
    name = *state;
    for (unsigned i = 0; i < 2; i++) {
        open_backend(&b, 16, true);
        atomic_store(&faults.submit_error, submit_errors[i]);
        atomic_store(&faults.submit_every, 1);
        check_data(&b, 40);
        close_backend(&b);
    }
}

/* io_uring's flag for work that is left can be set although none is.  The loop thread does not call
 * the kernel again and again because of it, and goes on to submit.
 */
static void a_flag_without_work(void **state)
{
    enum { READS = 100 };
    unsigned char *data = blocks_new(1);
    struct bench b;
    name = *state;
    open_backend(&b, 16, true);
    atomic_store(&faults.flag_stays, true);
    for (unsigned i = 0; i < READS; i++)
        CHECK(transfer(&b, REQUEST_READ, 0, data, BLOCK, i * BLOCK) == 0);
    CHECK(atomic_load(&faults.get_events) < 10 * READS);
    close_backend(&b);
    free(data);
}

/* --- Errors --- */

/* The kernel's errors reach the submitter: past the end, file size limit, bad descriptor, unknown
 * ioctl.
 */
static void errors_arrive(void **state)
{
    struct bench b;
    struct rlimit old, limit;
    name = *state;
    for (int direct = 0; direct < 2; direct++) {
        unsigned char *data = blocks_new(4);
        open_backend(&b, 16, direct);
        memset(data, 1, 4 * BLOCK);
        CHECK(transfer(&b, REQUEST_READ, 0, data, 4 * BLOCK, FILE_SIZE - 2 * BLOCK) == -EIO);
        CHECK(transfer(&b, REQUEST_READ, 0, data, BLOCK, FILE_SIZE) == -EIO);
        CHECK(transfer(&b, REQUEST_WRITE, 0, data, 4 * BLOCK, FILE_SIZE - 4 * BLOCK) == 0);
        CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
        limit = (struct rlimit){.rlim_cur = FILE_SIZE, .rlim_max = old.rlim_max};
        CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        CHECK(transfer(&b, REQUEST_WRITE, 0, data, 4 * BLOCK, FILE_SIZE - 2 * BLOCK) == -EFBIG);
        CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
        int good = b.fd;
        b.fd = -1;
        CHECK(transfer(&b, REQUEST_READ, 0, data, BLOCK, 0) == -EBADF);
        CHECK(simple(&b, REQUEST_FDATASYNC, 0, 0, 0) == -EBADF);
        b.fd = good;
        CHECK(simple(&b, REQUEST_DISCARD, 0, 0, BLOCK) == -ENOTTY); /* fd is a regular file */
        free(data);
        close_backend(&b);
    }
}

/* backend_open returns the error of making the ring, says so in `why`, and leaves no descriptor
 * behind.  The default backend opens where the ring does not.
 */
static void a_ring_that_cannot_be_made(void **state)
{
    static const int errors[] = {-EPERM, -ENOSYS, -ENOMEM, -EMFILE, -EAGAIN, -EINVAL};
    struct bench b;
    char why[256];
    name = *state;
    if (strcmp(name, "threads") == 0)
        return; /* makes no ring */
    open_backend(&b, 16, true);
    unsigned before = descriptors();
    for (unsigned i = 0; i < 6; i++) {
        struct backend_config config = b.backend->config;
        struct backend *other = NULL;
        atomic_store(&faults.setup_error, errors[i]);
        CHECK(backend_open(name, &config, &other, why, sizeof why) == errors[i]);
        CHECK(strstr(why, name) && strstr(why, strerror(-errors[i])) && !other);
        CHECK(backend_open(backend_name(0), &config, &other, why, sizeof why) == 0);
        backend_close(other);
        CHECK(descriptors() == before);
    }
    close_backend(&b);
}

/* A name that is not in the table is -EINVAL; "auto" is no backend's name. */
static void unknown_names(void **state)
{
    struct bench b;
    struct backend *other;
    char why[256];
    (void)state;
    name = "threads";
    open_backend(&b, 16, true);
    const struct backend_config *config = &b.backend->config;
    CHECK(backend_open("rings", config, &other, why, sizeof why) == -EINVAL &&
          strstr(why, "rings"));
    CHECK(backend_open("auto", config, &other, why, sizeof why) == -EINVAL && strstr(why, "auto"));
    close_backend(&b);
}

int main(void)
{
    static const struct backend_case cases[] = {
        {"data are right", data_are_right},
        {"a full ring fails nothing", a_full_ring_fails_nothing},
        {"faults are invisible", faults_are_invisible},
        {"submission always refused", submission_always_refused},
        {"a flag without work", a_flag_without_work},
        {"errors arrive", errors_arrive},
        {"a ring that cannot be made", a_ring_that_cannot_be_made},
    };
    const struct CMUnitTest others[] = {cmocka_unit_test(unknown_names)};

    signal(SIGXFSZ, SIG_IGN);
    int failed = run_over_backends(cases, sizeof cases / sizeof cases[0]);
    return failed + cmocka_run_group_tests(others, NULL, NULL);
}
