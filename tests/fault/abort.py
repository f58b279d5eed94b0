#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes the nbdkit of ./serve abort under a client that reconnects, and checks what is left.

usage: abort.py ABORTS DIRECTORY IMAGE SERVE-ARGUMENTS...

The client is QEMU's block layer with reconnect-delay, in qemu-storage-daemon.  This program writes
through the daemon and must never see an error.  Another client provokes nbdkit's own abort: it dies
with requests in flight on each connection.  If that fails, as with nbdkit 1.34 and later, SIGABRT
takes its place.
"""
import glob
import os
import random
import signal
import subprocess
import sys
import time

import nbd

from servers import block_content, check_block, poll_all, wait_until

ATTACKS = 100   # attempts to provoke one abort
SLOTS, BLOCK = 64, 16 << 10
HANG = 60       # seconds: no answer by then is a failure
# Seconds from a restart to the next attack, so that ./serve does not give up: an attack that comes
# before the abort of the previous one was seen can make the next nbdkit abort too.
SPACING = 5.2
wanted, directory, image, *command = sys.argv[1:]
wanted = int(wanted)
sock, proxy = os.path.join(directory, "serve.sock"), os.path.join(directory, "proxy.sock")


def server_pid():
    """The process of nbdkit, or 0 if none listens now."""
    try:
        with open(glob.glob(directory + "/run/aiodisk.*/pid")[0]) as file:
            return int(file.read() or 0)
    except (IndexError, FileNotFoundError):
        return 0


class Load:
    """Writes versions of blocks through the daemon; each slot owns a block.  A third of the writes
    has FUA, and a flush follows each 32nd write."""

    def __init__(self):
        self.h = nbd.NBD()
        self.h.connect_unix(proxy)
        self.asked = dict.fromkeys(range(SLOTS), 0)
        self.acknowledged = dict(self.asked)
        self.ready, self.in_flight = list(range(SLOTS)), 0
        self.writes = self.flushes = 0

    def done(self, slot, error):
        if error.value:
            # libnbd would swallow an exception here.
            print(f"slot {slot}: {os.strerror(error.value)}", file=sys.stderr, flush=True)
            os._exit(1)
        self.in_flight -= 1
        if slot is None:
            self.flushes += 1
        else:
            self.acknowledged[slot] = self.asked[slot]
            self.writes += 1
            self.ready.append(slot)
        return 1

    def submit(self, slot):
        self.asked[slot] += 1
        data = bytearray(block_content(slot, self.asked[slot], BLOCK))
        self.h.aio_pwrite(nbd.Buffer.from_bytearray(data), slot * BLOCK,
                          lambda error: self.done(slot, error),
                          nbd.CMD_FLAG_FUA if slot % 3 == 0 else 0)
        self.in_flight += 1
        if self.asked[slot] % 32 == 0:
            self.h.aio_flush(lambda error: self.done(None, error))
            self.in_flight += 1

    def run(self, writes):
        """Until so many more writes were answered."""
        target, end = self.writes + writes, time.monotonic() + HANG
        while self.writes < target:
            assert time.monotonic() < end, "the client hangs"
            while self.ready:
                self.submit(self.ready.pop(0))
            poll_all([self.h], 100)

    def finish(self):
        end = time.monotonic() + HANG
        while self.in_flight:
            assert time.monotonic() < end, "the client hangs"
            poll_all([self.h], 100)
        self.h.flush()
        self.h.shutdown()


def attack():
    """A client that dies with 64 requests in flight on 4 connections."""
    pid = os.fork()
    if pid == 0:
        try:
            handles = [nbd.NBD() for _ in range(4)]
            for h in handles:
                h.connect_unix(sock)
            buffers = [nbd.Buffer(256 << 10) for _ in range(64)]
            for i, buffer in enumerate(buffers):
                handles[i % 4].aio_pread(buffer, (8 << 20) + i * (256 << 10))
            end = time.monotonic() + random.random() / 100
            while time.monotonic() < end:
                poll_all(handles, 1)
        except nbd.Error:  # the server aborts meanwhile
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def gone(pid):
    return server_pid() != pid


def abort_once(load):
    """Returns whether nbdkit aborted by itself."""
    before, provoked = server_pid(), False
    for _ in range(ATTACKS):
        attack()
        load.run(8)
        if gone(before):
            provoked = True
            break
    else:
        os.kill(before, signal.SIGABRT)
    wait_until(lambda: server_pid() not in (0, before), "./serve to start nbdkit again")
    load.run(SLOTS * 4)  # the requests in flight are sent again, and later ones work
    return provoked


def main():
    log = open(os.path.join(directory, "serve.log"), "w")
    serve = subprocess.Popen([*command, "--socket", sock, image], stdout=log, stderr=log)
    daemon = None
    try:
        wait_until(lambda: os.path.exists(sock) and server_pid(), "./serve to serve", 100)
        daemon = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev",
             f"driver=nbd,node-name=n,server.type=unix,server.path={sock},reconnect-delay=60",
             "--nbd-server", "addr.type=unix,addr.path=" + proxy,
             "--export", "type=nbd,id=e,node-name=n,name=,writable=on"], stderr=log)
        wait_until(lambda: os.path.exists(proxy), "the daemon")
        load = Load()
        load.run(SLOTS * 4)
        own = 0
        for _ in range(wanted):
            own += abort_once(load)
            start = time.monotonic()
            while time.monotonic() < start + SPACING:
                load.run(SLOTS)
        load.finish()
        with open(image, "rb") as file:
            for slot in range(SLOTS):
                check_block(file.read(BLOCK), slot, load.asked[slot], load.acknowledged[slot],
                            image)
        with open(log.name) as file:
            lines = [line for line in file if line.startswith("serve:")]
        aborts = len(lines)
        assert aborts >= wanted and \
            set(lines) == {"serve: nbdkit aborted; starting it again\n"}, lines
        print(f"{aborts} aborts, nbdkit's own in {own} of {wanted} rounds; {load.writes} writes "
              f"and {load.flushes} flushes, no error, nothing lost")

        # An nbdkit that aborts again and again is given up.
        while serve.poll() is None:
            pid = server_pid()
            if pid:
                os.kill(pid, signal.SIGABRT)
                wait_until(lambda: gone(pid) or serve.poll() is not None, "nbdkit to abort")
        with open(log.name) as file:
            last = [line for line in file if line.startswith("serve:")]
        assert serve.returncode == 128 + signal.SIGABRT and len(last) <= aborts + 5 and \
            last[-1] == "serve: nbdkit aborted 5 times within 10 s; giving up\n", last
        assert not os.path.exists(sock), "the socket stayed"
    finally:
        if daemon:
            daemon.kill()
        if serve.poll() is None:
            serve.terminate()
            serve.wait()


main()
