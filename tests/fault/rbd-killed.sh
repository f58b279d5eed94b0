#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# An OSD and a server that are killed (SIGKILL) under load lose nothing.  The OSD is killed and
# started again while fio writes and verifies: requests wait, and every block is read back, also
# through a server that starts afterwards.  The server is killed with requests in flight: the next
# server takes the lock over, the dead one is on the cluster's blocklist, and every sector holds the
# version that was durable, or a later one.
#
# rbd-killed.sh ROUNDS [PARAMETERS...]
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/ceph.sh"
nbdkit --dump-plugin "$plugin" | grep -q '^aiodisk_rbd=yes' || skip "the plugin has no Ceph"
rounds=$1
shift
lease_ratio=0.1 # shellcheck disable=SC2034 # for ceph.sh
start_ceph
rbd create rbd/image --size 128M
# Without this, writes are acknowledged only when they are durable, as long as no flush was seen.
sed -i '/^\[client\]/a rbd_cache_writethrough_until_flush = false' "$CEPH_CONF"

# fio_verify ROUND OPTIONS...: each round writes other data.
fio_verify() {
    local round=$1
    shift
    (cd "$dir" && exec fio --name=verify --ioengine=nbd "--uri=$uri" --rw=randwrite --bs=16k \
        --iodepth=16 --numjobs=2 --size=12M --offset_increment=40M --fsync=100 --verify=crc32c \
        --verify_fatal=1 --randseed=$((round + 1)) --group_reporting --output-format=json \
        --output="$dir/fio.json" "$@" 2>"$dir/fio.err")
}
fio_found_nothing() {
    wait "$1" || fail_with "$dir/fio.err" "fio found an error, round $2"
    [ "$(jq '[.jobs[].error] | add' "$dir/fio.json")" = 0 ] || fail "fio reports an error"
    [ "$(jq '[.jobs[].read.total_ios] | add' "$dir/fio.json")" -ge 1536 ] ||
        fail_with "$dir/fio.json" "fio verified too little"
}
is_writing() { [ "$(grep -c 'aiodisk: pwrite count=' "$log")" -gt "$1" ]; }
is_reading() { [ "$(grep -c 'aiodisk: pread count=' "$log")" -gt "$1" ]; }

# The time limit of the open does not hold for requests.
start server rbd=rbd/image rbd-timeout=4 "$@"
for ((round = 0; round < rounds; round++)); do
    writes=$(grep -c 'aiodisk: pwrite count=' "$log" || true)
    reads=$(grep -c 'aiodisk: pread count=' "$log" || true)
    fio_verify $round &
    fio=$!
    pids+=("$fio")
    # In every third round fio has written all and reads it back.
    if ((round % 3 == 1)); then
        wait_for 120 is_reading $((reads + 100))
    else
        wait_for 60 is_writing $((writes + RANDOM % 700))
    fi
    kill_osd
    begin=$EPOCHREALTIME
    ! ended $fio || fail "fio had ended before the OSD was killed"
    start_osd
    up=$(milliseconds_since "$begin")
    fio_found_nothing $fio $round
    say "OSD killed, round $round: up again after $up ms; fio ended" \
        "$(milliseconds_since "$begin") ms after the kill, no error"
done
stop
grep 'error: rbd' "$log" | grep -v 'slow request' && fail "a request failed"
start reader rbd=rbd/image cache=none
fio_verify $((rounds - 1)) --verify_only=1 &
fio_found_nothing $! reader
stop

"$python" "$here/rbd-killed.py" "$plugin" "$dir" "$rounds" "$@" ||
    fail_with "$dir/server.log" "rbd-killed.py failed"
