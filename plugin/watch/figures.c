/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of figures.  See figures.h.
 *
 * Runs on nbdkit's threads when clients connect and disconnect, and on the observer's thread.
 * Never blocks on a disk, and is never entered by a request.
 */
#include "plugin/watch/figures.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/disk/disk.h"
#include "plugin/disk/health.h"

const struct figures_error figures_errors[FIGURES_ERRORS] = {
    {EIO, "EIO"},
    {ENOSPC, "ENOSPC"},
    {EPERM, "EPERM"},
    {EROFS, "EROFS"},
    {ENOMEM, "ENOMEM"},
    {EINVAL, "EINVAL"},
    {EDQUOT, "EDQUOT"},
    {EFBIG, "EFBIG"},
    {ESHUTDOWN, "ESHUTDOWN"},
    {EOPNOTSUPP, "EOPNOTSUPP"},
};

const char *const figures_op_names[CLIENT_OPS] = {
    [CLIENT_READ] = "read",       [CLIENT_WRITE] = "write", [CLIENT_FLUSH] = "flush",
    [CLIENT_TRIM] = "trim",       [CLIENT_ZERO] = "zero",   [CLIENT_CACHE] = "cache",
    [CLIENT_EXTENTS] = "extents",
};

static pthread_mutex_t figures_lock = PTHREAD_MUTEX_INITIALIZER;

/* Under figures_lock for adding; read by any thread. */
static _Atomic(struct figures *) first;

/* Under figures_lock. */
static struct figures *last;
static unsigned count;

/* The number of bytes of the UTF-8 character at `s`, or 0 when there is none (RFC 3629). */
static unsigned utf8_length(const unsigned char *s)
{
    unsigned length = s[0] < 0x80                    ? 1
                      : s[0] >= 0xc2 && s[0] <= 0xdf ? 2
                      : s[0] >= 0xe0 && s[0] <= 0xef ? 3
                      : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4
                                                     : 0;

    for (unsigned i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    bool is_overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
    bool is_out_of_range = (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf4 && s[1] > 0x8f);
    return is_overlong || is_out_of_range ? 0 : length;
}

/* The value of a label between its quotes: backslash, quote and newline are escaped, as the text
 * format demands.  The format is UTF-8, so a byte that is not becomes \xHH, whose backslash is
 * escaped too.
 */
static char *escape_label(const char *name)
{
    char *label = malloc(strlen(name) * 5 + 1), *to = label;

    if (!label)
        return NULL;
    for (const unsigned char *s = (const unsigned char *)name; *s;) {
        unsigned length = utf8_length(s);

        if (*s == '\\' || *s == '"' || *s == '\n') {
            *to++ = '\\';
            *to++ = *s == '\n' ? 'n' : (char)*s;
            s++;
        } else if (length == 0) {
            to += sprintf(to, "\\\\x%02x", *s++);
        } else {
            memcpy(to, s, length);
            to += length;
            s += length;
        }
    }
    *to = '\0';
    return label;
}

/* Under figures_lock. */
static struct figures *find(const char *label)
{
    struct figures *f = first;

    while (f && strcmp(f->label, label) != 0)
        f = f->next;
    return f;
}

/* Under figures_lock.  Takes over the label. */
static struct figures *add(char *label)
{
    struct figures *f = calloc(1, sizeof *f);

    if (f)
        f->tally = tally_new(FIGURES_END);
    if (!f || !f->tally) {
        free(f);
        free(label);
        return NULL;
    }
    f->label = label;
    if (last)
        last->next = f;
    else
        first = f;
    last = f;
    count++;
    return f;
}

struct figures *figures_get(const char *export_name)
{
    char *label = escape_label(export_name);

    if (!label)
        return NULL;
    pthread_mutex_lock(&figures_lock);
    struct figures *f = find(label);
    if (!f && count >= FIGURES_MAX) {
        free(label);
        label = strdup(FIGURES_OTHERS);
        f = label ? find(label) : NULL;
    }
    if (f)
        free(label);
    else if (label)
        f = add(label);
    pthread_mutex_unlock(&figures_lock);
    return f;
}

struct figures *figures_of_tally(const struct tally *tally)
{
    struct figures *f;

    pthread_mutex_lock(&figures_lock);
    for (f = first; f && f->tally != tally;)
        f = f->next;
    pthread_mutex_unlock(&figures_lock);
    return f;
}

void figures_note_disk(struct figures *figures, const struct disk *disk)
{
    atomic_store(&figures->backend, disk->backend);
    atomic_store(&figures->direct, disk->direct);
    atomic_store(&figures->failed, disk->ops->health(disk) < 0);
    atomic_store(&figures->size, disk->ops->size(disk));
}

struct figures *figures_first(void)
{
    return first;
}

void figures_free_all(void)
{
    struct figures *f = first, *next;

    for (; f; f = next) {
        next = f->next;
        tally_free(f->tally);
        free(f->label);
        free(f);
    }
    first = last = NULL;
    count = 0;
}
