/* SPDX-License-Identifier: BSD-3-Clause */
/* libFuzzer: names of exports, as a client sends them.  The first byte of the input says how the
 * directory is served, and the rest is the name.
 *
 * Only the files that the mode allows are opened, whatever the name is; an error is a line; no
 * descriptor stays open.  The parts of an RBD image's name make up the name again.  The escaped
 * form of the name is printable UTF-8, and the name can be read from it.
 *
 * The names that exist are in entries[]; the input finds them by the seeds in corpus/exports.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>
#include <wchar.h>

#include "plugin/config.h"
#include "plugin/disk/rbd-disk.h"
#include "plugin/escape.h"
#include "plugin/exports.h"
#include "plugin/source.h"
#include "tests/fuzz/stubs.h"

#define LONGEST 4096u /* bytes of a name; NBD allows as many */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char base[64]; /* removed at the end of the process */
static struct exports_directory directory = {.fd = -1};
static int directory_fd;

/* The files, and the first mode of `order` in which they may be opened. */
static const enum symlinks_mode order[] = {SYMLINKS_NONE, SYMLINKS_INSIDE, SYMLINKS_ANYWHERE};
static struct {
    const char *path; /* below `base` */
    unsigned from;    /* index in `order` */
    ino_t inode;
} files[] = {
    {"d/disk.img", 0, 0},  {"d/a\nb", 0, 0},  {"d/\xc3\xa4@1", 0, 0},
    {"d/sub/inner", 1, 0}, {"outside", 2, 0},
};
static const struct {
    const char *path, *to;
} links[] = {
    {"d/in", "sub/inner"}, {"d/out", "../outside"},
    {"d/round", "round"},  {"d/self", "."},
    {"d/up", ".."},        {"d/chain", "out"},
    {"d/gone", "nothing"}, {"d/proc", "/proc/self/fd/0"},
};

static char *below(const char *path)
{
    static char whole[512];

    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return whole;
}

static void remove_base(void)
{
    for (unsigned i = 0; i < sizeof files / sizeof files[0]; i++)
        unlink(below(files[i].path));
    for (unsigned i = 0; i < sizeof links / sizeof links[0]; i++)
        unlink(below(links[i].path));
    unlink(below("d/fifo"));
    rmdir(below("d/sub"));
    rmdir(below("d"));
    rmdir(base);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *parent = getenv("TMPDIR");
    struct stat st;

    CHECK(setlocale(LC_CTYPE, "C.UTF-8"));
    snprintf(base, sizeof base, "%.40s/aiodisk-fuzz.XXXXXX", parent ? parent : "/var/tmp");
    CHECK(mkdtemp(base));
    atexit(remove_base);
    CHECK(mkdir(below("d"), 0700) == 0 && mkdir(below("d/sub"), 0700) == 0);
    for (unsigned i = 0; i < sizeof files / sizeof files[0]; i++) {
        int fd = open(below(files[i].path), O_CREAT | O_WRONLY, 0600);
        CHECK(fd >= 0 && fstat(fd, &st) == 0);
        files[i].inode = st.st_ino;
        close(fd);
    }
    for (unsigned i = 0; i < sizeof links / sizeof links[0]; i++)
        CHECK(symlink(links[i].to, below(links[i].path)) == 0);
    CHECK(mkfifo(below("d/fifo"), 0600) == 0);
    directory.name = strdup(below("d"));
    directory_fd = open(directory.name, O_RDONLY | O_DIRECTORY);
    CHECK(directory_fd >= 0);
    CHECK(config_set("rbd-pool", "pool/space") == 0 && config_complete() == 0);
    return 0;
}

/* The number that the next descriptor gets: the same before and after, if none stays open. */
static int next_descriptor(void)
{
    int fd = dup(STDERR_FILENO);

    CHECK(fd >= 0);
    close(fd);
    return fd;
}

static void check_file(const char *name, unsigned mode)
{
    char why[LOG_LINE_SIZE] = "";
    struct stat st;
    bool is_allowed = false;
    int next = next_descriptor();

    directory.symlinks = order[mode];
    int fd = exports_open_one(&directory, name, why);
    if (fd >= 0) {
        CHECK(fstat(fd, &st) == 0 && S_ISREG(st.st_mode));
        for (unsigned i = 0; i < sizeof files / sizeof files[0]; i++)
            is_allowed |= st.st_ino == files[i].inode && files[i].from <= mode;
        CHECK(is_allowed);
        CHECK(fcntl(fd, F_GETFL) & O_PATH);
        CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        close(fd);
    } else {
        CHECK(fd > -4096);
        CHECK(why[0] != '\0' && memchr(why, '\0', sizeof why));
    }
    CHECK(next_descriptor() == next);
}

/* --- RBD --- */

static const char *asked; /* the name of the export */

/* In place of the function that opens the image in the cluster. */
int __wrap_rbd_disk_get(const struct ceph_name *name, const struct rbd_options *options,
                        struct disk **disk, char *why);
int __wrap_rbd_disk_get(const struct ceph_name *name, const struct rbd_options *options,
                        struct disk **disk, char *why)
{
    char again[LONGEST + 1];

    CHECK(strcmp(name->pool, "pool") == 0 && strcmp(name->space, "space") == 0);
    CHECK(name->image[0] && !strchr(name->image, '@'));
    CHECK(!name->snapshot || name->snapshot[0]);
    snprintf(again, sizeof again, "%s%s%s", name->image, name->snapshot ? "@" : "",
             name->snapshot ? name->snapshot : "");
    CHECK(strcmp(again, asked) == 0);
    return -ENOENT;
}

static void check_rbd(const char *name)
{
    const struct source_options options = {.readonly = true};
    char why[LOG_LINE_SIZE] = "";
    struct disk *disk;

    asked = name;
    CHECK(rbd_source.open(name, &options, &disk, why) == -ENOENT);
}

/* --- The escaped form --- */

static unsigned hex(char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

/* Undoes escape_text. */
static void unescape(char *out, const char *s)
{
    static const char named[] = "\n\r\t\\", names[] = "nrt\\";

    while (*s) {
        const char *found;

        if (*s != '\\') {
            *out++ = *s++;
        } else if (s[1] == 'x') {
            CHECK(s[2] && s[3]);
            *out++ = hex(s[2]) << 4 | hex(s[3]);
            s += 4;
        } else {
            CHECK(s[1] && (found = strchr(names, s[1])));
            *out++ = named[found - names];
            s += 2;
        }
    }
    *out = '\0';
}

static void check_escape(const char *name, unsigned room)
{
    char whole[LONGEST * ESCAPE_MAX + 1], part[LONGEST * ESCAPE_MAX + 1];
    char again[LONGEST * ESCAPE_MAX + 1];

    escape_text(whole, sizeof whole, name);
    if (whole[0])
        check_line(whole);
    CHECK(mbstowcs(NULL, whole, 0) != (size_t)-1);
    unescape(again, whole);
    CHECK(strcmp(again, name) == 0);
    escape_text(part, room, name);
    CHECK(strlen(part) < room && strncmp(part, whole, strlen(part)) == 0);
    CHECK(strlen(whole) < room || strlen(part) + ESCAPE_MAX >= room);
    CHECK(mbstowcs(NULL, part, 0) != (size_t)-1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[LONGEST + 1];

    if (size < 1 || size > LONGEST)
        return 0;
    memcpy(name, data + 1, size - 1);
    name[size - 1] = '\0';
    directory.fd = data[0] & 0x80 ? directory_fd : -1;
    check_file(name, data[0] % 3);
    check_rbd(name);
    check_escape(name, 1 + data[0]);
    return 0;
}
