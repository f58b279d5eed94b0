#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# No flush is answered before the writes before it are durable.
#
# flush-order.sh PARAMETERS...
#
# The image lies on QEMU's blklogwrites driver, which logs every write and every flush in the order
# in which the disk sees them.  nbdfuse makes that driver's NBD export a file.  (QEMU 7.2's own FUSE
# export mixes up the data of two writes in flight.)
. "$(dirname "$0")/../lib/functions.sh"
need_root "a FUSE mount"
[ -e /dev/fuse ] || skip "no /dev/fuse"

truncate -s 64M "$dir/disk.img"
: >"$dir/log"
mkdir "$dir/export"
qemu-storage-daemon --blockdev driver=file,node-name=file,filename="$dir/disk.img" \
    --blockdev driver=file,node-name=log,filename="$dir/log" \
    --blockdev driver=blklogwrites,node-name=logged,file=file,log=log \
    --nbd-server addr.type=unix,addr.path="$dir/below.sock" --pidfile "$dir/daemon.pid" \
    --export type=nbd,id=e,node-name=logged,writable=on 2>"$dir/daemon.log" &
pids+=("$!")
wait_for 20 started "$dir/daemon.pid" "$!"
mounts+=("$dir/export")
nbdfuse "$dir/export/disk" "nbd+unix:///logged?socket=$dir/below.sock" 2>"$dir/nbdfuse.log" &
pids+=("$!")
wait_for 20 test -f "$dir/export/disk"
start ordered "$dir/export/disk" "$@"
"$python" "$here/flush-order.py" "$uri" "$dir/log"
stop
