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
logs=$1 ext4_logs=$2 samples=$3 seed=${4:-$RANDOM}
ways=()
for cache in none default; do
    for backend in $(working_backends); do ways+=("cache=$cache backend=$backend"); done
    ways+=("cache=$cache dispatch=pool")
done

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

# caught LIE PARAMETERS...: of at most 5 logs of a server with this lie, one loses data.
caught() {
    local lie=$1 i
    shift
    for i in {1..5}; do
        if ! AIODISK_LIE=$lie replay $((seed + 1000 + i)) cache=none "$@"; then
            say "caught in log $i: a server that lies about $lie: $(cut -c 1-70 "$dir/found")"
            return
        fi
    done
    fail "seed $seed: a server that lies about $lie loses nothing, so this test proves nothing"
}

caught flush
caught zero
caught fua --filter=fua fuamode=discard # on FUSE the plugin makes FUA of a write and a flush
: >"$dir/load"
for ((i = 0; i < logs; i++)); do
    # shellcheck disable=SC2086 # a way is several words
    replay $((seed + i)) ${ways[i % ${#ways[@]}]} ||
        fail_with "$dir/found" "data are lost: seed $((seed + i)), ${ways[i % ${#ways[@]}]}"
    cat "$dir/found" >>"$dir/load"
done
for ((i = 0; i < ext4_logs; i++)); do
    # shellcheck disable=SC2086 # a way is several words
    replay_ext4 $((seed + i)) ${ways[i % ${#ways[@]}]} ||
        fail_with "$dir/found" "an ext4 is damaged: seed $((seed + i)), ${ways[i % ${#ways[@]}]}"
    cat "$dir/found" >>"$dir/load"
done
awk -v logs="$((logs + ext4_logs))" -v seed="$seed" -F '[= ]' '
    { for (i = 1; i < NF; i += 2) sum[$i] += $(i + 1) }
    END { printf "%d logs from seed %d:", logs, seed
          for (name in sum) printf " %d %s", sum[name], name
          print "; nothing is lost" }' "$dir/load"
