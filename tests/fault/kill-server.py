#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Kills servers with 64 requests in flight, then checks the clients and the image.

usage: kill-server.py PLUGIN BACKEND ROUNDS DIRECTORY IMAGE...
"""
import os
import random
import subprocess
import sys
import time

import nbd

from servers import Server, block_content, check_block, poll_all, wait_for_death, \
    wait_until

plugin, backend, rounds, directory, *images = sys.argv[1:]
CONNECTIONS, DEPTH = 4, 16
SLOTS = CONNECTIONS * DEPTH
BLOCK = 64 << 10
PATTERN = b"\x5a"
HANG = 20  # seconds: a client that has no error by then hangs


def serve(image, *parameters):
    return Server(directory, plugin, image, "backend=" + backend, *parameters)


def content(slot, version):
    return block_content(slot, version, BLOCK)


class Load:
    """Keeps SLOTS requests in flight.  Each slot owns a block.

    A quarter of the slots read; the others write, a third of them with FUA.
    """

    def __init__(self, server, asked):
        self.handles = [server.connect() for _ in range(CONNECTIONS)]
        self.asked, self.acknowledged = asked, dict(asked)
        self.ready = list(range(SLOTS))
        self.answered = self.failed = self.in_flight = 0

    def submit(self, slot):
        h = self.handles[slot // DEPTH]
        kind = slot % 4
        if kind == 0:
            h.aio_pread(nbd.Buffer(BLOCK), slot * BLOCK, lambda error: self.done(slot, error))
        else:
            self.asked[slot] += 1
            data = bytearray(content(slot, self.asked[slot]))
            h.aio_pwrite(nbd.Buffer.from_bytearray(data), slot * BLOCK,
                         lambda error: self.done(slot, error),
                         nbd.CMD_FLAG_FUA if kind == 3 else 0)
        self.in_flight += 1

    def done(self, slot, error):
        self.in_flight -= 1
        if error.value:
            self.failed += 1
        else:
            self.answered += 1
            self.acknowledged[slot] = self.asked[slot]
            self.ready.append(slot)
        return 1

    def run_until(self, answers):
        end = time.monotonic() + HANG
        while self.answered < answers:
            assert time.monotonic() < end, f"only {self.answered} answers"
            while self.ready:
                self.submit(self.ready.pop(0))
            poll_all(self.handles, 1000)
        while self.ready:
            self.submit(self.ready.pop(0))
        assert self.in_flight == SLOTS

    def check_failure(self):
        """Every request in flight ends, and later requests fail."""
        wait_for_death(self.handles, HANG)
        for h in self.handles:
            try:
                h.flush()
                sys.exit("a flush succeeded although the server is dead")
            except nbd.Error:
                pass
        assert self.in_flight == 0 and self.failed > 0, \
            f"{self.in_flight} requests are still in flight, {self.failed} failed"


def check_image(image, load):
    """Each sector holds the acknowledged version, or the version that was in flight.

    The image is read directly, and through a new server.
    """
    fd = os.open(image, os.O_RDWR)
    server = serve(image, "cache=none")
    h = server.connect()
    for slot in range(SLOTS):
        block = os.pread(fd, BLOCK, slot * BLOCK)
        new = content(slot, load.asked[slot])
        check_block(block, slot, load.asked[slot], load.acknowledged[slot], image)
        if slot % 16 == 1:
            assert h.pread(BLOCK, slot * BLOCK) == block, \
                f"{image}, slot {slot}: the next server reads other data"
            # The image is usable: a write makes the block one version again.
            h.pwrite(new, slot * BLOCK)
            assert os.pread(fd, BLOCK, slot * BLOCK) == new
        elif block != new:
            os.pwrite(fd, new, slot * BLOCK)
    os.fsync(fd)
    os.close(fd)
    h.shutdown()
    server.stop()


def one_round(number):
    image = images[number % len(images)]
    server = serve(image, "cache=" + ("none", "default")[number // 2 % 2])
    load = Load(server, asked[image])
    load.run_until(random.randrange(1, 300))
    server.kill()
    load.check_failure()
    check_image(image, load)
    return load.failed


def real_client(image, command, first, second):
    """Kills the server while a real client writes; the client must report the failure."""
    def first_sector():
        with open(image, "rb") as f:
            return f.read(512)

    with open(image, "r+b") as f:
        f.write(bytes(512))
    server = serve(image)
    program = subprocess.Popen([*command, "nbd+unix:///?socket=" + server.socket],
                               stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    program.stdin.write(first)
    program.stdin.flush()
    wait_until(lambda: first_sector() == PATTERN * 512 or program.poll() is not None,
               f"{command[0]} to write", HANG)
    assert program.poll() is None, f"{command[0]} ended before the server was killed"
    server.kill()
    try:
        program.communicate(second, HANG)
    except subprocess.TimeoutExpired:
        program.kill()
        sys.exit(f"{command[0]} hangs")
    assert program.returncode != 0, f"{command[0]} reported success"


failed = 0
for path in images:
    with open(path, "r+b") as file:
        file.write(bytes(SLOTS * BLOCK))
        os.fsync(file.fileno())
asked = {path: dict.fromkeys(range(SLOTS), 0) for path in images}
for i in range(int(rounds)):
    failed += one_round(i)
print(f"{rounds} servers killed, {failed} requests failed; "
      "no client hung, and no acknowledged write is missing")
real_client(images[0], ["qemu-io", "-f", "raw"], b"write -P 0x5a 0 1M\n", b"write 0 1M\nflush\n")
real_client(images[0], ["nbdcopy", "-"], PATTERN * (1 << 20), PATTERN * (1 << 20))
