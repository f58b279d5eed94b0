#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Threads that carry requests are ordinary ones with one connection, SCHED_BATCH ones with several, and ordinary again when one is
# left; a policy that the user has chosen stays.
. "$(dirname "$0")/functions.sh"
truncate -s 1M "$dir/disk.img"
cat >"$dir/use.py" <<'P'
import glob, nbd, sys
uri, pid, chosen = sys.argv[1], sys.argv[2], int(sys.argv[3])
OTHER, BATCH = 0, 3  # sched(7)

def policies():
    """Of all threads: field 41 of /proc/PID/stat, counted behind the name in brackets."""
    return [int(open(path).read().rpartition(")")[2].split()[38]) for path in glob.glob(f"/proc/{pid}/task/*/stat")]

def connect():
    h = nbd.NBD()
    h.connect_uri(uri)
    return h

def read(*handles):
    for _ in range(200):  # each of a connection's threads has its turn
        for h in handles:
            h.pread(512, 0)

first = connect()
read(first)
assert set(policies()) == {chosen}, policies()
second = connect()
read(first, second)
if chosen == OTHER:
    assert BATCH in policies(), policies()
else:
    assert set(policies()) == {chosen}, policies()
second.shutdown()
del second
for _ in range(1000):  # its threads have to end, and each of the others to have a turn
    read(first)
    if BATCH not in policies():
        break
assert BATCH not in policies(), policies()
first.shutdown()
P
start ordinary "$dir/disk.img"
"$python" "$dir/use.py" "$uri" "$(cat "$dir/ordinary.pid")" 0
stop
if [ "$(id -u)" = 0 ]; then
    nbdkit=(chrt -r 1 nbdkit)
    start chosen "$dir/disk.img"
    "$python" "$dir/use.py" "$uri" "$(cat "$dir/chosen.pid")" 2
    stop
fi
