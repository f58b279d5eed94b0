#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The power may fail below the filesystem that holds the image: after any entry of the log of its
# disk, with any of the blocks that were written since the last flush.  The filesystem can be
# mounted, and every write, zero and trim that was flushed or had FUA is in the image.  Servers that
# lie about flush and FUA are the controls: each must lose data.
#
# fs-replay.sh ext4|xfs|btrfs LOGS SAMPLES [SEED]
#
# The logs take the ways to carry requests in turn.  SAMPLES: how many disks of a log are mounted.
# crash.sh is faster, but btrfs has no ioctl that shuts it down (Linux 6.18).
export AIODISK_CORKED=${AIODISK_LIAR:?is not set: run the test through meson test} # is preloaded
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/tests/lib/logged-disk.sh"
. "$source_root/tests/lib/rounds.sh"
kind=$1 logs=$2 samples=$3 seed=${4:-$RANDOM}
mkdir "$dir/mnt" "$dir/replayed"
mkdir "$dir/replayed/mnt"
mounts+=("$dir/replayed/mnt")

# replay SEED PARAMETERS...: succeeds if no disk of one log has lost anything.
replay() {
    local number=$1 size=9216 status=0
    shift
    # O_DIRECT: slots that share sectors.  The page cache would pass on parts of sectors.
    [[ $* != *cache=none* ]] || size=9000
    make_logged_disk 320M
    make_loop "$logged"
    "mkfs.$kind" -q "$loop" >/dev/null
    mount "$loop" "$dir/mnt"
    mounts+=("$dir/mnt")
    truncate -s 4M "$dir/mnt/disk.img"
    sync -f "$dir/mnt"
    start replay "$dir/mnt/disk.img" "$@"
    timeout 60 "$python" "$here/log-replay.py" load "$uri" "$write_log" "$dir/state" "$number" \
        $size >>"$dir/load" || fail_with "$log" "the load failed: seed $number, $*"
    stop
    wait_for 10 umount "$dir/mnt"
    drop_loop "$loop"
    end_logged_disk
    "$python" "$here/log-replay.py" check-image "$write_log" "$dir/state" "$number" "$samples" \
        "$dir/replayed" >"$dir/found" 2>&1 || status=1
    return $status
}

caught replay 5 flush cache=none
caught replay 5 fua cache=none --filter=fua fuamode=discard
: >"$dir/load"
run_rounds "$logs" replay "data are lost"
sum_up "$logs" logs
