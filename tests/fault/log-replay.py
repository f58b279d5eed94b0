#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The load and the checks of log-replay.sh and fs-replay.sh: the model.

usage: log-replay.py load URI LOG STATE SEED SIZE
       log-replay.py check LOG STATE
       log-replay.py check-image LOG STATE SEED SAMPLES DIRECTORY

`load` sends writes, zeros and trims, some of them with FUA, and flushes on several connections.  It
notes how long the log was when each request was sent, and when each promise was made: an answered
FUA request, or an answered flush, makes a content durable.

`check` takes the log entry by entry, as if the power failed after each of them.  A sector of the
disk then has its content of before the last flush, or one of those that were written after it.
(Whatever subset of these writes reached the disk, each sector has one of these contents; so no
subset needs to be tried.)  Each of them must be durable by what was promised until then, or newer.

`check-image` is for a log of the disk below the filesystem that holds the image.  It mounts disks
of which a power failure could leave one (DIRECTORY/mnt) and reads disk.img there: each sector must
have a content that is durable by what was promised until then, or newer.

Each slot owns a range of bytes and has one request in flight.  One half of the slots are blocks;
the others have SIZE bytes, and share sectors if SIZE is no multiple of 512.
"""
import os
import pickle
import random
import struct
import subprocess
import sys
import time

import nbd

from servers import poll_all
from write_log import FLUSH, FUA, power_failures, read_log

CONNECTIONS, SECTOR = 4, 512
ALIGNED, ALIGNED_SIZE = 32, 16 << 10
SLOTS = 2 * ALIGNED
SECONDS = 0.6
DISK_SIZE = 320 << 20    # bytes of the disk of fs-replay.sh


def make_ranges(size):
    """(offset, bytes) of each slot."""
    assert size % 8 == 0, "8 bytes are one version"
    return [(i * ALIGNED_SIZE, ALIGNED_SIZE) for i in range(ALIGNED)] + \
        [(ALIGNED * ALIGNED_SIZE + i * size, size) for i in range(SLOTS - ALIGNED)]


class Load:
    def __init__(self, uri, log, seed, ranges):
        self.rng, self.log, self.ranges = random.Random(seed), log, ranges
        self.handles = [nbd.NBD() for _ in range(CONNECTIONS)]
        for h in self.handles:
            h.connect_uri(uri)
        # Of each slot: (version, or 0 for zeros; the length of the log when it was sent).
        self.contents = [[(0, 0)] for _ in range(SLOTS)]
        self.answered = [0] * SLOTS     # an index in `contents`
        self.promises = []              # (length of the log, slot, index in `contents`)
        self.ready, self.version, self.in_flight = list(range(SLOTS)), 0, 0
        self.flushing = [False] * CONNECTIONS
        self.counts = dict.fromkeys(("write", "zero", "trim", "fua", "flush"), 0)

    def length(self):
        return os.path.getsize(self.log)

    def promise(self, indexes):
        now = self.length()
        self.promises += ((now, slot, index) for slot, index in indexes)

    def ended(self, error):
        self.in_flight -= 1
        if error.value:
            # libnbd would swallow an exception here.
            print("a request failed: " + os.strerror(error.value), file=sys.stderr)
            os._exit(1)

    def submit(self, slot):
        h, rng, (offset, size) = self.handles[slot % CONNECTIONS], self.rng, self.ranges[slot]
        # A trim keeps the ends of a range that are no whole blocks.
        kind = rng.choices(("write", "zero", "trim"), (6, 2, 1 if slot < ALIGNED else 0))[0]
        fua = rng.random() < 0.1
        flags = nbd.CMD_FLAG_FUA if fua else 0
        self.version += 1
        self.contents[slot].append((self.version if kind == "write" else 0, self.length()))
        index = len(self.contents[slot]) - 1

        def done(error):
            self.ended(error)
            self.answered[slot] = index
            if fua:
                self.promise([(slot, index)])
            self.ready.append(slot)
            return 1
        if kind == "write":
            data = bytearray(struct.pack("<Q", self.version) * (size // 8))
            h.aio_pwrite(nbd.Buffer.from_bytearray(data), offset, done, flags)
        elif kind == "zero":
            if rng.random() < 0.5:
                flags |= nbd.CMD_FLAG_NO_HOLE
            h.aio_zero(size, offset, done, flags)
        else:
            h.aio_trim(size, offset, done, flags)
        self.counts[kind] += 1
        self.counts["fua"] += fua
        self.in_flight += 1

    def flush(self, number):
        covers = list(enumerate(self.answered))

        def done(error):
            self.ended(error)
            self.flushing[number] = False
            self.counts["flush"] += 1
            self.promise(covers)
            return 1
        self.flushing[number] = True
        self.in_flight += 1
        self.handles[number].aio_flush(done)

    def run(self):
        start = self.length()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            while self.ready and self.in_flight < 16:
                self.submit(self.ready.pop(self.rng.randrange(len(self.ready))))
            number = self.rng.randrange(CONNECTIONS)
            if not self.flushing[number] and self.rng.random() < 0.1:
                self.flush(number)
            poll_all(self.handles, 5)
        while self.in_flight:
            poll_all(self.handles, 100)
        return start


def load(uri, log, state, seed, size):
    work = Load(uri, log, int(seed), make_ranges(int(size)))
    start = work.run()
    for h in work.handles:
        h.shutdown()
    with open(state, "wb") as file:
        pickle.dump((start, work.ranges, work.contents, work.promises), file)
    print(" ".join(f"{name}={count}" for name, count in work.counts.items()))


def parts_of_sectors(ranges):
    """Of each sector: [(slot, first byte within the sector, byte after the last)]."""
    parts = {}
    for slot, (offset, size) in enumerate(ranges):
        for sector in range(offset // SECTOR, (offset + size - 1) // SECTOR + 1):
            start = sector * SECTOR
            parts.setdefault(sector, []).append(
                (slot, max(offset - start, 0), min(offset + size - start, SECTOR)))
    return parts


class Disk:
    """What may be on the disk after each entry of the log."""

    def __init__(self, ranges, contents):
        self.contents, self.parts = contents, parts_of_sectors(ranges)
        # The place of each version in `contents`; and the places of zeros.
        self.index = [{v: i for i, (v, _) in enumerate(c) if v} for c in contents]
        self.zeros = [[i for i, (v, _) in enumerate(c) if v == 0] for c in contents]
        self.required = [0] * SLOTS
        self.durable = {sector: (0,) * len(parts) for sector, parts in self.parts.items()}
        self.pending = {}   # of a sector: the contents since the last flush
        self.checked = 0

    def versions(self, sector, data):
        """The version of each part of a sector that is written."""
        found = []
        for slot, first, last in self.parts[sector]:
            part = data[first:last]
            if part != part[:8] * (len(part) // 8):
                raise ValueError(f"slot {slot}, sector {sector}: two contents in one sector")
            found.append(struct.unpack("<Q", part[:8])[0])
        return tuple(found)

    def apply(self, entry):
        """Returns the sectors of which the possible contents are others now."""
        changed = set()
        if entry.flags & FLUSH:
            changed.update(self.pending)
            self.durable.update((sector, seen[-1]) for sector, seen in self.pending.items())
            self.pending = {}
        for at in range(0, entry.length, SECTOR):
            sector = (entry.offset + at) // SECTOR
            if sector not in self.parts:
                continue
            data = entry.data[at:at + SECTOR] if entry.data else bytes(SECTOR)
            versions = self.versions(sector, data)
            if entry.flags & FUA:
                self.durable[sector] = versions
                self.pending.pop(sector, None)
            else:
                self.pending.setdefault(sector, []).append(versions)
            changed.add(sector)
        return changed

    def allowed(self, slot, version, now):
        required = self.required[slot]
        if version:
            return self.index[slot].get(version, -1) >= required
        return any(i >= required and self.contents[slot][i][1] <= now for i in self.zeros[slot])

    def check_versions(self, sector, versions, now):
        for (slot, _, _), version in zip(self.parts[sector], versions):
            self.checked += 1
            if not self.allowed(slot, version, now):
                known = self.contents[slot]
                raise ValueError(
                    f"slot {slot}, sector {sector}: version {version} may be on the disk after "
                    f"{now} bytes of the log, but {known[self.required[slot]]} is durable")

    def check(self, sector, now):
        for versions in [self.durable[sector], *self.pending.get(sector, ())]:
            self.check_versions(sector, versions, now)


def check(log, state):
    with open(state, "rb") as file:
        _, ranges, contents, promises = pickle.load(file)
    promises.sort(reverse=True)
    disk = Disk(ranges, contents)
    sectors_of = [[] for _ in range(SLOTS)]
    for sector, parts in disk.parts.items():
        for slot, _, _ in parts:
            sectors_of[slot].append(sector)
    prefixes = flushes = 0
    for entry in read_log(log):
        prefixes += 1
        flushes += entry.flags & FLUSH
        changed = disk.apply(entry)
        while promises and promises[-1][0] <= entry.end:
            _, slot, index = promises.pop()
            if index > disk.required[slot]:
                disk.required[slot] = index
                changed.update(sectors_of[slot])
        for sector in changed:
            disk.check(sector, entry.end)
    if promises:
        raise ValueError(f"{len(promises)} promises were made when the log was longer than it is")
    print(f"prefixes={prefixes} flushes={flushes} contents={disk.checked}")


def mount_image(image, mountpoint):
    """Mounts the filesystem in a file, which replays its journal; returns the bytes of disk.img."""
    subprocess.run(["mount", "-o", "loop", image, mountpoint], check=True)
    try:
        with open(mountpoint + "/disk.img", "rb") as file:
            return file.read()
    finally:
        subprocess.run(["umount", mountpoint], check=True)


def check_image(log, state, seed, samples, directory):
    with open(state, "rb") as file:
        start, ranges, contents, promises = pickle.load(file)
    promises.sort(reverse=True)
    disk, count = Disk(ranges, contents), 0
    image = directory + "/replayed.img"
    for now in power_failures(log, image, DISK_SIZE, start, random.Random(seed), int(samples)):
        while promises and promises[-1][0] <= now:
            _, slot, index = promises.pop()
            disk.required[slot] = max(disk.required[slot], index)
        data = mount_image(image, directory + "/mnt")
        for sector in disk.parts:
            found = data[sector * SECTOR:(sector + 1) * SECTOR]
            disk.check_versions(sector, disk.versions(sector, found), now)
        count += 1
    print(f"mounts={count} contents={disk.checked}")


try:
    {"load": load, "check": check, "check-image": check_image}[sys.argv[1]](*sys.argv[2:])
except ValueError as e:
    sys.exit(f"lost: {e}")
