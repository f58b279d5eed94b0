# SPDX-License-Identifier: BSD-3-Clause
# For shell tests: a file whose storage logs every write and every flush in the order in which it
# sees them, by QEMU's blklogwrites driver.  nbdfuse makes the NBD export of that driver a file.
# (QEMU 7.2's own FUSE export mixes up the data of two writes in flight.)
#
# Every write must be of whole sectors of 512 bytes; others fail with EINVAL.  Without discard=unmap
# a hole that is punched would leave the data, because nbdfuse makes a trim of it.

# make_logged_disk SIZE: the file is $logged, its log $write_log.
make_logged_disk() {
    need_root "a FUSE mount"
    [ -e /dev/fuse ] || skip "no /dev/fuse"
    local below
    below=$(mktemp -d "$dir/logged.XXXX")
    logged=$below/export/disk write_log=$below/log
    truncate -s "$1" "$below/disk.img"
    : >"$write_log"
    mkdir "$below/export"
    qemu-storage-daemon \
        --blockdev driver=file,node-name=file,discard=unmap,filename="$below/disk.img" \
        --blockdev driver=file,node-name=log,filename="$write_log" \
        --blockdev driver=blklogwrites,node-name=logged,discard=unmap,file=file,log=log \
        --nbd-server addr.type=unix,addr.path="$below/sock" --pidfile "$below/pid" \
        --export type=nbd,id=e,node-name=logged,writable=on 2>"$below/daemon.log" &
    logger=$!
    pids+=("$logger")
    wait_for 20 started "$below/pid" "$logger"
    mounts+=("$below/export")
    nbdfuse "$logged" "nbd+unix:///logged?socket=$below/sock" 2>"$below/nbdfuse.log" &
    pids+=("$!")
    wait_for 20 test -f "$logged"
}

# end_logged_disk: no more entries come; the log stays.
end_logged_disk() {
    wait_for 10 umount "${logged%/disk}"
    kill "$logger"
    wait "$logger" 2>/dev/null || true
    rm -f "${write_log%/log}/disk.img"
}
