#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# fio-jobs/compare: the table, the JSON and the chart have figures for every server.  Each bad
# option is refused in one line.  compare leaves no process and no file behind, also after Ctrl-C
# and after a server that dies.  This test does not check the figures' values.
. "$(dirname "$0")/../lib/functions.sh"
compare=$source_root/fio-jobs/compare
mkdir "$dir/images"
pid=
# compare ends the processes that it started when it gets SIGTERM, but not when it gets the SIGKILL
# of cleanup.
before_cleanup() { [ -z "$pid" ] || { kill "$pid" && wait "$pid"; } 2>/dev/null; }
common=(--plugin "$plugin" --dir "$dir/images" --rounds 1 --runtime 0.2 --size 16M)

# Every process that compare starts has the path of compare's images in its command line, or runs in
# the directory with the images.
left_behind() {
    pgrep -f "$dir/images/aiodisk-compare" || readlink /proc/[0-9]*/cwd | grep "^$dir/images/" ||
        find "$dir/images" -mindepth 1 | grep .
}
nothing_left() { ! left_behind || fail "$1 left a process or a file behind"; }

# option_refused OPTION ARGUMENTS...: compare prints one line that names the option and the allowed
# values.
option_refused() {
    local option=$1 status=0
    shift
    "$compare" "${common[@]}" "$@" >"$dir/out" 2>"$dir/err" || status=$?
    [ $status = 1 ] || fail "$*: status $status instead of 1"
    [ "$(wc -l <"$dir/err")" = 1 ] && grep -q -- "$option.*allowed" "$dir/err" ||
        fail_with "$dir/err" "$*: not one line with '$option' and 'allowed'"
    [ ! -s "$dir/out" ] || fail "$*: printed to stdout"
}

say "bad options"
option_refused --rounds --rounds 0
option_refused --rounds --rounds two
option_refused --runtime --runtime 0
option_refused --size --size 1M
option_refused --cells --cells page/rr1,page/nothing
option_refused --ours --ours aiodisk,nbdkit-file
option_refused --peers --peers vhost
option_refused --plugin --plugin "$dir/no-such.so"
option_refused --dir --dir "$dir/no-such"
option_refused --output --output "$dir/no-such/out"
option_refused --nonsense --nonsense

say "the list"
"$compare" --list >"$dir/list"
for word in page/rr1 direct/flush4x4 page/extents aiodisk-pool qemu-nbd-native; do
    grep -qw -- "$word" "$dir/list" || fail "--list does not show $word"
done

say "a cell in each cache mode, and the map of extents"
"$compare" "${common[@]}" --cells 'page/rr16,direct/flush4x4,extents' --output "$dir/out" \
    --ours aiodisk,aiodisk-corked --ceiling >"$dir/table" 2>"$dir/compare.err" ||
    fail_with "$dir/compare.err" "compare failed"
