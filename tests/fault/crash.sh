#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A filesystem is shut down at a random moment, again and again, under writes, FUA, flushes, trims
# and zeros on 4 connections.  After each shutdown every sector has a content that the model allows.
# Servers that lie about flush, FUA and zero are the controls: each must lose data.
#
# crash.sh ext4|xfs ROUNDS [SEED]
#
# The rounds take cache modes and ways to carry requests in turn.
export AIODISK_CORKED=${AIODISK_LIAR:?is not set: run the test through meson test} # is preloaded
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/tests/lib/rounds.sh"
kind=$1 rounds=$2 seed=${3:-$RANDOM}
make_fs "$kind" 400M
fs_loop=$loop
umount "$mnt"

# shut_down SEED PARAMETERS...: succeeds if the image is as the model allows after the shutdown.
shut_down() {
    local number=$1 status=0
    shift
    mount "$fs_loop" "$mnt"
    rm -f "$mnt/disk.img"
    truncate -s 2M "$mnt/disk.img"
    sync -f "$mnt"
    start crash "$mnt/disk.img" "$@"
    timeout 60 "$python" "$here/crash.py" load "$uri" "$dir/state" "$number" "$mnt" >>"$dir/load" ||
        fail_with "$log" "the load failed: seed $number, $*"
    kill -9 "$pid"
    { wait "$pid"; } 2>/dev/null || true
    wait_for 10 umount "$mnt"
    mount "$fs_loop" "$mnt"
    "$python" "$here/crash.py" check "$mnt/disk.img" "$dir/state" >"$dir/found" 2>&1 || status=1
    wait_for 10 umount "$mnt"
    return $status
}

caught shut_down 30 flush cache=default
caught shut_down 30 fua cache=default
caught shut_down 30 zero cache=default
: >"$dir/load"
run_rounds "$rounds" shut_down "durable data are lost"
case $kind in
ext4) e2fsck -fn "$fs_loop" >"$dir/fsck" 2>&1 ;;
xfs) xfs_repair -n "$fs_loop" >"$dir/fsck" 2>&1 ;;
esac || fail_with "$dir/fsck" "the filesystem is damaged"
sum_up "$rounds" shutdowns
