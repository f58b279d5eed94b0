#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Many clients of one server: one after another, all at once, and killed with requests in flight.

usage: clients.py DIRECTORY PLUGIN CONNECTS AT-ONCE KILLED SAMPLES PARAMETERS...

After each phase the server has the threads and descriptors of before, and at most GROWTH more
memory than after a first part of the phase, which brings malloc's arenas to their size.
"""
import mmap
import os
import random
import resource
import signal
import struct
import sys
import threading
import time

import nbd

from sampler import Sampler
from servers import Server, poll_all, wait_until

directory, plugin, connects, at_once, killed, samples, *parameters = sys.argv[1:]
connects, at_once, killed = int(connects), int(at_once), int(killed)
SIZE, EXPORTS, CLIENTS = 8 << 20, 8, 4
PARTS = 10      # samples of a phase
WARM = 100      # connects before the first sample of memory
GROWTH = 768    # KiB; churn.sh says how much malloc needs
PATIENCE = float(os.environ.get("PATIENCE", 20))   # seconds for the clients' threads to end


class Leak(Exception):
    pass


class Phases:
    def __init__(self):
        exports = os.path.join(directory, "exports")
        metrics = os.path.join(directory, "metrics.prom")
        os.makedirs(exports, exist_ok=True)
        for i in range(EXPORTS):
            with open(os.path.join(exports, str(i)), "wb") as file:
                file.truncate(SIZE)
        # One thread for each connection: nbdkit up to 1.32.5 may abort if a client dies while
        # several threads serve one connection.
        self.server = Server(directory, "-t", "1", plugin, "dir=" + exports,
                             "metrics=" + metrics, *parameters)
        self.connects, self.failures = 0, []
        self.some(WARM)
        wait_until(lambda: os.path.exists(metrics), "the metrics")
        self.sampler = Sampler(self.server.process.pid, metrics, samples)
        # Two threads: nbdkit's own and the one that writes the metrics.
        wait_until(lambda: self.sampler.held()[0] == 2, "the first clients to be gone")
        self.idle = self.sampler.held()

    def settle(self, what):
        try:
            wait_until(lambda: self.sampler.held() == self.idle, what, PATIENCE)
        except AssertionError:
            raise Leak(f"{what}: {self.sampler.held()} threads and descriptors, {self.idle} before"
                       ) from None
        return self.sampler.memory()[0]

    def compare(self, what, before, after):
        if after > before + GROWTH:
            raise Leak(f"{what}: the memory grew from {before} to {after} KiB")
        print(f"   {what}: {self.idle[0]} threads and {self.idle[1]} descriptors as before; "
              f"{before} KiB, then {after} KiB")

    # --- One after another ---

    def client(self, number, seed):
        rng = random.Random(seed)
        try:
            for _ in range(number):
                h = self.server.connect(str(rng.randrange(EXPORTS)))
                if h.pread(4096, rng.randrange(SIZE - 4096)) != bytes(4096):
                    raise AssertionError("other data")
                h.shutdown()
        except (nbd.Error, AssertionError) as failure:
            self.failures.append(failure)

    def some(self, number):
        threads = [threading.Thread(target=self.client, args=[number // CLIENTS, number + i])
                   for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.failures, self.failures[0]
        self.connects += number // CLIENTS * CLIENTS

    def one_after_another(self):
        before = self.settle("after the first clients")
        for _ in range(PARTS):
            self.some(connects // PARTS)
            after = self.settle("connects")
            self.sampler.sample("connects", self.connects)
        self.compare(f"{connects} connects, one read each", before, after)

    # --- All at once ---

    def all_at_once(self):
        """All are connected together, and each reads; three times."""
        memory = []
        for _ in range(3):
            handles = [self.server.connect(str(i % EXPORTS)) for i in range(at_once)]
            self.connects += at_once
            buffers = [nbd.Buffer(4096) for _ in handles]
            cookies = [h.aio_pread(buffers[i], i * 4096) for i, h in enumerate(handles)]
            for h, cookie, buffer in zip(handles, cookies, buffers):
                while not h.aio_command_completed(cookie):
                    assert h.poll(20000) == 1, "a client hangs"
                assert buffer.to_bytearray() == bytes(4096), "other data"
            threads, descriptors = self.sampler.held()
            assert threads >= at_once and descriptors >= at_once, "they are not all connected"
            self.sampler.sample("at once", self.connects)
            for h in handles:
                h.shutdown()
            memory.append(self.settle(f"{at_once} clients at once"))
            self.sampler.sample("idle", self.connects)
        self.compare(f"{at_once} connections at once, 3 times", memory[0], memory[-1])

    # --- Killed ---

    def doomed(self, seed, notes):
        """Never ends by itself: 4 connections with 16 requests each, of which the server has one in
        its hands and the others in the socket."""
        rng = random.Random(seed)
        handles = [self.server.connect(str(rng.randrange(EXPORTS))) for _ in range(4)]
        in_flight = answered = 0
        buffers = [nbd.Buffer(size) for size in (512, 4096, 65536)]

        def done(error):
            nonlocal in_flight, answered
            if error.value:
                os._exit(1)
            in_flight, answered = in_flight - 1, answered + 1
            return 1

        while True:
            for h in handles:
                while h.aio_in_flight() < 16:
                    buffer = rng.choice(buffers)
                    offset = rng.randrange(SIZE - buffer.size())
                    # Zeros are written, so that every client reads zeros.
                    if rng.random() < 0.3:
                        h.aio_zero(buffer.size(), offset, done)
                    else:
                        h.aio_pread(buffer, offset, done)
                    in_flight += 1
            struct.pack_into("QQ", notes, 0, in_flight, answered)
            poll_all(handles, 1)

    def kill_one(self, number):
        """Returns the number of requests that were in flight."""
        notes = mmap.mmap(-1, mmap.PAGESIZE)
        wanted = random.randrange(1, 60)
        pid = os.fork()
        if pid == 0:
            try:
                self.doomed(number, notes)
            finally:
                os._exit(1)
        try:
            wait_until(lambda: struct.unpack_from("QQ", notes)[1] >= wanted, "the client's answers")
        finally:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status), "the client failed"
        self.connects += 4
        return struct.unpack_from("QQ", notes)[0]

    def kill(self):
        in_flight, memory = 0, []
        for number in range(killed):
            in_flight += self.kill_one(number)
            if (number + 1) % (killed // PARTS) == 0:
                memory.append(self.settle("killed clients"))
                self.sampler.sample("killed", self.connects)
        self.compare(f"{killed} clients killed, {in_flight / killed:.0f} requests in flight",
                     memory[0], memory[-1])

    def run(self):
        try:
            self.one_after_another()
            if at_once:
                self.all_at_once()
            if killed:
                self.kill()
        except Leak as leak:
            self.server.kill()
            print(f"   leak: {leak}")
            sys.exit(3)
        self.some(WARM)
        self.server.stop()


# A descriptor for each client here, and one in the server, which inherits the limit.
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
if hard < at_once + 200:
    sys.exit(f"the limit of descriptors is {hard}")
start = time.monotonic()
Phases().run()
print(f"   {time.monotonic() - start:.0f} s")