nothing_left compare
cat "$dir/table"
page="aiodisk aiodisk-corked nbdkit-file qemu-nbd-threads qemu-nbd-io_uring"
direct="aiodisk aiodisk-corked qemu-nbd-threads qemu-nbd-io_uring qemu-nbd-native"
for cell in page/rr16 page/extents direct/flush4x4; do
    mode=${cell%/*}
    for server in ${!mode}; do
        # A kernel or a container may forbid io_uring.
        if grep -q "^skipped: $server ($mode)" "$dir/compare.err"; then
            say "skipped: $server ($mode)"
            continue
        fi
        sed -n "\\:^$cell\\::,/^\$/p" "$dir/table" | grep -qE "^ +$server +[0-9.]*[1-9]" ||
            fail "$cell: the table lacks $server"
        # fio rounds the processor time of a client that was served little to 0.
        jq -e --arg cell $cell --arg server "$server" '
            ([.measurements[] | select(.cell == $cell and .server == $server)] | length == 1) and
            (.cells[$cell].servers[$server] | .rate.median > 0 and .server_cpu_us > 0 and
                .client_cpu_us >= 0 and .server_switches > 0 and .p99_us > 0 and
                .rss_mib > 1)' "$dir/out.json" >/dev/null ||
            fail_with "$dir/out.json" "$cell: the JSON lacks figures of $server"
    done
    jq -e ".cells[\"$cell\"] | .best_peer != null and .best_peer != \"nbdkit-null\" and
        (.servers.aiodisk | .ratio.median > 0 and .p99_ratio > 0)" \
        "$dir/out.json" >/dev/null || fail "$cell: no ratio"
done
jq -e '.cells["page/rr16"].servers.aiodisk.of_ceiling.median > 0' "$dir/out.json" >/dev/null ||
    fail_with "$dir/out.json" "no part of the ceiling"
jq -e '.kernel and .date and .cpu and .cores > 0 and (.versions | .nbdkit and .fio)' \
    "$dir/out.json" >/dev/null || fail "the JSON does not describe the machine"
if command -v gnuplot >/dev/null; then
    [ "$(head -c 4 "$dir/out.png" | tail -c 3)" = PNG ] || fail "out.png is no PNG"
fi

say "TCP, two kinds of aiodisk, no peer with O_DIRECT, and round 2 in another order"
"$compare" "${common[@]}" --tcp --rounds 2 --ours aiodisk-pool,aiodisk --peers nbdkit-file \
    --cells 'direct/rw1?' --output "$dir/tcp" >"$dir/table" 2>"$dir/tcp.err" ||
    fail_with "$dir/tcp.err" "compare --tcp failed"
nothing_left "compare --tcp"
[ "$(jq -c '[.transport, (.measurements | map(.server))]' "$dir/tcp.json")" = \
    '["tcp",["aiodisk","aiodisk-pool","aiodisk-pool","aiodisk"]]' ] ||
    fail_with "$dir/tcp.json" "other measurements than expected"

if nbdkit --dump-plugin "$plugin" | grep -q '^aiodisk_rbd=yes' && PATH=$PATH:/usr/sbin &&
    command -v ceph-mon ceph-osd rbd >/dev/null && fio --enghelp | grep -qw rbd; then
    say "Ceph RBD: a cell with a cluster that compare starts and ends, and a server that is skipped"
    mkdir "$dir/alone" && cp "$plugin" "$dir/alone/plugin.so" # without libnbdkit-corked.so
    "$compare" "${common[@]}" --cells rbd/rw16 --ours aiodisk-corked,aiodisk \
        --plugin "$dir/alone/plugin.so" --output "$dir/rbd" >"$dir/table" 2>"$dir/rbd.err" ||
        fail_with "$dir/rbd.err" "compare --cells rbd/rw16 failed"
    nothing_left "compare of RBD"
    grep -q "^skipped: aiodisk-corked: .*is not a file" "$dir/rbd.err" ||
        fail_with "$dir/rbd.err" "aiodisk-corked was not skipped"
    for peer in qemu-nbd-rbd fio-rbd; do
        grep -q "^skipped: $peer" "$dir/rbd.err" ||
            jq -e --arg peer $peer '.cells["rbd/rw16"].servers | .[$peer].rate.median > 0 and
                .aiodisk.ratios[$peer].median > 0' "$dir/rbd.json" >/dev/null ||
            fail_with "$dir/rbd.json" "no ratio to $peer"
    done
else
    say "skipped: Ceph RBD"
fi

# interrupt FUNCTION NAME ARGUMENTS...: calls the function in the middle of a long measurement, with
# the process ID of compare; compare must then end with status $expected.
interrupt() {
    local interruption=$1 name=$2 status=0
    shift 2
    "$compare" "${common[@]}" --runtime 60 --output "$dir/$name" "$@" \
        >/dev/null 2>"$dir/$name.err" &
    pid=$!
    wait_for 20 pgrep -f "^fio .*$dir/images/aiodisk-compare" >/dev/null
    sleep 0.3 # fio connects; there is no event that shows it
    "$interruption" "$pid"
    wait "$pid" || status=$?
    pid=
    nothing_left "$name"
    [ $status = "$expected" ] ||
        fail_with "$dir/$name.err" "$name: status $status instead of $expected"
    [ ! -e "$dir/$name.json" ] || fail "$name: compare wrote figures"
}
say "Ctrl-C, SIGTERM, and a server that dies"
control_c() { kill -INT "$1"; }
terminate() { kill -TERM "$1"; }
# With --one-session the client is in compare's session; by default it has a session of its own.
session_of() { ps -o sess= -p "$1" | tr -d ' '; }
fio_is_in_session_of() {
    local fio
    fio=$(pgrep -f "^fio .*$dir/images/aiodisk-compare")
    [ "$(session_of "$1")" = "$(session_of "$fio")" ]
}
terminate_together() {
    fio_is_in_session_of "$1" || fail "--one-session: fio is in another session"
    terminate "$1"
}
terminate_apart() {
    ! fio_is_in_session_of "$1" || fail "fio is in compare's session"
    terminate "$1"
}
kill_server() { kill -KILL "$(cat "$dir"/images/aiodisk-compare.*/pid)"; }
expected=130
interrupt control_c control-c --cells page/rr16x4
interrupt terminate_apart sigterm --cells direct/rw1
interrupt terminate_together one-session --one-session --cells direct/rw1
expected=1
interrupt kill_server died --cells page/rr16
grep -q "aiodisk (page): ended in the middle of a measurement" "$dir/died.err" ||
    fail_with "$dir/died.err" "the error does not name the server that died"
