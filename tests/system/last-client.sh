#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Once its last client has left, the server holds nothing of an image: no descriptor, no lock of
# QEMU, no block of a deleted file, no mount.  The next client works again.  Only a failed flush is
# remembered: the image stays failed although the filesystem below it is whole again.
#
# last-client.sh PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
need_root mounts
make_fs ext4 64M -b 4096
device=$loop
image=$mnt/image

# held: how many descriptors of the server refer to files of the filesystem.  A descriptor that is
# closed while find looks is no error.
held() { find "/proc/$pid/fd" -lname "$mnt/*" 2>/dev/null | wc -l; }
holds() { [ "$(held)" = "$1" ]; }
qemu_writes() { qemu-io -f raw -c "write -P $1 1M 64k" "$image" >"$dir/out" 2>&1; }
free_blocks() { stat -f -c %f "$mnt"; }
gives_back() { [ "$(free_blocks)" -ge "$1" ]; }
# client works|fails PATTERN [COMMAND...]: the next client finds the pattern (if any), writes, runs
# the command, and flushes.
cat >"$dir/client.py" <<'P'
import errno, nbd, subprocess, sys
uri, outcome, pattern, *command = sys.argv[1:]
h = nbd.NBD()
h.connect_uri(uri)
if pattern:
    assert h.pread(65536, 1 << 20) == bytes([int(pattern)]) * 65536, "not what QEMU wrote"
h.pwrite(b"c" * 65536, 2 << 20)
h.pwrite(b"c" * 1000, (3 << 20) + 300)
if command:
    subprocess.run(command, check=True)
try:
    h.flush()
    assert outcome == "works", "the flush succeeded"
except nbd.Error as error:
    assert outcome == "fails" and error.errnum == errno.EIO, error
if outcome == "works":
    h.pwrite(b"f" * 1000, (4 << 20) + 300, nbd.CMD_FLAG_FUA)
    h.zero(65536, 5 << 20, nbd.CMD_FLAG_NO_HOLE)
    h.trim(65536, 6 << 20)
    h.cache(1 << 20, 0)
h.shutdown()
P
client() { "$python" "$dir/client.py" "$uri" "$@" || fail_with "$log" "the client failed: $*"; }
# holds_while_connected COUNT: the control; the checks after the last client can see a difference.
holds_while_connected() {
    hold_client "$uri"
    [ "$(held)" -gt "$1" ] || fail "with a client the server holds $(held) descriptors"
    ! qemu_writes 99 || fail "QEMU may write although a client is connected"
}

say "file= $*: descriptors, QEMU's lock and the mount"
truncate -s 16M "$image"
start file "$image" "$@"
client works ""
holds_while_connected 0
! umount "$mnt" 2>/dev/null || fail "umount works although a client is connected"
release_client
wait_for 10 holds 0
qemu_writes 17 || fail_with "$dir/out" "QEMU does not get the lock"
# The kernel may drop a file that io_uring used shortly after the server has closed the descriptor.
wait_for 5 umount "$mnt"
mount "$device" "$mnt"
client works 17
wait_for 10 holds 0

say "file= $*: a deleted image gives its blocks back"
dd if=/dev/urandom of="$image" bs=1M count=16 conv=notrunc,fsync status=none
sync -f "$mnt"
with_image=$(free_blocks)
holds_while_connected 0
rm "$image"
[ "$(free_blocks)" -lt $((with_image + 1000)) ] || fail "the blocks are free before the last close"
release_client
wait_for 10 gives_back $((with_image + 4000)) # of 4096 blocks of 4 KiB
truncate -s 16M "$image"
client works ""
wait_for 10 holds 0

say "file= $*: a failed flush is remembered when the image is closed and opened again"
client fails "" xfs_io -x -c shutdown "$mnt"
wait_for 10 holds 0
wait_for 5 umount "$mnt"
mount "$device" "$mnt"
sync "$image" || fail "the filesystem is not whole again, so this test proves nothing"
client fails ""
wait_for 10 holds 0
stop

say "fd= $*: the user's own descriptor is all that remains"
rm "$image"
truncate -s 16M "$image"
start fd fd=7 "$@" 7<>"$image"
for pattern in 18 19; do
    client works ""
    wait_for 10 holds 1
    holds_while_connected 1
    release_client
    wait_for 10 holds 1
    qemu_writes $pattern || fail_with "$dir/out" "fd=: QEMU does not get the lock"
    client works $pattern
done
wait_for 10 holds 1
stop
