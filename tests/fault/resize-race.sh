#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# cache=none: the last block of a file becomes whole and partial in turn, and each new connection
# makes the plugin see the new size.  Meanwhile other clients write next to each other in that
# block.  No written byte is lost.
#
# resize-race.sh [SECONDS]
. "$(dirname "$0")/../lib/functions.sh"
seconds=${1:-10}
truncate -s $(((1 << 20) + 4096)) "$dir/disk.img"
# The delay widens the window between the read and the write of a read-modify-write.
nbdkit=(strace -f -qq -o /dev/null -e trace=preadv -e inject=preadv:delay_exit=20000 nbdkit)
start race "$dir/disk.img" cache=none
"$python" - "$uri" "$dir/disk.img" "$seconds" <<'P'
import nbd, os, random, sys, threading, time
uri, path, seconds = sys.argv[1:]
BASE = 1 << 20
SIZES = (BASE + 3500, BASE + 4096)  # all writes end before both sizes
end = time.monotonic() + float(seconds)
lost, changes, writes = [], 0, 0

def connect():
    h = nbd.NBD()
    h.connect_uri(uri)
    return h

def write(number):
    global writes
    h, last = connect(), {}
    while time.monotonic() < end:
        offset = BASE + 512 * random.randrange(6) + number * 100
        data = random.randbytes(90)
        h.pwrite(data, offset)
        last[offset] = data
        writes += 1
        offset = random.choice(list(last))
        if h.pread(90, offset) != last[offset]:
            lost.append(offset)
            last.pop(offset)
    h.shutdown()

writers = [threading.Thread(target=write, args=(number,)) for number in range(5)]
for writer in writers:
    writer.start()
while time.monotonic() < end:
    os.truncate(path, SIZES[changes % 2])
    connect().shutdown()
    changes += 1
for writer in writers:
    writer.join()
print(f"{writes} writes, {changes} changes of the size, lost: {lost}")
assert not lost and changes > 20 and writes > 100
P
stop
