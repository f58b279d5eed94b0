#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# fio-jobs/compare: its table, JSON and chart name every server with figures; bad options are refused in one line; it
# leaves nothing behind, after Ctrl-C and after a server that dies neither.  The figures themselves mean nothing here.
. "$(dirname "$0")/../lib/functions.sh"
compare=$source_root/fio-jobs/compare
mkdir "$dir/images"
# An interrupted compare ends what it started; killed, as cleanup does, it could not.
trap 'status=$?; set +e; kill $pid 2>/dev/null && wait $pid; (exit $status); cleanup' EXIT
pid=
common=(--plugin "$plugin" --dir "$dir/images" --rounds 1 --runtime 0.2 --size 16M)

# Everything that compare starts has the path of its images on its command line.
left_behind() { pgrep -f "$dir/images/aiodisk-compare" || find "$dir/images" -mindepth 1 | grep .; }
nothing_left() { ! left_behind || fail "$1 left something behind"; }

# refused OPTION ARGUMENTS...: one line that names the option and what is allowed.
refused() {
    local option=$1 status=0
    shift
    "$compare" "${common[@]}" "$@" >"$dir/out" 2>"$dir/err" || status=$?
    [ $status = 1 ] || fail "$*: status $status instead of 1"
    [ "$(wc -l <"$dir/err")" = 1 ] && grep -q -- "$option.*allowed" "$dir/err" || { cat "$dir/err"; fail "$*: not this line"; }
    [ ! -s "$dir/out" ] || fail "$*: printed something"
}

say "bad options"
refused --rounds --rounds 0
refused --rounds --rounds two
refused --runtime --runtime 0
refused --size --size 1M
refused --cells --cells page/rr1,page/nothing
refused --ours --ours aiodisk,nbdkit-file
refused --peers --peers vhost
refused --plugin --plugin "$dir/no-such.so"
refused --dir --dir "$dir/no-such"
refused --output --output "$dir/no-such/out"
refused --nonsense --nonsense

say "the list"
"$compare" --list >"$dir/list"
for word in page/rr1 direct/flush4x4 page/extents aiodisk-pool qemu-nbd-native; do
    grep -qw -- "$word" "$dir/list" || fail "--list does not show $word"
done

say "a cell in each cache mode, and the map of extents"
"$compare" "${common[@]}" --cells 'page/rr16,direct/flush4x4,extents' --output "$dir/out" >"$dir/table" 2>"$dir/compare.err" ||
    { cat "$dir/compare.err" >&2; fail "compare failed"; }
nothing_left compare
cat "$dir/table"
page="aiodisk nbdkit-file qemu-nbd-threads qemu-nbd-io_uring"
direct="aiodisk qemu-nbd-threads qemu-nbd-io_uring qemu-nbd-native"
for cell in page/rr16 page/extents direct/flush4x4; do
    mode=${cell%/*}
    for server in ${!mode}; do
        # A kernel may forbid io_uring, as containers do.
        if grep -q "^skipped: $server ($mode)" "$dir/compare.err"; then say "skipped: $server ($mode)"; continue; fi
        sed -n "\\:^$cell\\::,/^\$/p" "$dir/table" | grep -qE "^ +$server +[0-9.]*[1-9]" || fail "$cell: the table lacks $server"
        jq -e --arg cell $cell --arg server "$server" '
            ([.measurements[] | select(.cell == $cell and .server == $server)] | length == 1) and
            (.cells[$cell].servers[$server] | .rate.median > 0 and .server_cpu_us > 0 and .client_cpu_us > 0 and
                .server_switches > 0 and .p99_us > 0 and .rss_mib > 1)' "$dir/out.json" >/dev/null ||
            { jq .cells "$dir/out.json"; fail "$cell: no figures of $server"; }
    done
    jq -e ".cells[\"$cell\"] | .best_peer != null and .servers.aiodisk.ratio.median > 0" "$dir/out.json" >/dev/null ||
        fail "$cell: no ratio"
done
jq -e '.kernel and .date and .cpu and .cores > 0 and (.versions | .nbdkit and .fio)' "$dir/out.json" >/dev/null ||
    fail "the JSON does not say where it was measured"
if command -v gnuplot >/dev/null; then
    [ "$(head -c 4 "$dir/out.png" | tail -c 3)" = PNG ] || fail "out.png is no PNG"
fi

say "TCP, two of ours, no peer that knows O_DIRECT, and round 2 in another order"
"$compare" "${common[@]}" --tcp --rounds 2 --ours aiodisk-pool,aiodisk --peers nbdkit-file --cells 'direct/rw1?' \
    --output "$dir/tcp" >"$dir/table" 2>"$dir/tcp.err" || { cat "$dir/tcp.err" >&2; fail "compare --tcp failed"; }
nothing_left "compare --tcp"
[ "$(jq -c '[.transport, (.measurements | map(.server))]' "$dir/tcp.json")" = \
    '["tcp",["aiodisk","aiodisk-pool","aiodisk-pool","aiodisk"]]' ] || { jq . "$dir/tcp.json"; fail "not these measurements"; }

# interrupt SIGNAL NAME ARGUMENTS...: in the middle of a long measurement.
interrupt() {
    local number=$1 name=$2 status=0
    shift 2
    "$compare" "${common[@]}" --runtime 60 --output "$dir/$name" "$@" >/dev/null 2>"$dir/$name.err" &
    pid=$!
    wait_for 20 pgrep -f "^fio .*$dir/images/aiodisk-compare" >/dev/null
    sleep 0.3
    "$number" "$pid"
    wait "$pid" || status=$?
    pid=
    nothing_left "$name"
    [ $status = "$expected" ] || { cat "$dir/$name.err" >&2; fail "$name: status $status instead of $expected"; }
    [ ! -e "$dir/$name.json" ] || fail "$name: wrote figures"
}
say "Ctrl-C, SIGTERM, and a server that dies"
control_c() { kill -INT "$1"; }
terminate() { kill -TERM "$1"; }
# The client is in compare's session, or by default in one of its own.
session_of() { ps -o sess= -p "$1" | tr -d ' '; }
fio_is_in_its_session() { [ "$(session_of "$1")" = "$(session_of "$(pgrep -f "^fio .*$dir/images/aiodisk-compare")")" ]; }
terminate_together() { fio_is_in_its_session "$1" || fail "--one-session: fio is in another"; terminate "$1"; }
terminate_apart() { ! fio_is_in_its_session "$1" || fail "fio is in compare's session"; terminate "$1"; }
kill_server() { kill -KILL "$(cat "$dir"/images/aiodisk-compare.*/pid)"; }
expected=130
interrupt control_c control-c --cells page/rr16x4
interrupt terminate_apart sigterm --cells direct/rw1
interrupt terminate_together one-session --one-session --cells direct/rw1
expected=1
interrupt kill_server died --cells page/rr16
grep -q "aiodisk (page): ended in the middle of a measurement" "$dir/died.err" ||
    { cat "$dir/died.err"; fail "no word of the server"; }
