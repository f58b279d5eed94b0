#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The clients of rbd-frozen.sh: latencies while an OSD is frozen, and clients that connect then.

usage: rbd-frozen.py OSD-PID SECONDS SLOW GOOD BESIDE FILE FAR
The last five are URIs; FAR has its header on the OSD too, and its rbd-timeout is 3 s.
"""
import os
import signal
import statistics
import subprocess
import sys
import time

import nbd

from servers import freeze, poll_all, wait_until

osd, seconds, slow_uri, good_uri, beside_uri, file_uri, far_uri = sys.argv[1:]
osd, seconds = int(osd), float(seconds)
# A request beside a frozen OSD may take twice as long as before, on a busy machine by this much
# more.  A request that waits for the OSD takes seconds.
SLACK = 0.05
TIMEOUT = 3


def connect(uri):
    h = nbd.NBD()
    h.connect_uri(uri)
    return h


def latencies(handles, duration):
    """Returns for each handle the seconds that its reads and writes took, one at a time."""
    found = [[] for _ in handles]
    end = time.monotonic() + duration
    i = 0
    while time.monotonic() < end:
        for h, times in zip(handles, found):
            offset = i * 4096 % (16 << 20)
            for call in (lambda: h.pwrite(b"x" * 4096, offset), lambda: h.pread(4096, offset)):
                begin = time.monotonic()
                call()
                times.append(time.monotonic() - begin)
        i += 1
    return found


def summary(times):
    times = sorted(times)
    return statistics.median(times), times[len(times) * 99 // 100], times[-1]


def refused(uri, limit):
    begin = time.monotonic()
    h = nbd.NBD()
    h.aio_connect_uri(uri)
    try:
        while h.aio_is_connecting():
            assert time.monotonic() < begin + limit, f"a client still waits after {limit} s"
            h.poll(100)
        assert not h.aio_is_ready(), "a client got in"
    except nbd.Error:
        pass
    print(f"a client was refused after {time.monotonic() - begin:.1f} s")


slow, far = connect(slow_uri), connect(far_uri)
beside = [connect(uri) for uri in (good_uri, beside_uri, file_uri)]
names = ["an image of the same server", "an image of a server beside it", "a file"]
slow.pwrite(b"old." * 4096, 0)
slow.flush()
before = latencies(beside, 5)

freeze(osd)
try:
    frozen_at = time.monotonic()
    reads = [slow.aio_pread(nbd.Buffer(4096), 4096) for _ in range(8)]
    data = nbd.Buffer.from_bytearray(bytearray(b"new." * 1024))
    writes = [slow.aio_pwrite(data, (i << 20) + (1 << 16), flags=nbd.CMD_FLAG_FUA)
              for i in range(50)]
    slow.poll(0)
    # The last client goes: the close of the image waits.
    far.shutdown()
    refused(far_uri, 3 * TIMEOUT + 2)
    during = latencies(beside, max(1, frozen_at + seconds - time.monotonic()))
    poll_all([slow], 0)
    assert not any(slow.aio_command_completed(cookie) for cookie in writes), \
        "a durable write ended although the OSD is frozen"
finally:
    os.kill(osd, signal.SIGCONT)
for cookie in reads + writes:
    while not slow.aio_command_completed(cookie):
        slow.poll(-1)
print(f"frozen for {time.monotonic() - frozen_at:.1f} s")
assert slow.pread(4096, 4096) == b"old." * 1024
assert slow.pread(4096, (7 << 20) + (1 << 16)) == b"new." * 1024

for name, old, new in zip(names, map(summary, before), map(summary, during)):
    print(f"{name}: median, 99 % and longest before: "
          + ", ".join(f"{t * 1e3:.2f}" for t in old) + " ms; while the OSD was frozen: "
          + ", ".join(f"{t * 1e3:.2f}" for t in new) + " ms")
    assert new[0] < 2 * old[0] + 0.002 and new[1] < 2 * old[1] + SLACK, f"{name} was slowed"
    assert new[2] < 1, f"a request of {name} took {new[2]:.2f} s"

# An open that waits for the OSD, once the close has ended.
end = time.monotonic() + 30
while True:
    try:
        connect(far_uri).shutdown()
        break
    except nbd.Error:
        assert time.monotonic() < end, "the image cannot be opened again"
        time.sleep(0.1)
status = ["rbd", "status", "far/image"]
wait_until(lambda: b"watcher=" not in subprocess.check_output(status), "the image to be closed")
freeze(osd)
try:
    refused(far_uri, 3 * TIMEOUT + 2)
finally:
    os.kill(osd, signal.SIGCONT)
connect(far_uri).shutdown()
