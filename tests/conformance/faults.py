#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The faults of conformance.sh, one function each: the target fails, and the client checks the
errors, the data and block status.

usage: faults.py FUNCTION URI CACHE TARGET ARGUMENTS...
"""
import errno
import os
import random
import subprocess
import sys

import nbd

case, uri, cache, target = sys.argv[1:5]
arguments = sys.argv[5:]
MiB = 1 << 20
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
pattern = bytes(range(1, 252)) * 8356  # 2 MiB; no zero byte, and no power of two as its period


def fails(error, call, *args):
    what = f"{call.__name__} {[len(a) if isinstance(a, bytes) else a for a in args]}"
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errnum == error, f"{what} failed with {e.errno}, not {errno.errorcode[error]}"
        return
    raise AssertionError(f"{what} succeeded")


def expect(length, offset, start=0):
    """The range has the bytes that fill(start, ...) wrote."""
    at = (offset - start) % MiB
    assert h.pread(length, offset) == pattern[at:at + length], f"wrong data at {offset}"


def fill(start, end):
    for at in range(start, end, MiB):
        h.pwrite(pattern[:MiB], at)
    h.flush()


def read_at_once(requests):
    """Reads all ranges at once: (length, offset, expected errno or 0)."""
    left = len(requests)

    def done(got, wanted, where):
        nonlocal left
        left -= 1
        assert got.value == wanted, f"read at {where} ended with {got.value}, not {wanted}"
        return 1

    for length, offset, error in requests:
        h.aio_pread(nbd.Buffer(length), offset, lambda got, e=error, o=offset: done(got, e, o))
    while left:
        h.poll(-1)


def overlap(seed):
    """Two writes, or a zero and a write, at once on the same bytes; the model leaves this case out.

    Each byte in the common range is of one of the two; every other byte is of its only writer.
    """
    random.seed(seed)
    handles = [h] + [nbd.NBD() for _ in range(3)]
    for other in handles[1:]:
        other.connect_uri(uri)

    def done(error):
        assert error.value == 0, f"error {error.value}"
        return 1

    def write(handle, content, offset):
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content)), offset, done)

    for _ in range(10):
        pairs = []
        for at in range(0, 32 * 65536, 65536):
            one, two = random.sample(handles, 2)
            part = random.randbytes(random.choice((1, 100, 511, 5000)))
            where = random.randrange(1, 16384 - len(part))
            part_first = random.random() < 0.5
            if part_first:
                write(two, part, at + where)
            if random.random() < 0.5:
                whole = random.randbytes(16384)
                write(one, whole, at)
            else:
                whole = bytes(16384)
                one.aio_zero(16384, at, done, random.choice((0, nbd.CMD_FLAG_NO_HOLE)))
            if not part_first:
                write(two, part, at + where)
            pairs.append((at, whole, part, where))
        for handle in handles:
            while handle.aio_in_flight():
                handle.poll(-1)
        for at, whole, part, where in pairs:
            got, end = h.pread(len(whole), at), where + len(part)
            assert got[:where] == whole[:where] and got[end:] == whole[end:], \
                f"bytes near {at} differ from their only write"
            assert all(g in (w, p) for g, w, p in zip(got[where:end], whole[where:end], part)), \
                f"bytes at {at} are of neither write"


def thin():
    """Block status reports data, a hole, and data."""
    fill(0, 12 * MiB)
    h.zero(6 * MiB, 3 * MiB + 1)
    h.flush()
    found = []
    h.block_status(12 * MiB, 0, lambda context, offset, entries, error: found.extend(entries))
    assert found[1::2] == [0, nbd.STATE_HOLE | nbd.STATE_ZERO, 0], found
    assert 3 * MiB < found[0] < 4 * MiB and 5 * MiB < found[2] <= 6 * MiB, found
    assert sum(found[::2]) == 12 * MiB, found


def bad_sectors(backing):
    """The second half of the disk cannot be read."""
    size, half = os.stat(backing).st_size, 8 * MiB
    fill(0, 2 * half)
    os.truncate(backing, half)
    subprocess.run(["blockdev", "--flushbufs", target], check=True)
    for length, offset in ((4096, half), (1, half + 4099), (3 * MiB, 12 * MiB + 1),
                           (2 * MiB, half - MiB), (3, half - 1)):
        fails(errno.EIO, h.pread, length, offset)
        expect(4096, half - 4096)
    read_at_once([(5000, i * 97001 % (half - 5000) + half * (i % 2), errno.EIO if i % 2 else 0)
                  for i in range(64)])
    # A write of a part of an unreadable block fails; a write of the whole block repairs the block.
    fails(errno.EIO, h.pwrite, b"x" * 100, 12 * MiB + 100)
    fails(errno.EIO, h.pread, 4096, 12 * MiB)
    h.pwrite(b"whole" * 8192, 14 * MiB)
    h.flush()
    assert h.pread(40960, 14 * MiB) == b"whole" * 8192
    expect(MiB, 0)
    os.truncate(backing, size)


def shrunk_disk(backing):
    """A disk that shrank while it was served."""
    size, half = os.stat(backing).st_size, 8 * MiB
    fill(0, 2 * half)
    os.truncate(backing, half)
    subprocess.run(["losetup", "-c", target], check=True)
    for length, offset in ((4096, half), (100, half + 4099), (MiB, half - 5000)):
        fails(errno.EIO, h.pread, length, offset)
    fails(errno.ENOSPC, h.pwrite, pattern[:8192], half)
    fails(errno.ENOSPC, h.pwrite, pattern[:8192], half - 4096)
    h.pwrite(b"here", half - 5)
    assert h.pread(5, half - 5)[:4] == b"here"
    assert os.stat(backing).st_size == half
    os.truncate(backing, size)
    subprocess.run(["losetup", "-c", target], check=True)
    expect(MiB, 0)


def shrunk_file():
    """A file that shrank while it was served: no zeros past its end, and no request grows it."""
    end = 8 * MiB + 1100
    fill(0, 16 * MiB)
    os.truncate(target, end)
    for length, offset in ((1, end), (4096, 9 * MiB), (200, end - 100), (3 * MiB, end - MiB),
                           (2 * MiB, 12 * MiB + 1)):
        fails(errno.EIO, h.pread, length, offset)
        expect(100, end - 100)
        expect(MiB, MiB)
    for length, offset in ((1, end), (4096, 9 * MiB), (200, end - 100), (2 * MiB, end - MiB)):
        fails(errno.ENOSPC, h.pwrite, pattern[:length], offset)
        fails(errno.ENOSPC, h.pwrite, pattern[:length], offset, nbd.CMD_FLAG_FUA)
        fails(errno.ENOSPC, h.zero, length, offset)
        fails(errno.ENOSPC, h.zero, length, offset, nbd.CMD_FLAG_NO_HOLE)
        h.trim(length, offset)  # a hint: no error
        assert os.stat(target).st_size == end, f"the file grew to {os.stat(target).st_size} bytes"
    found = []
    h.block_status(MiB, 12 * MiB, lambda context, offset, entries, error: found.extend(entries))
    assert not any(found[1::2]), f"block status reports {found} past the end"
    h.pwrite(b"here" * 100, MiB + 1)
    h.flush()
    assert h.pread(400, MiB + 1) == b"here" * 100
    assert os.stat(target).st_size == end


def overwrite(offset, data, flags, may_fail):
    """Writes over data that are there; if the filesystem refuses it, they are unchanged."""
    before = h.pread(len(data), offset)
    try:
        h.pwrite(data, offset, flags)
    except nbd.Error as error:
        assert may_fail and error.errnum == errno.ENOSPC, error
        data = before
    assert h.pread(len(data), offset) == data


def no_space(filler, filesystem):
    """The filesystem is full: allocated blocks can be read and written, and the disk is good.

    Btrfs writes each block to a new place, and has none.
    """
    fill(0, 2 * MiB)
    with open(filler, "wb") as f:
        end = 0
        for step in (64 * MiB, 4 * MiB, 256 << 10, 4096):
            try:
                while True:
                    os.posix_fallocate(f.fileno(), end, step)
                    end += step
            except OSError as e:
                assert e.errno == errno.ENOSPC, e
    for flags in (0, nbd.CMD_FLAG_FUA):
        fails(errno.ENOSPC, h.pwrite, pattern[:MiB], 8 * MiB + 1, flags)
        fails(errno.ENOSPC, h.pwrite, pattern[:MiB], 12 * MiB, flags)
        fails(errno.ENOSPC, h.zero, MiB, 20 * MiB, flags | nbd.CMD_FLAG_NO_HOLE)
        expect(MiB, 0)
        for offset in (MiB + 4096, MiB + 16461):
            overwrite(offset, bytes([flags + 1]) * 4000, flags, may_fail=filesystem == "btrfs")
        h.flush()
    os.unlink(filler)
    fill(MiB, 2 * MiB)
    fill(24 * MiB, 26 * MiB)
    expect(MiB, 24 * MiB, 24 * MiB)
    expect(MiB, 0)
    expect(MiB, MiB)


def file_limit(limit):
    """A write past RLIMIT_FSIZE is short, then EFBIG, which nbdkit sends as ENOSPC; no SIGXFSZ."""
    limit = int(limit)
    fill(0, MiB)
    for flags in (0, nbd.CMD_FLAG_FUA):
        fails(errno.ENOSPC, h.pwrite, pattern[:2 * MiB], limit - MiB, flags)
        fails(errno.ENOSPC, h.pwrite, pattern[:MiB], limit - 1000, flags)
        fails(errno.ENOSPC, h.pwrite, pattern[:1], limit, flags)
        fails(errno.ENOSPC, h.pwrite, pattern[:4096], limit + 4 * MiB, flags)
        expect(MiB, 0)
        assert h.pread(4096, limit + 4 * MiB) == bytes(4096)
        h.pwrite(b"below", limit - 5, flags)
        assert h.pread(6, limit - 5) in (b"below\0", b"below" + pattern[:1])
        h.flush()


def no_memory(limit):
    """A compressed disk in memory (zram) reaches its memory limit."""
    fill(0, MiB)
    noise = os.urandom(8 * MiB)
    with open(limit, "w") as f:
        f.write("4M")
    if cache == "none":
        fails(errno.EIO, h.pwrite, noise, 16 * MiB)
        fails(errno.EIO, h.pwrite, noise, 16 * MiB + 1, nbd.CMD_FLAG_FUA)
    else:
        h.pwrite(noise, 16 * MiB)
        fails(errno.EIO, h.flush)
        fails(errno.EIO, h.flush)
    expect(MiB, 0)
    with open(limit, "w") as f:
        f.write("0")
    h.pwrite(noise, 16 * MiB)
    assert h.pread(8 * MiB, 16 * MiB) == noise
    if cache == "none":
        h.flush()


globals()[case](*arguments)
h.shutdown()
