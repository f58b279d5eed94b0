#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Mixed load on one server for some time, with a sample of the server every few seconds.

usage: mixed.py DIRECTORY PLUGIN SECONDS SAMPLES PARAMETERS...

Bursts and pauses alternate.  In a burst four clients that stay keep reading, writing, zeroing,
trimming and flushing; others come, use an export, and leave or are killed with requests in flight;
images are removed and made again, also while they are open.  A pause is longer than idle workers
live.  At its end the four clients are still connected and nothing else may be left; this state is
a sample of the phase "rest".  Every block that is read is checked.
"""
import os
import random
import signal
import sys
import time

import nbd

from sampler import Sampler
from servers import Server, block_content, poll_all, wait_until

directory, plugin, seconds, samples, *parameters = sys.argv[1:]
seconds = float(seconds)
STAYING, SLOTS, BLOCK = 4, 32, 16 << 10  # SLOTS requests at once; each slot owns a block
THREADS = 16        # the pool's bound: half of SLOTS
BURST, PAUSE = 45, 12   # seconds; an idle worker lives for 10 s
INTERVAL = 5        # seconds between samples
TICK = 0.1          # seconds between the batches of SLOTS requests
EXPORTS = 40
exports = os.path.join(directory, "exports")
metrics = os.path.join(directory, "metrics.prom")


def make(name, size=1 << 20):
    with open(os.path.join(exports, name), "wb") as file:
        file.truncate(size)


class Staying:
    """The clients that stay; each slot owns a block of one export."""

    def __init__(self, server):
        self.handles = [server.connect("steady") for _ in range(STAYING)]
        self.versions = [0] * SLOTS
        self.waiting = self.ticks = 0

    def done(self, buffer, slot, error):
        if error.value or buffer and \
                buffer.to_bytearray() != block_content(slot, self.versions[slot], BLOCK):
            # libnbd would swallow an exception here.
            print(f"slot {slot}: " + (os.strerror(error.value) if error.value else "other data"),
                  file=sys.stderr, flush=True)
            os._exit(1)
        self.waiting -= 1
        return 1

    def submit(self, slot):
        h, at, what = self.handles[slot % STAYING], slot * BLOCK, (slot + self.ticks) % 16
        buffer = None

        def done(error):
            return self.done(buffer, slot, error)

        self.waiting += 1
        if what < 8:
            buffer = nbd.Buffer(BLOCK)
            h.aio_pread(buffer, at, done)
        elif what < 14:
            self.versions[slot] += 1
            data = bytearray(block_content(slot, self.versions[slot], BLOCK))
            h.aio_pwrite(nbd.Buffer.from_bytearray(data), at, done,
                         nbd.CMD_FLAG_FUA if what == 8 and self.ticks % 10 == 0 else 0)
        elif what == 14:
            self.versions[slot] = 0
            h.aio_zero(BLOCK, at, done)
        elif self.ticks % 10 == 0:
            h.aio_flush(done)
        else:
            h.aio_trim(BLOCK, (SLOTS + slot) * BLOCK, done)

    def batch(self):
        """SLOTS requests at once, and their answers."""
        self.ticks += 1
        for slot in range(SLOTS):
            self.submit(slot)
        end = time.monotonic() + 60
        while self.waiting:
            assert time.monotonic() < end, "the server hangs"
            poll_all(self.handles, 100)


class Passing:
    """Clients that come and go, and exports too."""

    def __init__(self, server):
        self.server, self.connects, self.killed, self.removed = server, 0, 0, 0
        self.random = random.Random(1)

    def connect(self, name):
        self.connects += 1
        return self.server.connect(name)

    def use(self, name, remove=False):
        """One client; the image may be removed under the client, and is then made again."""
        h = self.connect(name)
        if remove:
            os.unlink(os.path.join(exports, name))
            self.removed += 1
        at, data = self.random.randrange(900_000), self.random.randbytes(5000)
        h.pwrite(data, at)
        assert h.pread(5000, at) == data, "other data"
        if remove:
            try:
                self.connect(name)
                sys.exit("a removed image was served")
            except nbd.Error:
                make(name)
        if self.random.random() < 0.8:
            h.shutdown()

    def kill_client(self, name):
        """A client dies with one request in flight on each of four connections.

        nbdkit up to 1.32.5 aborts if a client dies with several requests on one connection.
        """
        answers, ready = os.pipe()
        self.connects += 4
        pid = os.fork()
        if pid == 0:
            try:
                handles = [self.server.connect(name) for _ in range(4)]
                buffer = nbd.Buffer(1 << 20)
                for h in handles:
                    h.aio_pread(buffer, 0)
                os.write(ready, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.close(ready)
        assert os.read(answers, 1) == b"x", "the client has failed"
        os.close(answers)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.killed += 1

    def tick(self, number):
        name = f"x{self.random.randrange(EXPORTS)}"
        if number % 10 == 3:
            self.use(name, remove=True)
        elif number % 30 == 5:
            self.kill_client(name)
        elif number % 2 == 0:
            self.use(name)


class Run:
    def __init__(self):
        os.mkdir(exports)
        make("steady", 4 << 20)
        for i in range(EXPORTS):
            make(f"x{i}")
        self.server = Server(directory, "-t", "8", plugin, "dir=" + exports, "dispatch=pool",
                             f"max-threads={THREADS}", "metrics=" + metrics, *parameters)
        self.staying, self.passing = Staying(self.server), Passing(self.server)
        self.staying.batch()
        for i in range(EXPORTS):  # from here on no export is new to the metrics
            self.passing.use(f"x{i}")
        wait_until(lambda: os.path.exists(metrics), "the metrics")
        self.sampler = Sampler(self.server.process.pid, metrics, samples)
        self.next = time.monotonic() + INTERVAL
        self.rest = None

    def wait(self, until, phase):
        """Sleeps until this time, with samples in between."""
        while True:
            now = time.monotonic()
            if now >= self.next:
                self.sampler.sample(phase, self.passing.connects)
                self.next += INTERVAL * max(1, (now - self.next) // INTERVAL)
            if now >= until:
                return
            time.sleep(max(0, min(until, self.next) - now))

    def burst(self, end):
        number = 0
        while time.monotonic() < end:
            tick = time.monotonic() + TICK
            self.staying.batch()
            self.passing.tick(number)
            number += 1
            self.wait(tick, "burst")

    def pause(self):
        self.wait(time.monotonic() + PAUSE, "pause")
        held, end = self.sampler.held(), time.monotonic() + 30
        self.rest = self.rest or held
        while held != self.rest and time.monotonic() < end:
            time.sleep(0.1)
            held = self.sampler.held()
        self.sampler.sample("rest", self.passing.connects)

    def run(self):
        end = time.monotonic() + seconds
        self.pause()
        while time.monotonic() < end:
            self.burst(min(end, time.monotonic() + BURST))
            self.pause()
        for h in self.staying.handles:
            h.shutdown()
        self.server.stop()
        print(f"   {self.passing.connects} connects, {self.passing.killed} clients killed, "
              f"{self.passing.removed} images removed and made again")


Run().run()
