/* SPDX-License-Identifier: BSD-3-Clause */
/* libFuzzer: the disk layer.  The input is a backend, a cache mode, a size and a list of operations
 * of any offset and length.  They run on a file in memory (memfd_create(2), which is tmpfs), and on
 * a model: an array of bytes.  If AIODISK_FUZZ_DIRECTORY (environment) names a directory, the file
 * lies there: on ext4 the extents come from FIEMAP, elsewhere from lseek(2).
 *
 * Every operation succeeds, every byte that is read is the model's, a hole lies only where the
 * model has zeros, and at the end the file is the model and has the model's size.  Each bounce
 * buffer is filled with a byte that no operation writes, so bytes that no read has put there show
 * up.
 *
 * One thread makes the operations; the conformance suite has many.  Requests beyond the end are not
 * made: nbdkit refuses them before the plugin sees them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/backend.h"
#include "plugin/disk/image-table.h"
#include "plugin/disk/space.h"
#include "tests/fuzz/check.h"
#include "tests/lib/silent-log.h"

#define SMALL_SIZE (1u << 17)                 /* bytes of most images */
#define LARGE_SIZE ((uint64_t)2 * BOUNCE_MAX) /* added to the others: more than one buffer */
#define MAX_SIZE (LARGE_SIZE + SMALL_SIZE)    /* bytes */
#define MAX_OPERATIONS 64u
#define STALE 0xa5  /* in bounce buffers, never in data */
#define UNREAD 0x5a /* in a buffer before a read */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* One thread uses all of this. */
static unsigned char model[MAX_SIZE];
static uint64_t size; /* bytes of the model */
static int fd;        /* the file */
static struct image *image;
static struct space_policy policy;
static struct image_options options;
static struct room_config room;

/* --- What the disk layer needs --- */

int __real_bounce_get(struct bounce_share *share, struct bounce *bounce, size_t bytes);
int __wrap_bounce_get(struct bounce_share *share, struct bounce *bounce, size_t bytes);
int __wrap_bounce_get(struct bounce_share *share, struct bounce *bounce, size_t bytes)
{
    int r = __real_bounce_get(share, bounce, bytes);

    if (r == 0)
        memset(bounce->memory, STALE, bytes);
    return r;
}

/* --- The input --- */

static const uint8_t *input, *input_end;

/* The next bytes of the input as a number; 0 at its end. */
static uint32_t take(unsigned bytes)
{
    uint32_t n = 0;

    while (bytes-- > 0)
        n = n << 8 | (input < input_end ? *input++ : 0);
    return n;
}

/* An offset and a length within the image.  Most lengths are short. */
static void take_range(uint64_t *offset, uint64_t *length)
{
    *offset = take(3) % size;
    uint32_t n = take(3), longest = n & 0x800000 ? UINT32_MAX : 0x3fff;
    *length = 1 + (n & 0x7fffff & longest) % (size - *offset);
}

/* --- The operations --- */

static void new_image(void)
{
    char why[LOG_LINE_SIZE];
    struct image *again;

    /* A client that connects learns the size of now. */
    CHECK(image_get(fd, "image", &options, &again, why) == 0);
    if (image)
        image_put(image);
    image = again;
    CHECK(image->disk.ops->size(&image->disk) == size);
}

/* A buffer `shift` bytes behind a multiple of 4096.  ASan sees its end. */
static unsigned char *new_buffer(uint64_t length, unsigned shift, void **whole)
{
    CHECK(posix_memalign(whole, 4096, length + shift) == 0);
    return (unsigned char *)*whole + shift;
}

static void read_range(uint64_t offset, uint64_t length, unsigned shift)
{
    void *whole;
    unsigned char *buffer = new_buffer(length, shift, &whole);

    memset(whole, UNREAD, length + shift);
    CHECK(image->disk.ops->read(&image->disk, buffer, length, offset) == 0);
    CHECK(memcmp(buffer, model + offset, length) == 0);
    for (unsigned i = 0; i < shift; i++)
        CHECK(((unsigned char *)whole)[i] == UNREAD);
    free(whole);
}

static void write_range(uint64_t offset, uint64_t length, unsigned shift, unsigned flags)
{
    static unsigned char last;
    bool is_zero = flags & 2;
    void *whole;
    unsigned char *buffer = new_buffer(length, shift, &whole);

    last++;
    for (uint64_t i = 0; i < length; i++)
        buffer[i] = is_zero ? 0 : (unsigned char)(last + i * 7) % STALE;
    CHECK(space_write(&policy, &image->disk, buffer, length, offset, flags & 1) == 0);
    memcpy(model + offset, buffer, length);
    free(whole);
}

static void zero_range(uint64_t offset, uint64_t length, unsigned flags)
{
    int r = space_zero(&policy, &image->disk, length, offset,
                       flags & (ZERO_MAY_TRIM | ZERO_FAST | ZERO_FUA));

    CHECK(r == 0 || (r == -EOPNOTSUPP && flags & ZERO_FAST));
    if (r == 0)
        memset(model + offset, 0, length);
}

