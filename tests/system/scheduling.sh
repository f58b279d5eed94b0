#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The scheduling policy of the threads.  nbdkit's threads have SCHED_BATCH with O_DIRECT, and with
# the page cache while reads overlap.  They have SCHED_OTHER for single requests and for writes
# through the page cache, and return to it after a different load.  Workers have SCHED_BATCH.  A
# policy that the user chose is not changed.
. "$(dirname "$0")/../lib/functions.sh"
truncate -s 4M "$dir/disk.img"
cat >"$dir/use.py" <<'P'
import glob, nbd, sys
case, uri, pid = sys.argv[1:4]
OTHER, RR, BATCH = 0, 2, 3  # sched(7)
h = nbd.NBD()
h.connect_uri(uri)

def policies(name=""):
    """Returns the policies of all threads, or of those of that name: field 41 of /proc/PID/stat.

    The fields are counted from the end of the name, which is in parentheses.
    """
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
    """Repeats step() until `least` to `most` threads have SCHED_BATCH."""
    for _ in range(200):
        if least <= policies().count(BATCH) <= most:
            return
        step()
    raise AssertionError(f"not {least} to {most} threads have policy {BATCH}: {policies()}")

if case == "single":
    one_by_one(1000)
    only(OTHER)
elif case == "meeting":
    until(12, 16, lambda: at_once(h.aio_pread))
    # The average spans thousands of requests, so 1000 single requests change nothing.  After more
    # of them each thread changes back at its next request.
    one_by_one(1000)
    until(12, 16, lambda: None)
    until(0, 0, lambda: one_by_one(1000))
elif case == "writes":
    at_once(h.aio_pwrite, 50)
    only(OTHER)
    until(12, 16, lambda: at_once(h.aio_pread))
    # One request at a time, so that each of the threads handles some.
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
