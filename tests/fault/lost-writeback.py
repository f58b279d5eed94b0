#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Flushes after a lost write: every flush fails for as long as the server runs.

usage: lost-writeback.py PLUGIN BACKEND ROUNDS LOOP-DEVICE BACKING-FILE DIRECTORY

Each round starts a new server, because a server remembers the failure until its end.
"""
import errno
import os
import subprocess
import sys

import nbd

from servers import Server, wait_until

plugin, backend, rounds, device, backing, directory = sys.argv[1:]
MiB = 1 << 20
FULL = 4 * MiB  # more than the tmpfs can hold


def serve(parameter):
    return Server(directory, plugin, "backend=" + backend, parameter)


def fails(call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum in (errno.EIO, errno.ENOSPC), error
        return True
    return False


def make_room():
    """Empties the tmpfs and the device's page cache; no writeback error remains."""
    os.truncate(backing, 0)
    os.truncate(backing, 64 * MiB)
    subprocess.run(["blockdev", "--flushbufs", device], check=False)


def lose(h, start):
    """Writes more into the page cache than can be written back."""
    for at in range(start, start + FULL, MiB):
        h.pwrite(os.urandom(MiB), at)


def flush_at_once(*handles, fua=False):
    """Sends one flush, or FUA write, on each handle at once.  Returns how many succeeded."""
    results = []

    def done(error):
        results.append(error.value)  # error is a ctypes integer
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
    """nbdkit's file plugin must report a false success; otherwise the rounds prove nothing."""
    for _ in range(20):
        server = Server(directory, "file", device)
        h = server.connect()
        lose(h, 0)
        ok = flush_at_once(h, h)
        make_room()
        h.shutdown()
        server.stop()
        if ok > 0:
            return
    sys.exit("nbdkit's file plugin reported no false success in 20 rounds: the fault does not work")


def one_round(number):
    server = serve(device)
    first, second = server.connect(), server.connect()
    lose(first, 0)
    # In turn: two flushes on one connection, on two, four at once, and two FUA writes.
    handles = [(first, first), (first, second), (first, second, first, second),
               (first, second)][number % 4]
    ok = flush_at_once(*handles, fua=number % 4 == 3)
    assert ok == 0, f"round {number}: {ok} of {len(handles)} succeeded after a lost write"
    if number % 4 == 3:
        assert flush_at_once(first, second) == 0, \
            f"round {number}: a flush succeeded after lost FUA writes"
    # The failure is sticky for flush and FUA, on old and new connections; reads still work.
    make_room()
    third = server.connect()
    for h in (first, second, third):
        assert fails(h.flush), "a later flush succeeded"
        assert fails(h.pwrite, bytes(4096), 0, nbd.CMD_FLAG_FUA), "a later FUA write succeeded"
        assert fails(h.zero, 4096, 0, nbd.CMD_FLAG_FUA), "a later FUA zero succeeded"
        assert fails(h.trim, 4096, 0, nbd.CMD_FLAG_FUA), "a later FUA trim succeeded"
        assert len(h.pread(8192, 20 * MiB)) == 8192
        h.pwrite(b"plain writes still work", 20 * MiB)
    for h in (first, second, third):
        h.shutdown()
    log = server.stop()
    assert log.count("a sync failed") == 1, "expected one line about the failed sync:\n" + log
    assert "restart nbdkit" in log, log


def last_client_leaves():
    """dir=: the disk is closed after its last client and is still failed when it is reopened."""
    name = os.path.join(directory, "exports")
    os.makedirs(name, exist_ok=True)
    node = os.path.join(name, "disk")
    if not os.path.exists(node):
        os.mknod(node, 0o600 | 0o060000, os.stat(device).st_rdev)
    for ask in (True, False):
        server = serve("dir=" + name)
        h = server.connect("disk")
        lose(h, 0)
        if ask:
            assert fails(h.flush), "the first flush succeeded"
        h.shutdown()
        # If the client does not flush, the plugin's own sync at the last close finds the failure.
        wait_until(lambda: "a sync failed" in server.read_log(),
                   "the last close to find the lost write", 20)
        make_room()
        h = server.connect("disk")
        assert fails(h.flush), "a flush succeeded for a client that connected after the last close"
        h.shutdown()
        server.stop()


def one_write_of_many():
    """On a full filesystem one FUA write fails; the disk itself does not."""
    name = os.path.join(directory, "small")
    if not os.path.ismount(name):
        os.makedirs(name, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "aiodisk-test", name], check=True)
    try:
        path = os.path.join(name, "image")
        with open(path, "w") as image:
            image.truncate(16 * MiB)
        server = serve(path)
        h = server.connect()
        assert fails(h.pwrite, os.urandom(2 * MiB), 0, nbd.CMD_FLAG_FUA), \
            "a write succeeded although the filesystem has no room"
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
print(f"{rounds} rounds: no flush succeeded after a lost write")
last_client_leaves()
print("dir=: the failure is remembered after the last client left")
one_write_of_many()
print("a full filesystem fails one write, not the disk")
