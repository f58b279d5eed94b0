# SPDX-License-Identifier: BSD-3-Clause
"""Reads the log of QEMU's blklogwrites driver, in the format of Linux's dm-log-writes.

https://docs.kernel.org/admin-guide/device-mapper/log-writes.html
"""
import os
import struct

FLUSH, FUA, DISCARD = 1, 2, 4
MAGIC = 0x6A736677736872


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
