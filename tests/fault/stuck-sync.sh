#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# While the syncs of an image hang, its reads from the page cache are answered.  The image lies on
# an xfs, whose disk is a file of nbdfuse, which is stopped (SIGSTOP) under a flush and a FUA write.
# On xfs io_uring writes into the page cache at once, and the kernel then makes the sync of the FUA
# write on the thread that submits, so that a ring must not get such a write.
#
# stuck-sync.sh PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
need_root "a FUSE mount"
[ -e /dev/fuse ] || skip "no /dev/fuse"
command -v mkfs.xfs >/dev/null || skip "no mkfs.xfs"

mkdir "$dir/below" "$dir/xfs"
mounts+=("$dir/below")
nbdfuse "$dir/below/disk" --command nbdkit -s memory 512M 2>"$dir/nbdfuse.log" &
fuse=$!
pids+=("$fuse")
wait_for 20 test -s "$dir/below/disk"
make_loop "$dir/below/disk"
mkfs.xfs -q "$loop"
mount -o noatime "$loop" "$dir/xfs"
mounts+=("$dir/xfs")
dd if=/dev/urandom of="$dir/xfs/disk" bs=1M count=24 conv=fsync status=none

before_cleanup() { kill -CONT "$fuse" 2>/dev/null; } # nbdkit cannot end while its sync hangs

start server "$dir/xfs/disk" "$@"
say "$*: reads while a FUA write and a flush hang"
"$python" - "$dir/server.sock" "$fuse" <<'P' || fail "see above"
import nbd, os, signal, sys, time
from servers import freeze

WRITES, STRIDE = 10, 2 << 20  # no two in one folio of the page cache
LIMIT = 5  # seconds for a read from the page cache
socket, fuse = sys.argv[1], int(sys.argv[2])

def connect():
    h = nbd.NBD()
    h.connect_unix(socket)
    return h

writer, reader = connect(), connect()
before = reader.pread(2 << 20, 0)
freeze(fuse)
data = bytes([0x5a]) * 4096
stuck = []
# io_uring passes a write on that has to change the time of the file: the first one in a tick.
for i in range(WRITES):
    stuck.append(writer.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), STRIDE * i,
                                   flags=nbd.CMD_FLAG_FUA))
    writer.poll(0)
end = time.monotonic() + 0.5  # the writes have reached the storage: no event tells that
while time.monotonic() < end:
    writer.poll(10)
stuck.append(writer.aio_flush())
writer.poll(100)
if any(writer.aio_command_completed(cookie) for cookie in stuck):
    sys.exit("FAILED: the storage is not stuck")
got = nbd.Buffer(4096)
read = reader.aio_pread(got, 1 << 20)
end = time.monotonic() + LIMIT
while not reader.aio_command_completed(read):
    if time.monotonic() > end:
        os.kill(fuse, signal.SIGCONT)
        sys.exit(f"FAILED: a read waits for the sync for more than {LIMIT} s")
    reader.poll(100)
os.kill(fuse, signal.SIGCONT)
assert got.to_bytearray() == before[1 << 20:(1 << 20) + 4096]
for cookie in stuck:
    while not writer.aio_command_completed(cookie):
        writer.poll(-1)
assert all(reader.pread(4096, STRIDE * i) == data for i in range(WRITES))
P
stop
