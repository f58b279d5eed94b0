#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes and flushes on two connections at once, then checks the order log of the disk below.

usage: flush-order.py URI LOG

The check of each answered flush: every write that was answered before the flush was sent is in the
log, a flush follows that write in the log, and both entries existed when the answer arrived.
"""
import os
import struct
import sys

import nbd

from write_log import FLUSH, read_log

uri, log_path = sys.argv[1:]
BLOCK = 4096
ROUNDS = 150
WRITES = 6  # in flight together with the flushes of the previous round

handles = []
for _ in range(2):
    h = nbd.NBD()
    h.connect_uri(uri)
    handles.append(h)

answered = []  # writes: (number, block)
flushes = []  # (how many of `answered` the flush covers, length of the log at its answer)
outstanding = 0


def write(handle, number):
    global outstanding
    block = number  # each block is written once, so its entry in the log is unique
    data = nbd.Buffer.from_bytearray(bytearray(struct.pack("<Q", number + 1) * (BLOCK // 8)))

    def done(error):
        global outstanding
        assert error.value == 0, os.strerror(error.value)
        answered.append((number, block))
        outstanding -= 1
        return 1

    handle.aio_pwrite(data, block * BLOCK, done, nbd.CMD_FLAG_FUA if number % 11 == 0 else 0)
    outstanding += 1


def flush(handle):
    global outstanding
    covers = len(answered)

    def done(error):
        global outstanding
        assert error.value == 0, os.strerror(error.value)
        flushes.append((covers, os.path.getsize(log_path)))
        outstanding -= 1
        return 1

    handle.aio_flush(done)
    outstanding += 1


def poll(limit):
    while outstanding > limit:
        for handle in handles:
            if handle.aio_in_flight() > 0:
                handle.poll(1)


number = 0
for _ in range(ROUNDS):
    for i in range(WRITES):
        write(handles[i % 2], number)
        number += 1
    # Now some writes are answered and others are in flight.
    poll(WRITES // 2)
    for handle in handles:
        flush(handle)
    poll(WRITES)
poll(0)
for handle in handles:
    handle.shutdown()


# The end in the log of each write's entry, and of each flush's entry.
writes, ends = {}, []
for entry in read_log(log_path):
    if entry.flags & FLUSH:
        ends.append(entry.end)
    for i in range(0, len(entry.data or b""), BLOCK):
        value = struct.unpack_from("<Q", entry.data, i)[0]
        if value:
            writes.setdefault(value - 1, entry.end)
assert len(ends) > 1, "the disk received no flush"
checked = 0
for covers, length in flushes:
    known = [end for end in ends if end <= length]
    for number, _ in answered[:covers]:
        assert number in writes, f"write {number} never reached the disk"
        assert any(end > writes[number] for end in known), \
            f"a flush was answered before write {number} and a later flush had reached the disk"
        checked += 1
print(f"{len(flushes)} flushes answered, {len(ends)} received by the disk, "
      f"{checked} pairs of a write and a flush checked")
