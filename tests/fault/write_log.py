# SPDX-License-Identifier: BSD-3-Clause
"""Reads the log of QEMU's blklogwrites driver, in the format of Linux's dm-log-writes, and makes
the disks of which a power failure could leave one.

https://docs.kernel.org/admin-guide/device-mapper/log-writes.html
"""
import os
import struct
import subprocess

FLUSH, FUA, DISCARD = 1, 2, 4
MAGIC = 0x6A736677736872
BLOCK = 4096  # bytes that a power failure leaves whole


class Entry:
    """`end`: bytes of the log up to the end of this entry.  `offset`, `length`: bytes of the disk.
    `data` is None if the entry has none; a discard then makes zeros of its range.
    """

    def __init__(self, end, flags, offset, length, data):
        self.end, self.flags, self.offset, self.length = end, flags, offset, length
        self.data = data


def read_log(path):
    """Yields each entry, in the order of the log.  No request is in flight."""
    size = os.path.getsize(path)
    with open(path, "rb") as log:
        magic, _, _, sector = struct.unpack("<QQQI", log.read(28))
        assert magic == MAGIC, "not a log of blklogwrites"
        at = sector
        while at + 32 <= size:
            log.seek(at)
            first, count, flags, _ = struct.unpack("<QQQQ", log.read(32))
            if count == 0 and flags == 0:
                return
            length, data = count * sector, None
            at += sector
            if length and not flags & DISCARD:
                log.seek(at)
                data = log.read(length)
                data += bytes(length - len(data))  # zeros at the end are a hole
                at += length
            yield Entry(at, flags, first * sector, length, data)


def moments(log, start, rng, samples):
    """Entries of the log after its first `start` bytes, by their number; half of them flushes."""
    ends = [(entry.end, entry.flags & FLUSH) for entry in read_log(log)]
    after = [i for i, (end, _) in enumerate(ends) if end >= start]
    flushes = [i for i in after if ends[i][1]]
    chosen = rng.sample(after, min(samples - samples // 2, len(after)))
    return set(chosen + rng.sample(flushes, min(samples // 2, len(flushes))))


def write(fd, entry):
    os.pwrite(fd, entry.data or bytes(entry.length), entry.offset)


def write_some(fd, entries, rng):
    """None, all, or a random half of the blocks."""
    share = rng.choice((0, 0.5, 1))
    for entry in entries:
        data = entry.data or bytes(entry.length)
        for at in range(0, len(data), BLOCK):
            if rng.random() < share:
                os.pwrite(fd, data[at:at + BLOCK], entry.offset + at)


def power_failures(log, image, size, start, rng, samples):
    """At some moments after `start`, makes the file `image` the disk of that moment: all that was
    written before the last flush, and some of the blocks that were written after it.  Yields the
    length of the log at each moment.
    """
    chosen, pending = moments(log, start, rng, samples), []
    durable = image + ".durable"
    with open(durable, "w+b", buffering=0) as disk:
        disk.truncate(size)
        for i, entry in enumerate(read_log(log)):
            if entry.flags & FLUSH:
                for earlier in pending:
                    write(disk.fileno(), earlier)
                pending = []
            if entry.length and entry.flags & FUA:
                write(disk.fileno(), entry)
            elif entry.length:
                pending.append(entry)
            if i in chosen:
                subprocess.run(["cp", "--sparse=always", durable, image], check=True)
                with open(image, "r+b", buffering=0) as copy:
                    write_some(copy.fileno(), pending, rng)
                yield entry.end
    os.unlink(durable)
