#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Kills clients with 64 mixed reads and writes in flight, and checks what they leave behind.

usage: kill-client.py PLUGIN ROUNDS CONNECTIONS MOUNTPOINT DIRECTORY PARAMETERS...

Each slot of the client owns a block of the image, and writes version after version of the block.
The client notes the requested and the acknowledged versions in shared memory, which outlives the
client.
"""
import fcntl
import mmap
import os
import random
import re
import signal
import struct
import sys
import termios

import nbd

from servers import Server, block_content, check_block, poll_all, wait_until

plugin, rounds, connections, mountpoint, directory = sys.argv[1:6]
parameters = sys.argv[6:]
rounds, connections = int(rounds), int(connections)
SLOTS = 64
DEPTH = SLOTS // connections
BLOCK = 128 << 10
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
MAX_THREADS = 16  # fewer than the requests in flight: most of them wait in the pool's queue
image = os.path.join(mountpoint, "image")


class CountedServer(Server):
    def __init__(self):
        super().__init__(directory, "-t", str(DEPTH), plugin, image,
                         f"max-threads={MAX_THREADS}", *parameters)
        # One client comes and goes before the count, so that what nbdkit opens once is open.
        h = self.connect()
        h.pread(BLOCK, 0)
        h.flush()
        h.shutdown()
        wait_until(self.is_clean, "the first client's connection to end")
        self.descriptors = self.count_descriptors()

    def path(self, name):
        return f"/proc/{self.process.pid}/{name}"

    def count_descriptors(self):
        return len(os.listdir(self.path("fd")))

    def count_connections(self):
        """Counts the server's sockets without the listening socket."""
        count = -1
        for fd in os.listdir(self.path("fd")):
            try:
                count += os.readlink(self.path("fd/" + fd)).startswith("socket:")
            except FileNotFoundError:
                pass
        return count

    def threads(self):
        """Returns the names of all threads but the workers, and the number of workers."""
        others, workers = [], 0
        for tid in [] if self.ended() else os.listdir(self.path("task")):
            try:
                with open(self.path(f"task/{tid}/comm")) as comm:
                    name = comm.read().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name.startswith("aiodisk-worker"):
                workers += 1
            elif not name.startswith("iou-"):  # the kernel's own threads for io_uring
                others.append(name)
        return sorted(others), workers

    def is_clean(self):
        """The dead client's connections and the image's threads are gone, or nbdkit has ended."""
        return self.ended() or (not self.count_connections() and
                                self.threads() == (["aiodisk-watch", "nbdkit"], 0))

    def has_nbdkits_own_abort(self):
        """nbdkit up to 1.32.5 aborts if a client dies with parallel requests on a connection."""
        return DEPTH > 1 and self.process.returncode == -signal.SIGABRT and \
            re.search(r"connections\.c.*Assertion `sock >= 0' failed", self.read_log()) is not None


class Notes:
    """Counters and versions in shared memory; only the client writes them during a round."""
    PER_SLOT = struct.Struct("QQ")  # the requested version, the acknowledged version

    def __init__(self):
        self.memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)

    def get(self, slot):
        return self.PER_SLOT.unpack_from(self.memory, slot * self.PER_SLOT.size)

    def set(self, slot, asked, acknowledged):
        self.PER_SLOT.pack_into(self.memory, slot * self.PER_SLOT.size, asked, acknowledged)

    def counters(self):
        """Returns the requests in flight, the answers, and whether nbdkit read all requests."""
        return struct.unpack_from("QQQ", self.memory, mmap.PAGESIZE)

    def set_counters(self, in_flight, answered, taken):
        struct.pack_into("QQQ", self.memory, mmap.PAGESIZE, in_flight, answered, taken)


def content(slot, version):
    return block_content(slot, version, BLOCK)


def client(server, notes):
    """Never ends by itself.  Even slots read their block, odd slots write their block."""
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
            # libnbd would swallow an exception here.
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
        """Every request was sent, and the server has read it from the socket."""
        unread = fcntl.ioctl(h.aio_get_fd(), termios.TIOCOUTQ, bytes(4))
        return not h.aio_get_direction() & nbd.AIO_DIRECTION_WRITE and unread == bytes(4)

    while True:
        while ready:
            submit(ready.pop(0))
        notes.set_counters(in_flight, answered, all(taken(h) for h in handles))
        poll_all(handles, 1)


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
    """Each sector holds the acknowledged version, or the one version that was in flight."""
    for slot in range(1, SLOTS, 2):
        asked, acknowledged = notes.get(slot)
        found = h.pread(BLOCK, slot * BLOCK)
        check_block(found, slot, asked, acknowledged, what)
        # The next client starts from blocks that are of one version each.
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
    """Returns the number of requests that were in flight at the kill."""
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
    server = CountedServer()
    try:
        for number in range(rounds):
            in_flight += one_round(number, server, notes)
            wait_until(server.is_clean, f"the threads and connections of client {number} to end")
            try:
                h = server.connect()
            except nbd.Error:
                # The server is dead: is_clean() saw a process that was about to end.
                wait_until(server.ended, "the server, which refuses connections, to end")
                assert server.has_nbdkits_own_abort(), \
                    f"round {number}: nbdkit ended with status {server.process.returncode}: " \
                    f"{server.read_log()}"
                aborts += 1
                server = CountedServer()
                h = server.connect()
            check_blocks(h, notes, f"round {number}")
            wait_until(server.is_clean, "the checking client's connection to end")
            assert not server.ended(), \
                f"round {number}: nbdkit ended after an orderly disconnect: {server.read_log()}"
            assert server.count_descriptors() == server.descriptors, \
                f"round {number}: {server.count_descriptors()} descriptors are open, " \
                f"{server.descriptors} were open before"
        server.stop()
    finally:
        server.process.kill()
    print(f"{rounds} clients killed with {connections} connections and "
          f"{in_flight / rounds:.1f} requests in flight; nbdkit's own abort: {aborts} times")


main()
