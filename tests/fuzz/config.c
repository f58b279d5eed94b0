/* SPDX-License-Identifier: BSD-3-Clause */
/* libFuzzer: the parameters.  The input is lines of KEY=VALUE, which go to config_set in order
 * until the first error, as in nbdkit; config_complete follows.
 *
 * An error is exactly one line.  Parameters that are accepted are within their bounds and name one
 * source, and the parts of an RBD name are not empty and make up the name again.
 *
 * The file includes the parser, because each input must start from the parser's first state.  No
 * disk is opened.
 */
#include "tests/fuzz/stubs.h"

/* clang-format off: the parser first needs its own headers */
#include "plugin/config.c"
#include "plugin/rbd-source.c"
/* clang-format on */

#define LONGEST 8192u /* bytes of an input */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct config first_config;
static struct ceph_name first_name;

static void start_anew(void)
{
    static bool is_known;

    if (!is_known) {
        first_config = config;
        first_name = given;
        is_known = true;
    }
    config = first_config;
    given = first_name;
    needs_source = NULL;
    for (int i = 0; i < WORD_KEYS; i++) {
        word_parameters[i].given = false;
        word_parameters[i].word = 0;
    }
    errors = 0;
}

/* The parts of a name that was accepted are the name. */
static void check_rbd(const char *value, bool whole_pool)
{
    char again[LONGEST + 8];

    CHECK(given.pool[0] && !given.image == whole_pool);
    CHECK(whole_pool || (given.image[0] && !strchr(given.image, '/')));
    CHECK(!given.snapshot || given.snapshot[0]);
    snprintf(again, sizeof again, "%s%s%s%s%s%s%s", given.pool, given.space[0] ? "/" : "",
             given.space, given.image ? "/" : "", given.image ? given.image : "",
             given.snapshot ? "@" : "", given.snapshot ? given.snapshot : "");
    CHECK(strcmp(again, value) == 0);
}

/* Sets one parameter.  Returns config_set's result. */
static int set_line(char *line)
{
    char *value = strchr(line, '=');

    if (!value)
        return 0;
    *value++ = '\0';
    int r = config_set(line, value);
    CHECK(r == 0 || r == -1);
    CHECK(errors == (r < 0));
    if (r == 0 && strcmp(line, "rbd") == 0)
        check_rbd(value, false);
    if (r == 0 && strcmp(line, "rbd-pool") == 0)
        check_rbd(value, true);
    return r;
}

static void check_accepted(void)
{
    unsigned sources = 0;
    bool is_backend = false;

    for (unsigned i = 0; source_at(i); i++)
        sources += source_at(i)->is_given();
    CHECK(sources == 1);
    CHECK(!!config.file + !!config.directory.name + (config.fd >= 0) + !!text == 1);
    CHECK(!config.file || config.file[0] == '/');
    CHECK(config.directory.fd < 0 || config.directory.fd > STDERR_FILENO);
    CHECK(config.fd < 0 || config.fd > STDERR_FILENO);
    for (size_t i = 0; backend_name(i); i++)
        is_backend |= strcmp(config.backend, backend_name(i)) == 0;
    CHECK(is_backend);
    CHECK(config.max_threads >= 1 && config.max_threads <= POOL_MAX_THREADS);
    CHECK(config.min_threads <= config.max_threads);
    CHECK(config.queue_depth >= 1 && config.queue_depth <= MAX_QUEUE_DEPTH);
    CHECK(config.slow_request_ns <= MAX_SLOW_S * NS_PER_S);
    CHECK(!config.metrics_server || (config.metrics && !strpbrk(config.metrics_server, "\\\"\n")));
    CHECK(given.timeout_s >= 1 && given.timeout_s <= MAX_TIMEOUT_S);
    CHECK(config.dispatch != DISPATCH_POOL || strcmp(config.backend, "threads") == 0);
    CHECK(strcmp(config_cache_name(), "default") == 0 || strcmp(config_cache_name(), "none") == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char lines[LONGEST + 1], *rest = lines;
    int r = 0;

    if (size > LONGEST)
        return 0;
    memcpy(lines, data, size);
    lines[size] = '\0';
    start_anew();
    while (r == 0 && rest)
        r = set_line(strsep(&rest, "\n"));
    if (r == 0) {
        r = config_complete();
        CHECK(r == 0 || r == -1);
        CHECK(errors == (r < 0));
        if (r == 0)
            check_accepted();
    }
    config_free();
    return 0;
}
