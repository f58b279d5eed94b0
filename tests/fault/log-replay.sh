#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The power may fail after each entry of the log of the disk below: whatever subset of the writes
# since the last flush has reached the disk, everything that was promised until then is there.  The
# promises are those of random writes, zeros, trims, FUA and flushes on 4 connections; or those of
# an ext4 on the served disk, which e2fsck finds clean, with each file that was synced.  Servers
# that lie about flush, FUA and zero are the controls: each must lose data.
#
# log-replay.sh LOGS EXT4-LOGS SAMPLES [SEED]
#
# The logs take the ways to carry requests in turn.  SAMPLES: how many disks e2fsck sees of each
# EXT4-LOG.
export AIODISK_CORKED=${AIODISK_LIAR:?is not set: run the test through meson test} # is preloaded
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/tests/lib/logged-disk.sh"
. "$source_root/tests/lib/rounds.sh"
logs=$1 ext4_logs=$2 samples=$3 seed=${4:-$RANDOM}

# replay SEED PARAMETERS...: succeeds if the log of random requests is as the model allows.
replay() {
    local number=$1 size=9216 status=0
    shift
    # O_DIRECT: slots that share sectors.  The page cache would pass on parts of sectors.
    [[ $* != *cache=none* ]] || size=9000
    make_logged_disk 4M
    start replay "$logged" "$@"
    timeout 60 "$python" "$here/log-replay.py" load "$uri" "$write_log" "$dir/state" "$number" \
        $size >>"$dir/load" || fail_with "$log" "the load failed: seed $number, $*"
    stop
    end_logged_disk
    "$python" "$here/log-replay.py" check "$write_log" "$dir/state" >"$dir/found" 2>&1 || status=1
    return $status
}

# replay_ext4 SEED PARAMETERS...: the same for an ext4.
replay_ext4() {
    local number=$1 status=0
    shift
    make_logged_disk 16M
    start replay "$logged" "$@"
    mkdir -p "$dir/client" "$dir/mnt"
    mounts+=("$dir/client" "$dir/mnt")
    nbdfuse "$dir/client/disk" "$uri" &
    pids+=("$!")
    wait_for 20 test -f "$dir/client/disk"
    make_loop "$dir/client/disk"
    mkfs.ext4 -q -b 1024 -E lazy_itable_init=0,lazy_journal_init=0 "$loop"
    mount "$loop" "$dir/mnt"
    sync -f "$dir/mnt"
    "$python" "$here/log-ext4.py" load "$dir/mnt" "$write_log" "$dir/state" "$number" \
        >>"$dir/load" || fail_with "$log" "the load of an ext4 failed: seed $number, $*"
    wait_for 10 umount "$dir/mnt"
    drop_loop "$loop"
    wait_for 10 umount "$dir/client"
    stop
    end_logged_disk
    "$python" "$here/log-ext4.py" check "$write_log" "$dir/state" "$number" "$samples" "$dir" \
        >"$dir/found" 2>&1 || status=1
    return $status
}

caught replay 5 flush cache=none
caught replay 5 zero cache=none
# On FUSE the plugin makes FUA of a write and a flush.
caught replay 5 fua cache=none --filter=fua fuamode=discard
: >"$dir/load"
run_rounds "$logs" replay "data are lost"
run_rounds "$ext4_logs" replay_ext4 "an ext4 is damaged"
sum_up $((logs + ext4_logs)) logs
