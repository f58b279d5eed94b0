#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Kills servers of the image rbd/image with requests in flight, and checks what is durable.

usage: rbd-killed.py PLUGIN DIRECTORY ROUNDS PARAMETERS...
"""
import json
import random
import struct
import subprocess
import sys
import time

import nbd

from servers import Server, block_content, poll_all, wait_for_death

plugin, directory, rounds, *parameters = sys.argv[1:]
CONNECTIONS, DEPTH = 4, 8
SLOTS = CONNECTIONS * DEPTH
BLOCK = 16 << 10
STRIDE = 256 << 10  # the blocks lie in several objects
HANG = 60  # seconds


class Load:
    """Keeps a write in flight for each slot, every fourth with FUA, and a flush on connection 0.

    Without FUA a write that was acknowledged is durable when a flush that began later has ended.
    """

    def __init__(self, server, asked):
        self.handles = [server.connect() for _ in range(CONNECTIONS)]
        self.asked, self.acknowledged, self.durable = asked, dict(asked), dict(asked)
        self.ready = list(range(SLOTS))
        self.answered = self.flushes = self.in_flight = 0
        self.flushing = False

    def submit(self, slot):
        self.asked[slot] += 1
        version = self.asked[slot]
        data = bytearray(block_content(slot, version, BLOCK))
        fua = nbd.CMD_FLAG_FUA if slot % 4 == 3 else 0
        self.in_flight += 1
        self.handles[slot // DEPTH].aio_pwrite(
            nbd.Buffer.from_bytearray(data), slot * STRIDE,
            lambda error: self.written(slot, version, fua, error), fua)

    def written(self, slot, version, fua, error):
        self.in_flight -= 1
        if not error.value:
            self.answered += 1
            self.acknowledged[slot] = version
            if fua:
                self.durable[slot] = version
            self.ready.append(slot)
        return 1

    def flush(self):
        before = dict(self.acknowledged)
        self.flushing = True
        self.handles[0].aio_flush(lambda error: self.flushed(before, error))

    def flushed(self, before, error):
        self.flushing = False
        if not error.value:
            self.flushes += 1
            for slot, version in before.items():
                self.durable[slot] = max(version, self.durable[slot])
        return 1

    def run_until(self, answers):
        end = time.monotonic() + HANG
        while self.answered < answers or self.flushes < 3:
            assert time.monotonic() < end, f"only {self.answered} answers"
            while self.ready:
                self.submit(self.ready.pop(0))
            if not self.flushing:
                self.flush()
            poll_all(self.handles, 1000)
        while self.ready:
            self.submit(self.ready.pop(0))
        assert self.in_flight == SLOTS


def check(h, load):
    """Makes each block one version again.  Returns how many acknowledged versions are gone."""
    lost = 0
    for slot in range(SLOTS):
        block = h.pread(BLOCK, slot * STRIDE)
        for at in range(0, BLOCK, 512):
            sector = block[at:at + 512]
            found_slot, version = struct.unpack("QQ", sector[:16])
            assert sector == block_content(slot, version, 512), \
                f"slot {slot}, byte {at}: a damaged sector {sector[:16].hex()}"
            assert found_slot == slot or version == 0
            assert load.durable[slot] <= version <= load.asked[slot], \
                f"slot {slot}, byte {at}: version {version}; durable was {load.durable[slot]}, " \
                f"asked {load.asked[slot]}"
            lost += version < load.acknowledged[slot]
        load.asked[slot] += 1
        h.pwrite(block_content(slot, load.asked[slot], BLOCK), slot * STRIDE)
    h.flush()
    return lost


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          timeout=60).stdout.decode()


def owner():
    locks = json.loads(output("rbd", "lock", "ls", "rbd/image", "--format", "json"))
    assert len(locks) == 1, locks
    return locks[0]["address"]


def serve():
    return Server(directory, plugin, "rbd=rbd/image", *parameters)


def clear():
    server = serve()
    h = server.connect()
    h.zero(SLOTS * STRIDE, 0)
    h.shutdown()
    server.stop()


clear()
asked = dict.fromkeys(range(SLOTS), 0)
server = serve()
for number in range(int(rounds)):
    load = Load(server, asked)
    dead = owner()
    load.run_until(random.randrange(100, 1000))
    server.kill()
    wait_for_death(load.handles, HANG)
    assert load.in_flight == 0
    begin = time.monotonic()
    server = serve()
    h = server.connect()
    took = time.monotonic() - begin
    assert owner() != dead, "the dead server still has the lock"
    listed = output("ceph", "osd", "blocklist", "ls").split()
    assert dead in listed, f"{dead} is not on the blocklist"
    lost = check(h, load)
    h.shutdown()
    print(f"server killed after {load.answered} writes and {load.flushes} flushes; lock taken over "
          f"in {took:.1f} s; {lost} sectors that were not durable are older")
server.stop()
