#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The client of rbd-changed.sh.

usage: rbd-changed.py SOCKET PARENT-FILE
       rbd-changed.py SOCKET removed
"""
import errno
import random
import subprocess
import sys
import threading

import nbd

MiB = 1 << 20
SNAPSHOTS = 3
socket, parent = sys.argv[1:]


def connect():
    h = nbd.NBD()
    h.connect_unix(socket)
    return h


def rbd(*arguments):
    return subprocess.run(["rbd", *arguments], check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, timeout=120).stdout


class Writer(threading.Thread):
    """Writes, zeros, reads and flushes in the blocks of its own, and compares with the model."""

    def __init__(self, number, model):
        super().__init__()
        self.number, self.model = number, model
        self.rng = random.Random(seed + number)
        self.stop, self.error, self.count = False, None, 0

    def run(self):
        try:
            h = connect()
            while not self.stop:
                self.one(h)
                self.count += 1
            h.flush()
            h.shutdown()
        except (nbd.Error, AssertionError) as e:
            self.error = e

    def one(self, h):
        rng = self.rng
        block = rng.randrange(len(self.model) // (4 * 65536)) * 4 + self.number
        offset = block * 65536 + rng.randrange(65536)
        length = rng.randrange(1, (block + 1) * 65536 - offset + 1)
        op = rng.randrange(8)
        if op < 4:
            data = rng.randbytes(length)
            h.pwrite(data, offset, rng.choice([0, nbd.CMD_FLAG_FUA]))
            self.model[offset:offset + length] = data
        elif op < 5:
            h.zero(length, offset)
            self.model[offset:offset + length] = bytes(length)
        else:
            found = h.pread(length, offset)
            assert found == self.model[offset:offset + length], f"other data at {offset}"
        if rng.random() < 0.1:
            h.flush()


def change(model):
    """Each step while four writers work."""
    markers = connect()
    marker_at = len(model) - 65536
    for i in range(SNAPSHOTS):
        # What was flushed before the snapshot is in it; what was written after it is not.
        markers.pwrite(bytes([i + 1]) * 8192, marker_at)
        model[marker_at:marker_at + 8192] = bytes([i + 1]) * 8192
        markers.flush()
        rbd("snap", "create", "--no-progress", f"rbd/image@s{i}")
        print(f"snapshot {i} while served")
    size = markers.get_size()
    for step in (64 * MiB, -32 * MiB, 48 * MiB):
        size += step
        rbd("resize", "--no-progress", "--allow-shrink", "--size", f"{size}B", "rbd/image")
        assert connect().get_size() == size
        print(f"resized to {size >> 20} MiB while served")
    rbd("flatten", "--no-progress", "rbd/image")
    assert b"parent:" not in rbd("info", "rbd/image")
    print("flattened while served")
    rbd("feature", "disable", "rbd/image", "fast-diff")
    rbd("feature", "enable", "rbd/image", "fast-diff")
    rbd("object-map", "rebuild", "--no-progress", "rbd/image")
    print("features changed while served")
    try:
        rbd("rm", "--no-progress", "rbd/image")
    except subprocess.CalledProcessError:
        pass
    else:
        raise AssertionError("an image that is served was removed")
    for i in range(SNAPSHOTS):
        found = rbd("export", "--no-progress", f"rbd/image@s{i}", "-")
        assert found[marker_at:marker_at + 8192] == bytes([i + 1]) * 8192, f"snapshot {i}"
    for i in range(SNAPSHOTS):
        rbd("snap", "rm", "--no-progress", f"rbd/image@s{i}")
    # Nothing that was not shown to the clients is left of what lay behind the smaller size.
    h = connect()
    tail = h.get_size() - len(model)
    for at in range(0, tail, 16 * MiB):
        length = min(16 * MiB, tail - at)
        assert h.pread(length, len(model) + at) == bytes(length), "old data behind the end"
    model += bytes(tail)


def served():
    with open(parent, "rb") as f:
        model = bytearray(f.read())
    end = len(model)
    blocks = end // (4 * 65536) * 4 * 65536 - 4 * 65536
    writers = [Writer(i, None) for i in range(4)]
    shared = bytearray(model[:blocks])
    for writer in writers:
        writer.model = shared
        writer.start()
    rest = bytearray(model)
    try:
        change(rest)
    finally:
        for writer in writers:
            writer.stop = True
        for writer in writers:
            writer.join()
    for writer in writers:
        assert writer.error is None, writer.error
        assert writer.count > 20, f"a writer made only {writer.count} requests"
    rest[:blocks] = shared
    h = connect()
    for at in range(0, len(rest), 16 * MiB):
        length = min(16 * MiB, len(rest) - at)
        assert h.pread(length, at) == rest[at:at + length], f"other data in the 16 MiB at {at}"
    with open(parent + ".model", "wb") as f:
        f.write(rest)
    print(sum(writer.count for writer in writers), "requests meanwhile")


def removed():
    h = connect()
    h.pwrite(b"a" * 65536, 0)
    h.flush()
    # Not possible with a watcher, so by its objects, as a broken cluster would.
    info = rbd("info", "--format", "json", "rbd/simple")
    prefix = info.split(b'"block_name_prefix":"')[1].split(b'"')[0].decode()
    header = "rbd_header." + prefix.rsplit(".", 1)[1]
    for name in (prefix + ".0000000000000000", header):
        subprocess.run(["rados", "-p", "rbd", "rm", name], check=True)
    # Until librbd notices that the header is gone, requests go on.  Then they fail.
    for call in (lambda: h.pread(65536, 0), lambda: h.pwrite(b"b" * 4096, 0), h.flush) * 3:
        try:
            call()
        except nbd.Error as e:
            assert e.errnum == errno.EIO, e
    print("an image whose header is gone")


seed = random.randrange(1 << 32)
print("seed", seed)
removed() if parent == "removed" else served()