/* A byte that was discarded is the old one or zero; from then on it does not change. */
static void trim_range(uint64_t offset, uint64_t length, unsigned flags)
{
    void *whole;
    unsigned char *buffer = new_buffer(length, 0, &whole);

    CHECK(space_trim(&policy, &image->disk, length, offset, flags & ZERO_FUA) == 0);
    CHECK(image->disk.ops->read(&image->disk, buffer, length, offset) == 0);
    for (uint64_t i = 0; i < length; i++) {
        CHECK(buffer[i] == 0 || buffer[i] == model[offset + i]);
        model[offset + i] = buffer[i];
    }
    free(whole);
}

struct extents {
    uint64_t next, end; /* bytes */
    unsigned count;
};

static int check_extent(void *opaque, const struct extent *extent)
{
    struct extents *extents = opaque;
    uint64_t end = extent->offset + extent->length;

    CHECK(extent->offset == extents->next && extent->length > 0);
    CHECK(extents->next < extents->end);
    for (uint64_t i = extent->offset; extent->hole && i < end && i < size; i++)
        CHECK(model[i] == 0);
    extents->next = end;
    extents->count++;
    return 0;
}

static void list_extents(uint64_t offset, uint64_t length, bool only_one)
{
    struct extents extents = {offset, offset + length, 0};

    CHECK(image->disk.ops->extents(&image->disk, length, offset, only_one, check_extent,
                                   &extents) == 0);
    CHECK(only_one ? extents.count == 1 : extents.count > 0);
}

/* Somebody makes the file longer or shorter, and another client connects. */
static void resize(void)
{
    uint64_t now = 1 + take(3) % (size > LARGE_SIZE ? MAX_SIZE : SMALL_SIZE);

    CHECK(ftruncate(fd, now) == 0);
    if (now < size)
        memset(model + now, 0, size - now);
    size = now;
    new_image();
}

static void operate(void)
{
    unsigned op = take(1), flags = take(1), shift = flags & 0x80 ? flags >> 4 & 7 : 0;
    uint64_t offset, length;

    if (op % 9 == 8) {
        resize();
        return;
    }
    take_range(&offset, &length);
    switch (op % 9) {
    case 0:
    case 1:
        write_range(offset, length, shift, flags);
        break;
    case 2:
    case 3:
        read_range(offset, length, shift);
        break;
    case 4:
        zero_range(offset, length, flags);
        break;
    case 5:
        trim_range(offset, length, flags);
        break;
    case 6:
        list_extents(offset, length, flags & 1);
        break;
    case 7:
        if (flags & 1)
            image->disk.ops->prefetch(&image->disk, length, offset);
        else
            CHECK(image->disk.ops->flush(&image->disk) == 0);
        break;
    }
}

static void compare_file(void)
{
    static unsigned char found[MAX_SIZE];

    CHECK(lseek(fd, 0, SEEK_END) == (off_t)size);
    CHECK(pread(fd, found, size, 0) == (ssize_t)size);
    CHECK(memcmp(found, model, size) == 0);
}

/* A file that ends with its descriptor. */
static int new_file(void)
{
    const char *directory = getenv("AIODISK_FUZZ_DIRECTORY");

    return directory ? open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)
                     : memfd_create("aiodisk-fuzz", MFD_CLOEXEC);
}

/* The ways to carry requests: a number selects one.  Backend 2, libaio, is chosen rarely, because
 * the end of a context takes 40 ms in the kernel.
 */
static void configure(unsigned way)
{
    static unsigned backends;

    while (backend_name(backends))
        backends++;
    unsigned choice = way & 0xf;
    if (choice >= backends)
        choice %= backends < 2 ? backends : 2;
    room = (struct room_config){
        .backend = backend_name(choice), .max_threads = 4, .queue_depth = 8, .helping = true};
    if (way & 0x80 && strcmp(room.backend, "threads") == 0)
        room.helping = false;
    options = (struct image_options){
        .room = &room, .direct = way & 0x10, .locking = LOCKING_OFF, .advice = POSIX_FADV_NORMAL};
    unsigned space = take(1);
    policy.discard = space & 1;
    policy.detect_zeroes = (space >> 1) % 3;
    if (policy.discard == DISCARD_IGNORE && policy.detect_zeroes == DETECT_ZEROES_UNMAP)
        policy.detect_zeroes = DETECT_ZEROES_ON; /* config_complete refuses the combination */
    size = 1 + take(2) + (way & 0x20 ? SMALL_SIZE / 2 : 0) + (way & 0x40 ? LARGE_SIZE : 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    input = data;
    input_end = data + length;
    if (length < 4)
        return 0;
    configure(take(1));
    fd = new_file();
    CHECK(fd >= 0 && ftruncate(fd, size) == 0);
    memset(model, 0, sizeof model);
    new_image();
    for (unsigned i = 0; i < MAX_OPERATIONS && input < input_end; i++)
        operate();
    image_put(image);
    image = NULL;
    compare_file();
    close(fd);
    return 0;
}
