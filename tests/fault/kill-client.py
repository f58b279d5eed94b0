#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Kills clients with 64 requests in flight, reads and writes mixed, and looks at what is left of them.

usage: kill-client.py PLUGIN ROUNDS CONNECTIONS MOUNTPOINT DIRECTORY PARAMETERS...
Each slot of the client owns a block of the image, and writes version after version of it.  It notes in shared memory, which
outlives it, what it has asked for and what was acknowledged.
"""
import fcntl
import mmap
import os
import random
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import nbd

plugin, rounds, connections, mountpoint, directory = sys.argv[1:6]
parameters = sys.argv[6:]
rounds, connections = int(rounds), int(connections)
SLOTS = 64
DEPTH = SLOTS // connections
BLOCK = 128 << 10
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
MAX_THREADS = 16  # fewer than are in flight, so that most of them wait in the pool's queue
image = os.path.join(mountpoint, "image")


class Server:
    def __init__(self):
        self.socket = os.path.join(directory, "kill.sock")
        self.pidfile = os.path.join(directory, "kill.pid")
        self.log = os.path.join(directory, "kill.log")
        for path in (self.socket, self.pidfile):
            if os.path.exists(path):
                os.unlink(path)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["nbdkit", "--exit-with-parent", "-f", "-U", self.socket, "-P", self.pidfile, "-t", str(DEPTH), plugin, image,
                 f"max-threads={MAX_THREADS}", *parameters], stderr=log)
        wait_until(lambda: self.ended() or os.path.exists(self.pidfile) and os.path.getsize(self.pidfile), "nbdkit to start")
        assert not self.ended(), "nbdkit did not start: " + self.said()
        # What one client leaves by design is there before anything is counted: the image stays open, a worker may be idle.
        h = self.connect()
        h.pread(BLOCK, 0)
        h.flush()
        h.shutdown()
        wait_until(self.is_clean, "the first client's connection to end")
        self.descriptors = self.count_descriptors()

    def ended(self):
        return self.process.poll() is not None

    def said(self):
        with open(self.log) as log:
            return log.read()

    def connect(self):
        h = nbd.NBD()
        h.connect_unix(self.socket)
        return h

    def path(self, name):
        return f"/proc/{self.process.pid}/{name}"

    def count_descriptors(self):
        return len(os.listdir(self.path("fd")))

    def connections(self):
        """Its sockets but the listening one."""
        count = -1
        for fd in os.listdir(self.path("fd")):
            try:
                count += os.readlink(self.path("fd/" + fd)).startswith("socket:")
            except FileNotFoundError:
                pass
        return count

    def threads(self):
        """The names of all but the workers, and how many workers there are."""
        others, workers = [], 0
        for tid in [] if self.ended() else os.listdir(self.path("task")):
            try:
                with open(self.path(f"task/{tid}/comm")) as comm:
                    name = comm.read().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name.startswith("aiodisk-worker"):
                workers += 1
            elif not name.startswith("iou-"):  # the kernel's own, for io_uring
                others.append(name)
        return sorted(others), workers

    def is_clean(self):
        """What the dead client held is given back.  Waiting for it ends early when nbdkit has died."""
        return self.ended() or not self.connections() and self.threads()[0] == ["aiodisk-loop", "nbdkit"]

    def died_of_nbdkits_own(self):
        """nbdkit up to 1.32.5 may abort when a client dies with parallel requests in flight on one connection."""
        return DEPTH > 1 and self.process.returncode == -signal.SIGABRT and \
            re.search(r"connections\.c.*Assertion `sock >= 0' failed", self.said()) is not None

    def stop(self):
        self.process.terminate()
        assert self.process.wait(30) == 0, f"nbdkit ended with status {self.process.returncode}: {self.said()}"


def wait_until(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain for " + what
        time.sleep(0.002)


class Notes:
    """In shared memory, each by its one writer: the client."""
    PER_SLOT = struct.Struct("QQ")  # the version asked for, the version acknowledged

    def __init__(self):
        self.memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)

    def get(self, slot):
        return self.PER_SLOT.unpack_from(self.memory, slot * self.PER_SLOT.size)

    def set(self, slot, asked, acknowledged):
        self.PER_SLOT.pack_into(self.memory, slot * self.PER_SLOT.size, asked, acknowledged)

    def counters(self):
        """How many requests are in flight, how many were answered, and whether nbdkit has taken all those in flight."""
        return struct.unpack_from("QQQ", self.memory, mmap.PAGESIZE)

    def set_counters(self, in_flight, answered, taken):
        struct.pack_into("QQQ", self.memory, mmap.PAGESIZE, in_flight, answered, taken)


def content(slot, version):
    """Each sector of a block says which version of which slot it is."""
    return struct.pack("QQ", slot, version) * (BLOCK // 16) if version else bytes(BLOCK)


def client(server, notes):
    """Never ends by itself.  Even slots read their block, odd ones write it."""
    handles = [server.connect() for _ in range(connections)]
    ready = list(range(SLOTS))
    in_flight = answered = 0

    def submit(slot):
        nonlocal in_flight
        h = handles[slot // DEPTH]
        if slot % 2 == 0:
            buf = nbd.Buffer(BLOCK)
            h.aio_pread(buf, (slot + 1) * BLOCK, lambda error: finished(slot, error))
        else:
            asked, acknowledged = notes.get(slot)
            asked += 1
            notes.set(slot, asked, acknowledged)
            buf = nbd.Buffer.from_bytearray(bytearray(content(slot, asked)))
            h.aio_pwrite(buf, slot * BLOCK, lambda error: finished(slot, error))
        in_flight += 1

    def finished(slot, error):
        nonlocal in_flight, answered
        if error.value:
            # An exception would not leave libnbd.
            print(f"client: slot {slot}: {os.strerror(error.value)}", file=sys.stderr, flush=True)
            os._exit(1)
        in_flight -= 1
        answered += 1
        if slot % 2 == 1:
            asked, _ = notes.get(slot)
            notes.set(slot, asked, asked)
        ready.append(slot)
        return 1

    def taken(h):
        """Everything was sent, and has been read from the socket."""
        unread = fcntl.ioctl(h.aio_get_fd(), termios.TIOCOUTQ, bytes(4))
        return not h.aio_get_direction() & nbd.AIO_DIRECTION_WRITE and unread == bytes(4)

    poller = select.poll()
    while True:
        while ready:
            submit(ready.pop(0))
        notes.set_counters(in_flight, answered, all(taken(h) for h in handles))
        for h in handles:
            writing = h.aio_get_direction() & nbd.AIO_DIRECTION_WRITE
            poller.register(h.aio_get_fd(), select.POLLIN | (select.POLLOUT if writing else 0))
        poller.poll(1)
        for h in handles:
            h.poll(0)


def start_client(server, notes):
    pid = os.fork()
    if pid == 0:
        try:
            client(server, notes)
        except BaseException as error:
            print(f"client: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    return pid


def kill(pid, server):
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or server.ended(), "the client ended by itself"


def check_blocks(h, notes, what):
    """What was acknowledged is there, or the one version that was in flight after it, sector by sector."""
    for slot in range(1, SLOTS, 2):
        asked, acknowledged = notes.get(slot)
        found = h.pread(BLOCK, slot * BLOCK)
        if found != content(slot, acknowledged):
            old, new = content(slot, acknowledged)[:512], content(slot, asked)[:512]
            for at in range(0, BLOCK, 512):
                sector = found[at:at + 512]
                assert sector in (old, new), \
                    f"{what}: slot {slot}, byte {at} is {sector[:16].hex()}; acknowledged {acknowledged}, asked for {asked}"
        # The next client goes on from what is there now, all of one version.
        notes.set(slot, asked, asked)
        if found != content(slot, asked):
            h.pwrite(content(slot, asked), slot * BLOCK)
    h.shutdown()


def freeze(mnt, how):
    fd = os.open(mnt, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, how, 0)
    finally:
        os.close(fd)


def one_round(number, server, notes):
    """Returns how many requests were in flight at the kill."""
    frozen = number % 2 == 0
    answered = random.randrange(200)
    notes.set_counters(0, 0, False)

    def busy():
        now = notes.counters()
        return server.ended() or now[0] == SLOTS and (now[2] if frozen else now[1] >= answered)

    if frozen:
        freeze(mountpoint, FIFREEZE)
    pid = start_client(server, notes)
    try:
        wait_until(busy, "the client's requests to be in flight")
        workers = server.threads()[1]
    finally:
        kill(pid, server)
        if frozen:
            freeze(mountpoint, FITHAW)
    assert workers <= MAX_THREADS, f"{workers} workers, {MAX_THREADS} are allowed"
    return notes.counters()[0]


def main():
    with open(image, "wb") as f:
        f.write(bytes((SLOTS + 1) * BLOCK))
        os.fsync(f.fileno())
    notes = Notes()
    aborts, in_flight = 0, 0
    server = Server()
    try:
        for number in range(rounds):
            in_flight += one_round(number, server, notes)
            wait_until(server.is_clean, f"the threads and connections of client {number} to go away")
            try:
                h = server.connect()
            except nbd.Error:
                # Only if it has died: then what was found clean was the process on its way out.
                wait_until(server.ended, "the server, which serves no more, to end")
                assert server.died_of_nbdkits_own(), \
                    f"round {number}: nbdkit ended with status {server.process.returncode}: {server.said()}"
                aborts += 1
                server = Server()
                h = server.connect()
            check_blocks(h, notes, f"round {number}")
            wait_until(server.is_clean, "the checking client to go away")
            assert not server.ended(), f"round {number}: nbdkit ended when a client left in peace: {server.said()}"
            assert server.count_descriptors() == server.descriptors, \
                f"round {number}: {server.count_descriptors()} descriptors are open, {server.descriptors} were before"
        server.stop()
    finally:
        server.process.kill()
    print(f"{rounds} clients killed with {connections} connections and {in_flight / rounds:.1f} requests in flight; "
          f"nbdkit's own abort: {aborts} times")


main()
