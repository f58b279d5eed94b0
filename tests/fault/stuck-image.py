#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The client of stuck-image.sh: fills two stuck images with requests and times all others.

usage: stuck-image.py SOCKET [leave]

With "leave" it only sends requests that get stuck, creates SOCKET.left, and waits for the end of
the server.  Without, it asks its parent for a step by a line on standard output ("freeze", "thaw")
and goes on when the parent has answered with a line.
"""
import sys
import threading
import time

import nbd

SOCKET = sys.argv[1]
KIB, MIB = 1 << 10, 1 << 20
LIMIT = 1.0  # seconds that a request on a healthy image may take
CLIENTS, IN_FLIGHT = 6, 16  # nbdkit carries 16 requests of a connection at once
SETTLE = 0.5  # seconds until the stuck requests have reached the storage


def connect(export):
    handle = nbd.NBD()
    handle.set_export_name(export)
    handle.connect_unix(SOCKET)
    return handle


def step(name):
    print(name, flush=True)
    answer = sys.stdin.readline()
    assert answer == f"{name} done\n", answer


class Stuck:
    """A connection with IN_FLIGHT requests that nobody answers for now."""

    def __init__(self, export, index):
        self.handle = connect(export)
        self.index = index
        self.cookies = []
        self.written = []  # (offset, bytes): no two of one image overlap

    def write(self, offset, length, flags=0):
        data = bytes([1 + (self.index * 7 + len(self.cookies)) % 255]) * length
        self.written.append((offset, data))
        self.cookies.append(self.handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)),
                                                   offset, flags=flags))

    def add(self, start, *arguments, **keywords):
        self.cookies.append(start(*arguments, **keywords))

    def push(self):
        """Sends what libnbd has queued."""
        end = time.monotonic() + SETTLE
        while time.monotonic() < end:
            self.handle.poll(10)

    def finish(self):
        for cookie in self.cookies:
            while not self.handle.aio_command_completed(cookie):
                self.handle.poll(-1)
        self.handle.shutdown()


def stick_writes(export):
    """96 writes of 4 KiB and of 1 MiB, two of which are FUA."""
    stuck = []
    for client in range(CLIENTS):
        one = Stuck(export, client)
        small = client * IN_FLIGHT * 8 * KIB
        for i in range(IN_FLIGHT):
            if client < 2 and i % 2:
                one.write(2 * MIB + (client * 8 + i // 2) * MIB, MIB)
            else:
                one.write(small + i * 8 * KIB, 4 * KIB, nbd.CMD_FLAG_FUA if i == 0 else 0)
        stuck.append(one)
    return stuck


def stick_others(export):
    """Trims, zeros, and FUA writes on a connection of their own."""
    one = Stuck(export, CLIENTS)
    for i in range(4):
        at = 24 * MIB + i * MIB
        one.add(one.handle.aio_trim, 64 * KIB, at)
        one.add(one.handle.aio_zero, 64 * KIB, at + 128 * KIB)
        one.add(one.handle.aio_zero, 64 * KIB, at + 256 * KIB, flags=nbd.CMD_FLAG_NO_HOLE)
        one.write(at + 512 * KIB, 4 * KIB, nbd.CMD_FLAG_FUA)
    return one


def stick_reads(stuck):
    """96 reads and flushes."""
    for client, one in enumerate(stuck):
        for i in range(IN_FLIGHT):
            if i % 4 == 3:
                one.add(one.handle.aio_flush)
            else:
                length = MIB if client < 2 else 4 * KIB
                at = (client * IN_FLIGHT + i) * 64 * KIB
                one.add(one.handle.aio_pread, nbd.Buffer(length), at)
    return stuck


class Timed:
    """Runs calls on a thread of its own, so that one without an end is noticed."""

    def __init__(self):
        self.worst = {}

    def call(self, name, function, *arguments, **keywords):
        outcome = []

        def run():
            begin = time.monotonic()
            try:
                value, error = function(*arguments, **keywords), None
            except nbd.Error as failure:
                value, error = None, failure
            outcome.append((value, error, time.monotonic() - begin))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(10 * LIMIT)
        if not outcome:
            sys.exit(f"FAILED: {name}: no answer in {10 * LIMIT} s")
        value, error, seconds = outcome[0]
        if error:
            sys.exit(f"FAILED: {name}: {error}")
        self.worst[name] = max(self.worst.get(name, 0), seconds)
        return value

    def report(self):
        text = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in self.worst.items())
        print(f"   worst, in ms: {text}", flush=True)
        late = {name: seconds for name, seconds in self.worst.items() if seconds > LIMIT}
        if late:
            sys.exit(f"FAILED: slower than {LIMIT} s: {late}")


def use_good_images(good):
    timed = Timed()
    data = bytearray(b"x" * MIB)
    for i in range(20):
        timed.call("read", good.pread, 4 * KIB, (i * 37 % 4096) * 4 * KIB)
        timed.call("write 1 MiB", good.pwrite, data, 8 * MIB + (i % 8) * MIB)
        timed.call("write", good.pwrite, data[:4 * KIB], i * 64 * KIB)
        timed.call("flush", good.flush)
        timed.call("FUA write", good.pwrite, data[:4 * KIB], i * 64 * KIB, flags=nbd.CMD_FLAG_FUA)
        timed.call("zero", good.zero, 64 * KIB, 20 * MIB + i * 64 * KIB)
        timed.call("trim", good.trim, 64 * KIB, 24 * MIB + i * 64 * KIB)
    for _ in range(3):
        for export in ["late", "good"]:
            handle = timed.call(f"open {export}", connect, export)
            timed.call("first read", handle.pread, 4 * KIB, 0)
            timed.call("close", handle.shutdown)
    timed.report()


def send(stuck):
    for one in stuck:
        one.push()
    return stuck


def main():
    good = connect("good")
    good.pwrite(bytes(4 * KIB), 0)
    # These keep both images open: to open an image whose storage hangs hangs by itself.
    frozen, stopped = connect("frozen"), connect("stopped")
    readers = [Stuck("stopped", i) for i in range(CLIENTS)]
    step("freeze")
    writes = send(stick_writes("frozen") + [stick_others("frozen")])
    use_good_images(good)
    reads = send(stick_reads(readers))
    opened = []
    opener = threading.Thread(target=lambda: opened.append(connect("stopped")), daemon=True)
    opener.start()
    use_good_images(good)
    step("thaw")
    for one in writes + reads:
        one.finish()
    opener.join(10)
    if not opened:
        sys.exit("FAILED: the open that was stuck has not ended")
    for one in writes:
        for offset, data in one.written:
            if frozen.pread(len(data), offset) != data:
                sys.exit(f"FAILED: the {len(data)} bytes written at {offset} are not there")
    for handle in [frozen, stopped, *opened, good]:
        handle.shutdown()


def leave():
    stuck = send([stick_others("frozen")])
    open(SOCKET + ".left", "w", encoding="ascii").close()
    try:
        while True:
            stuck[0].handle.poll(-1)
    except nbd.Error:
        pass  # the server has gone


leave() if sys.argv[2:] == ["leave"] else main()
