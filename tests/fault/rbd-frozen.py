#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The clients of rbd-frozen.sh: latencies while an OSD is frozen, and clients that connect then.

usage: rbd-frozen.py OSD-PID SECONDS SLOW GOOD BESIDE FILE FAR PLAIN
The last six are URIs; FAR has its header on the OSD too, and its rbd-timeout is 3 s.  PLAIN is an
image without an object map, with its data on the OSD.
"""
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import nbd

from servers import freeze, poll_all, wait_until

osd, seconds, slow_uri, good_uri, beside_uri, file_uri, far_uri, plain_uri = sys.argv[1:]
osd, seconds = int(osd), float(seconds)
# A request beside a frozen OSD may take twice as long as before, on a busy machine by this much
# more.  A request that waits for the OSD takes seconds.
SLACK = 0.05
TIMEOUT = 3


def connect(uri, limit=60):
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.aio_connect_uri(uri)
    end = time.monotonic() + limit
    while h.aio_is_connecting():
        assert time.monotonic() < end, f"a client still waits after {limit} s"
        h.poll(100)
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
    try:
        h = connect(uri, limit)
    except nbd.Error:
        print(f"a client was refused after {time.monotonic() - begin:.1f} s")
        return
    assert not h.aio_is_ready(), "a client got in"


def rbd(*arguments):
    return subprocess.check_output(["rbd", *arguments], timeout=60)


def notify(image):
    """Tells each client of the image that its header has changed."""
    prefix = json.loads(rbd("info", "--format", "json", image))["block_name_prefix"]
    subprocess.run(["rados", "-p", image.split("/")[0], "notify",
                    "rbd_header." + prefix.rsplit(".", 1)[1], ""], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)


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
wait_until(lambda: b"watcher=" not in rbd("status", "far/image"), "the image to be closed")
freeze(osd)
try:
    refused(far_uri, 3 * TIMEOUT + 2)
finally:
    os.kill(osd, signal.SIGCONT)

# A second client of an image that is open, after the image has changed.
far = connect(far_uri)
rbd("resize", "--no-progress", "--size", "80M", "far/image")
freeze(osd)
try:
    refused(far_uri, 3 * TIMEOUT + 2)
    far.shutdown()
finally:
    os.kill(osd, signal.SIGCONT)
assert connect(far_uri).get_size() == 80 << 20

# Such a client gets in, although other clients wait for the data of as many objects as they can.
plain = [connect(plain_uri) for _ in range(3)]
freeze(osd)
try:
    cookies = [(h, h.aio_block_status(64 << 20, 0, lambda *_: 0)) for h in plain for _ in range(16)]
    for h in plain:
        while h.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
            h.poll(100)
    notify("rbd/plain")
    begin = time.monotonic()
    connect(plain_uri, TIMEOUT).shutdown()
    print(f"a client of a changed image got in after {time.monotonic() - begin:.2f} s")
    assert not any(h.aio_command_completed(cookie) for h, cookie in cookies)
finally:
    os.kill(osd, signal.SIGCONT)
for h, cookie in cookies:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
