#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Data that were flushed or written with FUA survive a power loss.
#
# power-loss.sh ext4|xfs
#
# The test shuts the filesystem down under the server, which drops everything that is not on the
# disk.  To kill only the server would prove nothing, because the page cache survives the server.
# The control is nbdkit's cache filter with cache=unsafe, which ignores flushes and must lose data.
. "$(dirname "$0")/../lib/functions.sh"
kind=$1

cat >"$dir/write.py" <<'P'
import hashlib, nbd, sys
uri, phase, path = sys.argv[1:]
MiB = 1 << 20

def data(name, length):
    return hashlib.shake_128(name.encode()).digest(length)

# Name, offset, length; unaligned ones as well.
flushed = [("flushed", 0, 2 * MiB), ("flushed odd", 5 * MiB + 333, 100001)]
fua = [("fua", 9 * MiB, MiB), ("fua odd", 12 * MiB + 777, 5000)]
if phase == "write":
    h = nbd.NBD()
    h.connect_uri(uri)
    h.pwrite(b"\xff" * MiB, 14 * MiB)
    for name, offset, length in flushed:
        h.pwrite(data(name, length), offset)
    h.flush()
    for name, offset, length in fua:
        h.pwrite(data(name, length), offset, nbd.CMD_FLAG_FUA)
    h.zero(MiB // 2, 14 * MiB, nbd.CMD_FLAG_FUA)
    h.zero(1000, 14 * MiB + MiB // 2 + 1, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
    # This write is not flushed, so the image may lose it.
    h.pwrite(b"\xee" * MiB, 20 * MiB)
    print("acknowledged")
else:
    lost = []
    with open(path, "rb") as image:
        for name, offset, length in flushed + fua:
            image.seek(offset)
            if image.read(length) != data(name, length):
                lost.append(name)
        image.seek(14 * MiB)
        block = image.read(MiB)
        if any(block[:MiB // 2]) or any(block[MiB // 2 + 1:MiB // 2 + 1001]):
            lost.append("fua zero")
    print("lost:", ", ".join(lost) or "nothing")
    sys.exit(1 if lost else 0)
P

# after_power_loss ARGUMENTS...: succeeds if all durable data are in the image after the power loss.
after_power_loss() {
    local status=0
    mount "$fs_loop" "$mnt"
    truncate -s 33M "$mnt/disk.img"
    sync -f "$mnt"
    start power "$@"
    "$python" "$dir/write.py" "$uri" write - || fail_with "$log" "the writes failed"
    xfs_io -x -c shutdown "$mnt"
    kill -9 "$pid"
    { wait "$pid"; } 2>/dev/null || true
    wait_for 10 umount "$mnt"
    mount "$fs_loop" "$mnt"
    "$python" "$dir/write.py" - check "$mnt/disk.img" || status=1
    rm -f "$mnt/disk.img"
    umount "$mnt"
    return $status
}

make_fs "$kind" 400M
fs_loop=$loop
umount "$mnt"

say "the control: a server that ignores flushes"
installed=$plugin plugin=file
! after_power_loss --filter=cache "$mnt/disk.img" cache=unsafe ||
    fail "the control lost nothing, so this test proves nothing"
plugin=$installed
for cache in default none; do
    for backend in $(working_backends); do
        say "cache=$cache backend=$backend"
        after_power_loss "$mnt/disk.img" cache=$cache backend=$backend ||
            fail "durable data are lost"
    done
    say "cache=$cache dispatch=pool"
    after_power_loss "$mnt/disk.img" cache=$cache dispatch=pool || fail "durable data are lost"
done
