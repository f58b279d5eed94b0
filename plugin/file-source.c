/* SPDX-License-Identifier: BSD-3-Clause */
/* Files and block devices as a source: file=, dir=, fd= and dirfd=.  See source.h and exports.h.
 *
 * Runs on nbdkit's main thread at start, and on nbdkit's threads when a client connects or lists
 * the exports.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin/config.h"
#include "plugin/disk/image-table.h"
#include "plugin/exports.h"
#include "plugin/source.h"

static bool is_given(void)
{
    return config.file || config.directory.name || config.fd >= 0;
}

static int check(char why[LOG_LINE_SIZE])
{
    /* file=DIRECTORY means dir=DIRECTORY. */
    if (config.file && exports_is_directory(config.file)) {
        config.directory.name = config.file;
        config.file = NULL;
    }
    return config.directory.name ? exports_check_directory(&config.directory, why)
           : config.fd >= 0      ? exports_check_fd(config.fd, why)
                                 : exports_check_file(config.file, why);
}

static bool has_names(void)
{
    return config.directory.name;
}

struct listing {
    int (*add)(void *opaque, const char *name, const char *description);
    void *opaque;
};

static int add_export(void *opaque, const char *name, const struct stat *st)
{
    const struct listing *listing = opaque;
    char description[64] = "block device";

    if (S_ISREG(st->st_mode))
        snprintf(description, sizeof description, "file, %lld bytes", (long long)st->st_size);
    return listing->add(listing->opaque, name, description);
}

static int list(int (*add)(void *opaque, const char *name, const char *description), void *opaque,
                char why[LOG_LINE_SIZE])
{
    struct listing listing = {add, opaque};

    return exports_list(&config.directory, add_export, &listing, why);
}

/* Opens what the client asked for.  Returns a descriptor for image_get and stores the name for
 * messages; or returns -errno with the reason in `why`.  The descriptor is config.fd itself with
 * fd=, which must stay open, and otherwise an O_PATH descriptor.
 */
static int open_export(const char *export_name, const char **name, char why[LOG_LINE_SIZE])
{
    if (config.directory.name) {
        *name = export_name;
        return exports_open_one(&config.directory, *name, why);
    }
    *name = config.file ? config.file : nbdkit_printf_intern("fd=%d", config.fd);
    if (!*name)
        return -ENOMEM;
    return config.file ? exports_open_file(config.file, why) : config.fd;
}

static int open_disk(const char *export_name, const struct source_options *options,
                     struct disk **disk, char why[LOG_LINE_SIZE])
{
    const char *name;
    struct image *image;
    struct image_options image_options = {
        .room = options->room,
        .readonly = options->readonly,
        .direct = config.cache == CACHE_NONE,
        .locking = config.locking,
        .advice = config.advice,
        .inherited = config.fd >= 0,
        .many = config.directory.name,
    };

    int path_fd = open_export(export_name, &name, why);
    if (path_fd < 0)
        return path_fd;
    image_options.tally = options->tally.find(options->tally.opaque);
    int r = image_get(path_fd, name, &image_options, &image, why);
    if (path_fd != config.fd)
        close(path_fd);
    if (r == 0)
        *disk = &image->disk;
    return r;
}

const struct source file_source = {
    .is_given = is_given,
    .check = check,
    .has_names = has_names,
    .list = list,
    .open = open_disk,
};
