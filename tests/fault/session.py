# SPDX-License-Identifier: BSD-3-Clause
"""A short scripted NBD session, with a model of what the disk may hold.

A request may fail at any time, and the session goes on, on a new connection if need be.  The model
then allows the old and the new bytes.  What the model does not allow raises Wrong; a request that
is not answered within SECONDS raises Hang.
"""
import errno
import random
import time

import nbd

SECONDS = 30  # no request of the session takes longer, not even on a busy machine
CHUNK = 4096  # bytes that are compared at once
HOLE = range(1 << 20, (1 << 20) + (256 << 10))  # a hole in the image, for block status


class Wrong(Exception):
    """The server broke a promise."""


class Hang(Exception):
    """A request was not answered in time."""


def initial_content(size):
    """`size`: at least 3 MiB."""
    content = bytearray(random.Random(1).randbytes(size).replace(b"\0", b"\1"))
    content[HOLE.start:HOLE.stop] = bytes(len(HOLE))
    return content


class Model:
    def __init__(self, size):
        self.size, self.content = size, initial_content(size)
        self.doubts = []  # (start, bytes): what the disk may hold there instead of `content`

    def write(self, offset, data):
        """The request was acknowledged: these bytes, and no others."""
        end, kept = offset + len(data), []
        for start, old in self.doubts:
            if start < offset:
                kept.append((start, old[:offset - start]))
            if start + len(old) > end:
                kept.append((max(start, end), old[max(0, end - start):]))
        self.doubts = [d for d in kept if d[1]]
        self.content[offset:end] = data

    def maybe_write(self, offset, data):
        """The request failed, or was a hint: the old bytes, the new bytes, or some of each."""
        end = offset + len(data)
        self.doubts.append((offset, bytes(self.content[offset:end])))
        self.content[offset:end] = data

    def check(self, offset, data, what):
        for at in range(offset, offset + len(data), CHUNK):
            got = data[at - offset:at - offset + CHUNK]
            expected = self.content[at:at + len(got)]
            if got != expected:
                self._check_bytes(at, got, expected, what)

    def _check_bytes(self, offset, got, expected, what):
        """Each byte that is not the expected one must be one that `doubts` allows there."""
        doubts = [(start, old) for start, old in self.doubts
                  if start < offset + len(got) and offset < start + len(old)]
        # The usual case is fast: all of one request, or nothing of it.
        for start, old in doubts:
            first, end = max(start, offset), min(start + len(old), offset + len(got))
            other = bytearray(expected)
            other[first - offset:end - offset] = old[first - start:end - start]
            if got == other:
                return
        for at, (byte, wanted) in enumerate(zip(got, expected), offset):
            if byte != wanted and not any(
                    start <= at < start + len(old) and old[at - start] == byte
                    for start, old in doubts):
                raise Wrong(f"{what}: byte {at} is {byte:#x}, not {wanted:#x}")


