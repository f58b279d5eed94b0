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
kind=$1 rounds=$2 seed=${3:-$RANDOM}
all_ways default none
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

# caught LIE PARAMETERS...: of at most 30 rounds with this liar, one loses data.
caught() {
    local lie=$1 i
    shift
    for i in {1..30}; do
        if ! AIODISK_LIE=$lie shut_down "$((seed + 100000 + i))" "$@"; then
            say "caught in round $i: a server that lies about $lie: $(cut -c 1-60 "$dir/found")"
            return
        fi
    done
    fail "seed $seed: a server that lies about $lie loses nothing, so this test proves nothing"
}

caught flush cache=default
caught fua cache=default
caught zero cache=default
: >"$dir/load"
for ((i = 0; i < rounds; i++)); do
    # shellcheck disable=SC2086 # a way is several words
    shut_down $((seed + i)) ${ways[i % ${#ways[@]}]} ||
        fail_with "$dir/found" "durable data are lost: seed $((seed + i)), ${ways[i % ${#ways[@]}]}"
done
case $kind in
ext4) e2fsck -fn "$fs_loop" >"$dir/fsck" 2>&1 ;;
xfs) xfs_repair -n "$fs_loop" >"$dir/fsck" 2>&1 ;;
esac || fail_with "$dir/fsck" "the filesystem is damaged"
awk -v rounds="$rounds" -v seed="$seed" -F '[= ]' '
    { for (i = 1; i < NF; i += 2) sum[$i] += $(i + 1) }
    END { printf "%d shutdowns from seed %d:", rounds, seed
          for (name in sum) printf " %d %s", sum[name], name
          print "; nothing is lost" }' "$dir/load"
