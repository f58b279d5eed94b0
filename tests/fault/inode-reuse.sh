#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A failed disk stays failed when it is opened again, and its failure is not taken for that of
# another disk: neither of a new file that got the inode number of the deleted image, nor of another
# file behind the same loop device.
. "$(dirname "$0")/../lib/functions.sh"
need_root mounts

# The output of the client is one word: whether a flush after a write works.
cat >"$dir/client.py" <<'P'
import nbd, subprocess, sys
uri, MiB, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
h = nbd.NBD()
h.connect_uri(uri)
for i in range(MiB):
    h.pwrite(b"c" * (1 << 20), i << 20)
if command:
    subprocess.run(command, check=True)
try:
    h.flush()
    print("works")
except nbd.Error:
    print("fails")
h.shutdown()
P
# flush works|fails MiB WHO [COMMAND...]: a client writes so much, runs the command and flushes.
flush() {
    local outcome
    outcome=$("$python" "$dir/client.py" "$uri" "$2" "${@:4}") || fail_with "$log" "$3: no result"
    [ "$outcome" = "$1" ] || fail_with "$log" "the flush of $3 $outcome"
}
inode() { stat -c %i "$image"; }
holds_nothing() { ! find "/proc/$pid/fd" -lname "$1" 2>/dev/null | grep -q .; }

make_fs ext4 64M
device=$loop image=$mnt/image
for cache in default none; do
    say "cache=$cache: a file with the inode number of a failed image"
    truncate -s 8M "$image"
    start file "$image" cache=$cache
    flush works 1 "a new image"
    flush fails 1 "an image on a filesystem that was shut down" xfs_io -x -c shutdown "$mnt"
    wait_for 10 holds_nothing "$image"
    wait_for 5 umount "$mnt"
    mount "$device" "$mnt"
    sync "$image" || fail "the filesystem is not whole again, so this test proves nothing"
    old=$(inode)
    flush fails 1 "the same image on the mended filesystem"
    wait_for 10 holds_nothing "$image"
    for ((i = 0; i < 1000; i++)); do
        rm -f "$image"
        truncate -s 8M "$image"
        [ "$(inode)" != "$old" ] || break
    done
    [ "$(inode)" = "$old" ] || fail "no new file got the inode number $old, as ext4 does at once"
    flush works 1 "a new file with the inode number of the failed image"
    stop
    rm "$image"
done

# The page cache of the device takes what the tmpfs below has no room for, so writeback fails.
make_fs tmpfs 2m
truncate -s 16M "$mnt/first"
# The device is detached for a moment, in which another test must not take it: losetup -f takes the
# lowest free number.
number=$((100000 + $$ % 900000))
loop=/dev/loop$number
before_cleanup() {
    end_processes
    losetup -d "$loop" 2>/dev/null
    "$python" -c 'import fcntl, os, sys
LOOP_CTL_REMOVE = 0x4C81
fcntl.ioctl(os.open("/dev/loop-control", os.O_RDWR), LOOP_CTL_REMOVE, int(sys.argv[1]))' $number
}
losetup "$loop" "$mnt/first"
diskseq() { cat "/sys/block/${loop#/dev/}/diskseq" 2>/dev/null || true; }
[ -n "$(diskseq)" ] || skip "the second half: the kernel gives block devices no diskseq"
old=$(diskseq)
say "another file behind the loop device of a failed image"
start loop "$loop"
flush fails 4 "an image whose writeback failed"
truncate -s 0 "$mnt/first"
truncate -s 16M "$mnt/first"
wait_for 10 holds_nothing "$loop"
blockdev --flushbufs "$loop"
dd if=/dev/urandom of="$loop" bs=64k count=1 conv=fsync status=none ||
    fail "the device is not whole again, so this test proves nothing"
flush fails 1 "the same device with room below"
wait_for 10 holds_nothing "$loop"
losetup -d "$loop"
truncate -s 16M "$dir/second"
losetup "$loop" "$dir/second"
[ "$(diskseq)" != "$old" ] || fail "the diskseq is still $old"
flush works 1 "another file behind the same device"
wait_for 10 holds_nothing "$loop"
stop