class Session:
    """`failures` says which requests failed; `synced` has the success of each flush and FUA."""

    def __init__(self, socket, model, seed=1):
        self.socket, self.model = socket, model
        self.random = random.Random(seed)
        self.handles = [None, None]
        self.failures, self.synced = [], []

    # --- Connections ---

    def _until(self, h, done, what):
        end = time.monotonic() + SECONDS
        while not done():
            if time.monotonic() > end:
                raise Hang(what)
            if h.poll(200) < 0:
                raise Hang(what)

    def connect(self, slot):
        """Connects if the slot has no living connection.  Returns whether it has one."""
        h = self.handles[slot]
        if h and h.aio_is_ready():
            return True
        self.handles[slot] = None
        for _ in range(3):
            h = nbd.NBD()
            h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            try:
                h.aio_connect_unix(self.socket)
                self._until(h, lambda h=h: not h.aio_is_connecting(), "connect")
                if h.aio_is_ready():
                    self.handles[slot] = h
                    return True
            except nbd.Error as error:
                self.failures.append(f"connect: {error.string}")
        return False

    def close(self):
        for slot, h in enumerate(self.handles):
            self.handles[slot] = None
            if h and h.aio_is_ready():
                try:
                    h.aio_disconnect()
                    self._until(h, lambda h=h: h.aio_is_closed() or h.aio_is_dead(), "disconnect")
                except nbd.Error:
                    pass

    # --- Requests: each returns whether it succeeded ---

    def request(self, slot, name, start):
        """start(h) sends the request and returns its cookie."""
        if not self.connect(slot):
            self.failures.append(f"{name}: no connection")
            return False
        h = self.handles[slot]
        try:
            cookie = start(h)
            self._until(h, lambda: h.aio_command_completed(cookie), name)
        except nbd.Error as error:
            # A fast zero that would be slow is no failure, and nothing else says so.
            if error.errnum != errno.EOPNOTSUPP:
                self.failures.append(f"{name}: {error.string}")
            elif not name.startswith("fast zero"):
                raise Wrong(f"{name}: {error.string}") from None
            return False
        return True

    def read(self, slot, length, offset):
        buffer = nbd.Buffer(length)
        if self.request(slot, f"read {length} at {offset}",
                        lambda h: h.aio_pread(buffer, offset)):
            self.model.check(offset, buffer.to_bytearray(), f"read of {length} bytes at {offset}")

    def change(self, slot, name, length, offset, data, start, flags=0, hint=False):
        ok = self.request(slot, f"{name} {length} at {offset}", start)
        if flags & nbd.CMD_FLAG_FUA:
            self.synced.append(ok)
        if ok and not hint:
            self.model.write(offset, data)
        else:
            self.model.maybe_write(offset, data)

    def write(self, slot, length, offset, flags=0):
        data = self.random.randbytes(length)
        buffer = nbd.Buffer.from_bytearray(bytearray(data))
        self.change(slot, "write", length, offset, data,
                    lambda h: h.aio_pwrite(buffer, offset, flags=flags), flags)

    def zero(self, slot, length, offset, flags=0):
        name = "fast zero" if flags & nbd.CMD_FLAG_FAST_ZERO else "zero"
        self.change(slot, name, length, offset, bytes(length),
                    lambda h: h.aio_zero(length, offset, flags=flags), flags)

    def trim(self, slot, length, offset, flags=0):
        self.change(slot, "trim", length, offset, bytes(length),
                    lambda h: h.aio_trim(length, offset, flags=flags), flags, hint=True)

    def flush(self, slot):
        self.synced.append(self.request(slot, "flush", lambda h: h.aio_flush()))

    def status(self, slot):
        found = []
        if not self.request(slot, "block status",
                            lambda h: h.aio_block_status(
                                self.model.size, 0, lambda context, offset, entries, error:
                                found.extend(entries))):
            return
        at = 0
        for length, state in zip(found[::2], found[1::2]):
            if state & nbd.STATE_ZERO:
                length = min(length, self.model.size - at)
                self.model.check(at, bytes(length), "a hole of block status")
            at += length

    def at_once(self):
        """Reads and writes in flight on both connections at once, each of its own range."""
        if not (self.connect(0) and self.connect(1)):
            return
        sent = []
        for i in range(12):
            h, offset, length = self.handles[i % 2], (2 << 20) + i * 40000, 5000 + i * 300
            try:
                if i % 3 == 0:
                    data = self.random.randbytes(length)
                    buffer = nbd.Buffer.from_bytearray(bytearray(data))
                    sent.append((h, h.aio_pwrite(buffer, offset), offset, data, None))
                else:
                    buffer = nbd.Buffer(length)
                    sent.append((h, h.aio_pread(buffer, offset), offset, None, buffer))
            except nbd.Error as error:
                self.failures.append(f"sending: {error.string}")
        for h, cookie, offset, data, buffer in sent:
            try:
                self._until(h, lambda h=h, c=cookie: h.aio_command_completed(c), "at once")
                ok = True
            except nbd.Error as error:
                self.failures.append(f"at once: {error.string}")
                ok = False
            if data and ok:
                self.model.write(offset, data)
            elif data:
                self.model.maybe_write(offset, data)
            elif ok:
                self.model.check(offset, buffer.to_bytearray(), f"read at {offset}")

    def run(self):
        fua, no_hole, fast = nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO
        self.read(0, 4096, 8192)
        self.read(0, 777, 12345)
        self.write(0, 4096, 16384)
        self.write(1, 1000, 300)
        self.status(0)
        self.write(0, (1 << 20) + 5000, 100_000)
        self.flush(0)
        self.write(0, 3000, self.model.size - 3000, fua)
        self.write(1, 512, 65536, fua)
        self.read(1, 70000, 60000)
        self.zero(0, 128 << 10, 1 << 20)
        self.zero(1, 10000, 5001, no_hole)
        self.zero(0, 64 << 10, 512 << 10, fast)
        self.zero(0, 64 << 10, 640 << 10, fua)
        self.trim(1, 200_000, 700_001)
        self.trim(1, 64 << 10, 900 << 10, fua)
        self.request(0, "cache", lambda h: h.aio_cache(1 << 20, 0))
        self.at_once()
        self.status(1)
        self.flush(1)
        self.read(0, 1 << 20, 3)
        self.close()
        # The image is opened anew.
        self.write(0, 4096, 40960)
        self.flush(0)
        self.read(0, self.model.size, 0)
        self.close()
