#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The server of the systemd unit is killed with SIGKILL, again and again, while fio writes and
# verifies through QEMU's NBD client with reconnect-delay.  The unit's own rule starts the server
# again, fio sees no error, and every block that fio reads is the one that it wrote last.  A server
# that holds acknowledged writes in its memory is the control: fio must find a wrong block.
#
# kill-service.sh KILLS PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/tests/lib/systemd.sh"
kills=$1
shift
for program in fio qemu-storage-daemon; do
    command -v $program >/dev/null || skip "$program is not installed"
done
prepare_units
start_systemd
size=24M

# verify ENGINE OPTIONS...: one pass of fio.  Headers carry the seed of their pass, so that a block
# of an earlier pass is noticed too.
verify() {
    local seed=$1
    shift
    fio --name=verify --rw=randwrite --bsrange=4k-64k --blockalign=4k --size=$size --iodepth=16 \
        --verify=crc32c --verify_fatal=1 --verify_dump=0 --randseed="$seed" --norandommap=0 \
        --fsync=64 "$@" >"$dir/fio.out" 2>&1
}
# passes: writes and verifies until $dir/stop exists; fails at the first error.
passes() {
    local seed=1
    cd "$dir/fio"
    until [ -e "$dir/stop" ]; do
        echo $seed >"$dir/pass"
        verify $seed --ioengine=nbd --uri="nbd+unix:///?socket=$dir/proxy.sock" || return
        seed=$((seed + 1))
    done
}
is_restarted() { [ "$(state disk NRestarts)" = "$1" ] && [ -n "$(server_pid)" ]; }

# under_fire KILLS PARAMETERS...: succeeds if fio found no error.
under_fire() {
    local count=$1 i pid fio daemon status=0
    rm -rf "$dir"/{stop,pass,proxy.sock,fio,lib/aiodisk/disk.img}
    mkdir "$dir/fio"
    service_image disk.img $size
    config disk "file=/var/lib/aiodisk/disk.img ${*:2}"
    up disk
    local where=server.type=unix,server.path=$socket
    qemu-storage-daemon \
        --blockdev "driver=nbd,node-name=n,reconnect-delay=60,$where" \
        --nbd-server "addr.type=unix,addr.path=$dir/proxy.sock" \
        --export type=nbd,id=e,node-name=n,name=,writable=on 2>"$dir/daemon.log" &
    daemon=$!
    pids+=($daemon)
    wait_for 20 test -S "$dir/proxy.sock"
    passes &
    fio=$!
    pids+=($fio)
    for ((i = 1; i <= count; i++)); do
        # A random moment; systemd gives up after 5 starts in 10 s.
        sleep "$(printf '2.%03d' $((100 + RANDOM % 500)))"
        ! ended $fio || break
        pid=$(server_pid)
        kill -9 "$pid"
        wait_for 20 is_restarted $i
        [ "$(server_pid)" != "$pid" ] || fail "the server was not killed"
    done
    touch "$dir/stop"
    wait $fio || status=$?
    kill $daemon
    wait $daemon || true
    restarts=$(state disk NRestarts)
    down disk
    return $status
}

say "control: writes that are lost with the server"
! under_fire 10 --filter=cache cache=unsafe direct=off || fail_with "$dir/fio.out" "no wrong block"
grep -q 'verify: bad' "$dir/fio.out" || fail_with "$dir/fio.out" "fio failed for another reason"
grep -m1 'verify: bad' "$dir/fio.out"

say "$kills kills${*:+, $*}"
under_fire "$kills" "$@" || fail_with "$dir/fio.out" "fio found an error"
[ "$restarts" = "$kills" ] || fail "systemd restarted the server $restarts times"
say "$restarts restarts, $(cat pass) passes of fio over $size"
# The image itself holds the last pass.
cd "$dir/fio"
verify "$(cat "$dir/pass")" --ioengine=psync --filename="$dir/lib/aiodisk/disk.img" --verify_only ||
    fail_with "$dir/fio.out" "the image differs"
