# SPDX-License-Identifier: BSD-3-Clause
"""The clients of rbd.sh.

rbd.py SOCKET PART ARGUMENTS...
"""
import errno
import json
import os
import random
import subprocess
import sys
import time

import nbd

from servers import freeze

MiB = 1 << 20
OBJECT = 4 * MiB


def connect():
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_unix(socket)
    return h


def extents(h, length, offset, flags=0):
    found = []
    h.block_status(length, offset,
                   lambda context, at, entries, error: found.extend(entries) or 0, flags=flags)
    return list(zip(found[0::2], found[1::2]))


def fails(call, error):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == error, e
        return
    raise AssertionError("no error")


def facts():
    h = connect()
    assert h.get_size() == 64 * MiB
    assert not h.is_read_only() and h.can_multi_conn() and h.can_fua() and h.can_fast_zero()
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert h.get_block_size(nbd.SIZE_PREFERRED) == OBJECT
    assert extents(h, 64 * MiB, 0) == [(64 * MiB, 3)], extents(h, 64 * MiB, 0)


def zero():
    """The image is full of random data."""
    h = connect()
    assert extents(h, 64 * MiB, 0) == [(64 * MiB, 0)]
    # Small and unaligned: a discard of librbd would keep the old data.
    before = h.pread(8192, 1000)
    h.zero(700, 1111)
    assert h.pread(8192, 1000) == before[:111] + bytes(700) + before[811:]
    # A hole where a hole is allowed, and none where it is not.
    h.zero(2 * OBJECT, OBJECT)
    h.zero(OBJECT, 4 * OBJECT, nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(2 * OBJECT, OBJECT) == bytes(2 * OBJECT)
    assert h.pread(OBJECT, 4 * OBJECT) == bytes(OBJECT)
    assert extents(h, 64 * MiB, 0)[:3] == [(OBJECT, 0), (2 * OBJECT, 3), (64 * MiB - 3 * OBJECT, 0)]
    # From within a hole, and with one extent only.
    assert extents(h, 3 * OBJECT, OBJECT + 5000)[0] == (2 * OBJECT - 5000, 3)
    assert extents(h, 64 * MiB - 100, 100, nbd.CMD_FLAG_REQ_ONE) == [(OBJECT - 100, 0)]
    h.zero(OBJECT, 5 * OBJECT, nbd.CMD_FLAG_FAST_ZERO)
    fails(lambda: h.zero(OBJECT, 6 * OBJECT, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE),
          errno.ENOTSUP)
    h.trim(OBJECT, 7 * OBJECT, nbd.CMD_FLAG_FUA)
    assert extents(h, OBJECT, 7 * OBJECT) == [(OBJECT, 3)]
    # Data inside an object that was a hole.
    h.pwrite(b"x" * 100, OBJECT + 77)
    assert extents(h, OBJECT, OBJECT)[0][1] == 0, "a hole where data is"
    assert h.pread(200, OBJECT) == bytes(77) + b"x" * 100 + bytes(23)


def snapshot(copy):
    h = connect()
    assert h.is_read_only() and h.get_size() == 64 * MiB
    with open(copy, "wb") as out:
        out.write(h.pread(8 * MiB, 0))
    h.shutdown()
    exported = subprocess.run(["rbd", "export", "--no-progress", "rbd/image@first", "-"],
                              stdout=subprocess.PIPE, check=True).stdout
    with open(copy, "rb") as f:
        assert f.read() == exported[:8 * MiB]


def random_model(seconds):
    """Random requests, several in flight on two connections, in areas of their own; a model."""
    handles = [connect(), connect()]
    size = min(handles[0].get_size(), 8 * MiB)
    model = bytearray(handles[0].pread(size, 0))
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        areas = rng.sample(range(8), 4)
        cookies = []
        for area in areas:
            h = rng.choice(handles)
            offset = area * size // 8 + rng.randrange(size // 16)
            length = rng.choice([1, 511, 4096, 65536, rng.randrange(1, size // 16)])
            op = rng.choice(["write", "zero", "trim", "read"])
            fua = rng.choice([0, nbd.CMD_FLAG_FUA])
            if op == "write":
                model[offset:offset + length] = data = rng.randbytes(length)
                cookies.append((h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset,
                                                flags=fua)))
            elif op == "zero":
                model[offset:offset + length] = bytes(length)
                hole = rng.choice([0, nbd.CMD_FLAG_NO_HOLE])
                cookies.append((h, h.aio_zero(length, offset, flags=fua | hole)))
            elif op == "trim":
                # Reads as the old data or as zeros; so zeros are written over it.
                h.trim(length, offset, fua)
                model[offset:offset + length] = bytes(length)
                cookies.append((h, h.aio_zero(length, offset)))
        for h, cookie in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
        offset = rng.randrange(size - 65536)
        got = rng.choice(handles).pread(65536, offset)
        assert got == model[offset:offset + 65536], "other data"
        if rng.random() < 0.2:
            handles[0].flush()
    assert handles[1].pread(size, 0) == model, "other data"
    # No hole where data is.
    at = 0
    for length, kind in extents(handles[0], size, 0):
        assert kind == 0 or not any(model[at:at + length]), f"data in the hole at {at}"
        at += length


def wait_some(handles, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for h in handles:
            h.poll(50)


def frozen(osd, ready):
    """A write without FUA may be acknowledged by the cache of librbd, once a flush was seen."""
    plain, durable, flusher = connect(), connect(), connect()
    flusher.flush()
    freeze(int(osd))
    data = nbd.Buffer.from_bytearray(bytearray(b"f" * 4096))
    write = plain.aio_pwrite(data, 0)
    wait_some([plain], 0.5)
    fua = durable.aio_pwrite(data, 8192, flags=nbd.CMD_FLAG_FUA)
    flush = flusher.aio_flush()
    wait_some([plain, durable, flusher], 1.5)
    assert not durable.aio_command_completed(fua), "FUA ended while the OSD was frozen"
    acknowledged = plain.aio_command_completed(write)
    print("the plain write was", "acknowledged" if acknowledged else "not acknowledged")
    if acknowledged:
        assert not flusher.aio_command_completed(flush), "a flush ended while the OSD was frozen"
    open(ready, "w").close()
    for h, cookie in (durable, fua), (flusher, flush):
        while not h.aio_command_completed(cookie):
            h.poll(-1)


def read_frozen(osd, ready=os.devnull):
    h = connect()
    h.pwrite(bytes([1]) * 4096, 0)  # librbd answers reads of an object that does not exist itself
    h.flush()
    freeze(int(osd))
    cookie = h.aio_pread(nbd.Buffer(4096), 0)
    open(ready, "w").close()
    while not h.aio_command_completed(cookie):
        h.poll(-1)


def flushed(what):
    """Blocks that a killed server had flushed, or written with FUA."""
    h = connect()
    blocks = [(bytes([i]) * 4096, i * 65536 + 512) for i in range(1, 40)]
    for data, offset in blocks:
        if what == "read":
            assert h.pread(4096, offset) == data, f"the block at {offset} was lost"
        else:
            h.pwrite(data, offset, nbd.CMD_FLAG_FUA if offset % 131072 < 65536 else 0)
    if what == "write":
        h.flush()


def blocklisted():
    h = connect()
    h.pwrite(b"a" * 4096, 0)
    h.flush()
    status = subprocess.run(["rbd", "status", "--format", "json", "rbd/image"], check=True,
                            stdout=subprocess.PIPE).stdout
    address = json.loads(status)["watchers"][0]["address"]
    subprocess.run(["ceph", "osd", "blocklist", "add", address], check=True,
                   stderr=subprocess.DEVNULL)
    fails(lambda: h.pwrite(b"b" * 4096, 0, nbd.CMD_FLAG_FUA), errno.ESHUTDOWN)
    h.shutdown()
    # The image is opened again, with a new connection, which is not on the list.
    h = connect()
    assert h.pread(4096, 0) == b"a" * 4096
    h.pwrite(b"c" * 4096, 0)
    fails(h.flush, errno.ESHUTDOWN)
    fails(lambda: h.pwrite(b"c" * 4096, 0, nbd.CMD_FLAG_FUA), errno.ESHUTDOWN)


def shrink(rbd):
    h = connect()
    h.pwrite(b"a" * 4096, 90 * MiB)
    subprocess.run([rbd, "resize", "rbd/image", "--size", "80M", "--allow-shrink", "--no-progress"],
                   check=True)
    fails(lambda: h.pread(4096, 90 * MiB), errno.EIO)
    fails(lambda: h.pread(8192, 80 * MiB - 4096), errno.EIO)
    fails(lambda: h.pwrite(b"b" * 4096, 90 * MiB), errno.ENOSPC)
    fails(lambda: h.pwrite(b"b" * 8192, 80 * MiB - 4096), errno.ENOSPC)
    fails(lambda: h.zero(8192, 80 * MiB - 4096), errno.ENOSPC)
    h.trim(4096, 90 * MiB)
    h.pwrite(b"c" * 4096, 80 * MiB - 4096)
    assert h.pread(4096, 80 * MiB - 4096) == b"c" * 4096
    assert connect().get_size() == 80 * MiB


socket, part, *arguments = sys.argv[1:]
seed = random.randrange(1 << 32)
if part == "random":
    print("seed", seed)
    random_model(float(arguments[0]))
else:
    {"facts": facts, "zero": zero, "snapshot": snapshot, "frozen": frozen, "flushed": flushed,
     "read_frozen": read_frozen, "blocklisted": blocklisted,
     "shrink": shrink}[part](*arguments)
