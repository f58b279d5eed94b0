#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Flushes after a lost writeback: all of them fail, for as long as the server runs.

usage: lost-writeback.py PLUGIN BACKEND ROUNDS LOOP-DEVICE BACKING-FILE DIRECTORY
Each round is a new server, since the failure is remembered until the server ends.
"""
import errno
import os
import subprocess
import sys
import time

import nbd

plugin, backend, rounds, device, backing, directory = sys.argv[1:]
MiB = 1 << 20
FULL = 4 * MiB  # more than the tmpfs has room for


class Server:
    def __init__(self, *parameters, which=(plugin, "backend=" + backend)):
        self.socket = os.path.join(directory, "lost.sock")
        self.pidfile = os.path.join(directory, "lost.pid")
        for path in (self.socket, self.pidfile):
            if os.path.exists(path):
                os.unlink(path)
        self.log = open(os.path.join(directory, "lost.log"), "w")
        self.process = subprocess.Popen(
            ["nbdkit", "-f", "-U", self.socket, "-P", self.pidfile, *which, *parameters],
            stderr=self.log)
        end = time.monotonic() + 20
        while not (os.path.exists(self.pidfile) and os.path.getsize(self.pidfile)):
            assert self.process.poll() is None and time.monotonic() < end, "nbdkit did not start"
            time.sleep(0.005)

    def connect(self, export=""):
        h = nbd.NBD()
        h.set_export_name(export)
        h.connect_unix(self.socket)
        return h

    def read_log(self):
        with open(self.log.name) as log:  # not the server's own open file: it would share the position
            return log.read()

    def stop(self):
        self.process.terminate()
        assert self.process.wait(30) == 0, "nbdkit ended badly"
        return self.read_log()


def fails(call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum in (errno.EIO, errno.ENOSPC), error
        return True
    return False


def make_room():
    """Empties the tmpfs again, and the page cache of the device, without any writeback error left behind."""
    os.truncate(backing, 0)
    os.truncate(backing, 64 * MiB)
    subprocess.run(["blockdev", "--flushbufs", device], check=False)


def lose(h, start):
    """Written to the page cache, too much to be written back."""
    for at in range(start, start + FULL, MiB):
        h.pwrite(os.urandom(MiB), at)


def flush_at_once(*handles, fua=False):
    """One flush, or FUA write, on each, all in flight together.  Returns how many said ok."""
    results = []

    def done(error):
        results.append(error.value)  # a ctypes integer
        return 1

    for i, h in enumerate(handles):
        if fua:
            data = nbd.Buffer.from_bytearray(bytearray(os.urandom(FULL)))
            h.aio_pwrite(data, (i + 1) * FULL, done, nbd.CMD_FLAG_FUA)
        else:
            h.aio_flush(done)
    while len(results) < len(handles):
        for h in set(handles):
            if h.aio_in_flight() > 0:
                h.poll(1)
    return sum(1 for error in results if error == 0)


def control():
    """nbdkit's file plugin has the hole: without a false ok here, the rounds with ours would prove nothing."""
    for _ in range(20):
        server = Server(device, which=("file",))
        h = server.connect()
        lose(h, 0)
        ok = flush_at_once(h, h)
        make_room()
        h.shutdown()
        server.stop()
        if ok > 0:
            return
    sys.exit("no false ok from nbdkit's file plugin in 20 rounds: the fault is not what it should be")


def one_round(number):
    server = Server(device)
    first, second = server.connect(), server.connect()
    lose(first, 0)
    # In turn on one connection, on two, four at once, and FUA writes.
    handles = [(first, first), (first, second), (first, second, first, second), (first, second)][number % 4]
    ok = flush_at_once(*handles, fua=number % 4 == 3)
    assert ok == 0, f"round {number}: {ok} of {len(handles)} said ok after a lost write"
    if number % 4 == 3:
        assert flush_at_once(first, second) == 0, f"round {number}: a flush after lost FUA writes said ok"
    # And so it stays, for flush and FUA, on old connections and new ones; reads go on.
    make_room()
    third = server.connect()
    for h in (first, second, third):
        assert fails(h.flush), "a later flush said ok"
        assert fails(h.pwrite, bytes(4096), 0, nbd.CMD_FLAG_FUA), "a later FUA write said ok"
        assert fails(h.zero, 4096, 0, nbd.CMD_FLAG_FUA), "a later FUA zero said ok"
        assert fails(h.trim, 4096, 0, nbd.CMD_FLAG_FUA), "a later FUA trim said ok"
        assert len(h.pread(8192, 20 * MiB)) == 8192
        h.pwrite(b"plain writes go on", 20 * MiB)
    for h in (first, second, third):
        h.shutdown()
    log = server.stop()
    assert log.count("a sync failed") == 1, "one line was expected to say so:\n" + log
    assert "restart nbdkit" in log, log


def last_client_leaves():
    """dir=: the disk is closed after its last client, and opened again for the next, and is still failed."""
    name = os.path.join(directory, "exports")
    os.makedirs(name, exist_ok=True)
    node = os.path.join(name, "disk")
    if not os.path.exists(node):
        os.mknod(node, 0o600 | 0o060000, os.stat(device).st_rdev)
    for ask in (True, False):
        server = Server("dir=" + name)
        h = server.connect("disk")
        lose(h, 0)
        if ask:
            assert fails(h.flush), "the first flush said ok"
        h.shutdown()
        # Without a flush of the client's own it is the plugin's sync at the last close that finds out.
        end = time.monotonic() + 20
        while "a sync failed" not in server.read_log():
            assert time.monotonic() < end, "the last close did not find the lost write"
            time.sleep(0.01)
        make_room()
        h = server.connect("disk")
        assert fails(h.flush), "a client who came after the last had left was told ok"
        h.shutdown()
        server.stop()


def one_write_of_many():
    """A full filesystem fails the one FUA write; the disk stays good."""
    name = os.path.join(directory, "small")
    if not os.path.ismount(name):
        os.makedirs(name, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "aiodisk-test", name], check=True)
    try:
        path = os.path.join(name, "image")
        with open(path, "w") as image:
            image.truncate(16 * MiB)
        server = Server(path)
        h = server.connect()
        assert fails(h.pwrite, os.urandom(2 * MiB), 0, nbd.CMD_FLAG_FUA), "there is no room for that"
        h.zero(2 * MiB, 0)
        h.flush()
        h.pwrite(b"x" * 4096, 0, nbd.CMD_FLAG_FUA)
        h.shutdown()
        log = server.stop()
        assert "a sync failed" not in log, log
    finally:
        subprocess.run(["umount", "-l", name], check=True)


control()
for i in range(int(rounds)):
    one_round(i)
    make_room()
print(f"{rounds} rounds: no flush said ok")
last_client_leaves()
print("dir=: remembered after the last client left")
one_write_of_many()
print("a full filesystem fails one write, not the disk")
