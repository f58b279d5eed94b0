#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Threads that carry requests are SCHED_BATCH ones on O_DIRECT, and where requests meet; ordinary ones for single requests through
# the page cache, and for writes through it, and again after the others; workers are SCHED_BATCH ones. A policy that the user has
# chosen stays.
. "$(dirname "$0")/../lib/functions.sh"
truncate -s 4M "$dir/disk.img"
cat >"$dir/use.py" <<'P'
import glob, nbd, sys
case, uri, pid = sys.argv[1:4]
OTHER, RR, BATCH = 0, 2, 3  # sched(7)
h = nbd.NBD()
h.connect_uri(uri)

def policies(name=""):
    """Of all threads, or of those of that name: field 41 of /proc/PID/stat, counted behind the name in brackets."""
    stats = [open(path).read() for path in glob.glob(f"/proc/{pid}/task/*/stat")]
    return [int(stat.rpartition(")")[2].split()[38]) for stat in stats if f"({name}" in stat]

def only(policy):
    assert set(policies()) == {policy}, policies()

def one_by_one(count):
    for _ in range(count):
        h.pread(512, 0)

def at_once(send, turns=1):
    for _ in range(turns):
        for i in range(64):
            send(nbd.Buffer.from_bytearray(bytearray(65536)), i * 65536 % (4 << 20))
        while h.aio_in_flight():
            h.poll(-1)

def until(least, most, step):
    """So many threads are to be SCHED_BATCH ones."""
    for _ in range(200):
        if least <= policies().count(BATCH) <= most:
            return
        step()
    raise AssertionError(f"not {least} to {most} threads with policy {BATCH}, but {policies()}")

if case == "single":
    one_by_one(1000)
    only(OTHER)
elif case == "meeting":
    until(12, 16, lambda: at_once(h.aio_pread))
    # The memory of it is long, and then each of the threads has to have its turn.
    one_by_one(1000)
    until(12, 16, lambda: None)
    until(0, 0, lambda: one_by_one(1000))
elif case == "writes":
    at_once(h.aio_pwrite, 50)
    only(OTHER)
    until(12, 16, lambda: at_once(h.aio_pread))
    # One by one, so that each of the threads has its turn.
    until(0, 0, lambda: [h.pwrite(bytes(512), 0) for _ in range(100)])
elif case == "direct":
    one_by_one(100)
    until(12, 16, lambda: one_by_one(10))
elif case == "workers":
    at_once(h.aio_pread)
    assert set(policies("aiodisk-worker")) == {BATCH}, policies()
elif case == "chosen":
    at_once(h.aio_pread, 50)
    assert set(policies("aiodisk-worker")) == {RR}, policies()
    only(RR)
h.shutdown()
P
try() { # CASE PARAMETER
    say "$1"
    start "$1" "$dir/disk.img" "$2"
    "$python" "$dir/use.py" "$1" "$uri" "$(cat "$dir/$1.pid")"
    stop
}
try single cache=default
try meeting cache=default
try writes cache=default
try direct cache=none
try workers dispatch=pool
if [ "$(id -u)" = 0 ]; then
    nbdkit=(chrt -r 1 nbdkit)
    try chosen dispatch=pool
fi
