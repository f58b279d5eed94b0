/* SPDX-License-Identifier: BSD-3-Clause */
/* Wrapped functions that open a file and tell its attributes, and answer as other kernels,
 * filesystems and devices would, or fail.  For disk-open.c and disk-answers.c; the functions are in
 * the linker's --wrap options of meson.build.
 *
 * A test sets fields of `file` while no image is opened and no request is in flight.  The wrappers
 * run on whichever thread makes the call.
 */
#ifndef AIODISK_FAKE_FILE_H
#define AIODISK_FAKE_FILE_H

#include "tests/lib/disk-test.h"

#include <sys/stat.h>
#include <sys/statfs.h>

/* 0 or false: the kernel's own answer. */
static struct {
    int open_flags, open_errno; /* of an image's open(2) with these flags */
    int statx_errno, fstat_errno;
    bool block;                   /* the file is a block device */
    bool no_dioalign, no_direct;  /* statx(2) has no answer; or: no direct I/O */
    unsigned dio_offset, dio_mem; /* of statx(2) */
    blksize_t preferred;          /* st_blksize */
    long fs_type;                 /* of statfs(2) */
    long fs_block;                /* of statfs(2) */
} file;

int __real_open64(const char *name, int flags, int mode);
int __wrap_open64(const char *name, int flags, int mode);
int __wrap_open64(const char *name, int flags, int mode)
{
    bool is_image = strncmp(name, "/proc/self/fd/", 14) == 0;
    if (file.open_errno && is_image && (flags & file.open_flags) == file.open_flags)
        return answer(file.open_errno);
    return __real_open64(name, flags, mode);
}

/* The same, as _FORTIFY_SOURCE calls it. */
int __wrap___open64_2(const char *name, int flags);
int __wrap___open64_2(const char *name, int flags)
{
    return __wrap_open64(name, flags, 0);
}

int __real_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *name, int flags, unsigned mask, struct statx *stx)
{
    int r = __real_statx(fd, name, flags, mask, stx);
    if (file.block)
        stx->stx_mode = S_IFBLK | 0600;
#ifdef STATX_DIOALIGN
    if (file.no_dioalign)
        stx->stx_mask &= ~(unsigned)STATX_DIOALIGN;
    if (file.no_direct || (file.dio_offset && mask & STATX_DIOALIGN)) {
        stx->stx_mask |= STATX_DIOALIGN;
        stx->stx_dio_offset_align = file.dio_offset;
        stx->stx_dio_mem_align = file.dio_mem;
    }
#endif
    return file.statx_errno ? answer(file.statx_errno) : r;
}

int __real_fstat64(int fd, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st)
{
    int r = __real_fstat64(fd, st);
    if (file.preferred)
        st->st_blksize = file.preferred;
    return file.fstat_errno ? answer(file.fstat_errno) : r;
}

int __real_fstatfs64(int fd, struct statfs *fs);
int __wrap_fstatfs64(int fd, struct statfs *fs);
int __wrap_fstatfs64(int fd, struct statfs *fs)
{
    int r = __real_fstatfs64(fd, fs);
    fs->f_type = file.fs_type ? file.fs_type : fs->f_type;
    fs->f_bsize = file.fs_block ? file.fs_block : fs->f_bsize;
    return r;
}

#endif
