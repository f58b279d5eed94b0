#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# aiodisk-top in a real terminal (tmux) and in scripts: what it shows at 80 and 200 columns and with
# 500 exports, each key, changes of the terminal's size, servers that are gone, and wrong arguments.
# tests/lib/fake_metrics.py writes the files, so each figure is known.
. "$(dirname "$0")/../lib/functions.sh"
for module in rich prometheus_client; do
    "$python" -c "import $module" 2>/dev/null || skip "needs Debian's package of the module $module"
done
command -v tmux >/dev/null || skip "needs tmux"
cd "$dir"
export LC_ALL=C.UTF-8
top=$source_root/plugin/top/aiodisk-top

# server NAME EXPORTS [UPDATES]: NAME.prom is updated each second from now on; sets $writer.
server() {
    "$python" "$source_root/tests/lib/fake_metrics.py" "$@" &
    writer=$!
    pids+=("$writer")
    wait_for 20 test -e "$1"
}

# --- Scripts ---

say "--once and --json: known figures"
server a.prom 5
first_writer=$writer
"$top" --once a.prom >once 2>err || fail_with err "--once failed"
[ ! -s err ] || fail_with err "--once prints errors"
# expect FILE LINE: the file has a line with these words, however they are spaced.
expect() {
    sed 's/  */ /g; s/ $//' "$1" | grep -qxF -- "$2" || fail_with "$1" "no line '$2'"
}
expect once "EXPORT CONN r/s w/s rMB/s wMB/s r50 r99 w50 w99 flush99 QWAIT INFLIGHT OLDEST ERR"
expect once "disk0 2 1000 200 4.1 13 120us 159us 3.8ms 5.1ms 20ms 80us 16 250ms 0"
expect once "disk3 2 250 0 1.0 0 120us 159us - - - 80us 0 - FAILED"
expect once "pool: 15 busy, 5 idle threads; queued: 10 fast, 0 slow; bounce: 3.1 MB"
[ "$(grep -c '^disk' once)" = 5 ] || fail_with once "not 5 exports"
"$top" --once --sort export a.prom | grep -o '^disk.' | tr '\n' ' ' >order
[ "$(cat order)" = "disk0 disk1 disk2 disk3 disk4 " ] || fail_with order "--sort export"
"$top" --once --json a.prom >json
jq -e '.servers[0] | .state == "running" and .problem == null and .pool.threads_busy == 15 and
    (.exports | length) == 5 and (.exports[1] | .export == "disk1" and .reads_per_second > 499.9 and
    .reads_per_second < 500.1 and .write_p99_seconds == null)' json >/dev/null ||
    fail_with json "wrong JSON"

say "--json ends quietly when its reader does, and prints a line for each interval"
[ "$("$top" --json -d 0.2 a.prom 2>err | head -2 | jq -s length)" = 2 ] || fail "not two objects"
[ ! -s err ] || fail_with err "a broken pipe is reported"

# wrong MESSAGE ARGUMENTS...: status 1, and exactly one line that contains MESSAGE.
wrong() {
    local message=$1 status=0
    shift
    timeout 20 "$top" "$@" >out 2>err </dev/null || status=$?
    [ $status = 1 ] && [ ! -s out ] || fail_with err "status $status for: $*"
    [ "$(wc -l <err)" = 1 ] && grep -qF -- "$message" err ||
        fail_with err "not one line with '$message' for: $*"
}
say "wrong arguments and files"
mkfifo fifo
mkdir empty
printf 'node_load1 3\n' >other
printf 'aiodisk_up{ 1\n' >damaged
wrong "--delay: 0: allowed are 0.1 to 3600 seconds" --delay 0 a.prom
wrong "nan: allowed are 0.1" -d nan a.prom
wrong "--sort: X: allowed are r/s+w/s EXPORT CONN" --sort X a.prom
wrong "unrecognized arguments: --onc" --onc a.prom
wrong "missing.prom: No such file or directory" --once missing.prom
wrong "fifo: not a regular file" --once fifo
wrong "empty: no metrics file" --once empty
wrong "other: not a metrics file of aiodisk" --once a.prom other
wrong "damaged: is not in Prometheus's text format" --once damaged
wrong "needs a terminal; --once and --json do not" a.prom
if [ "$(id -u)" = 0 ]; then
    install -m 600 a.prom secret.prom
    cp "$source_root"/plugin/top/aiodisk* .
    chmod 755 .
    status=0
    setpriv --reuid=nobody --clear-groups ./aiodisk-top --once secret.prom 2>err || status=$?
    [ $status = 1 ] && grep -qx "aiodisk-top: secret.prom: Permission denied" err ||
        fail_with err "status $status for a file that may not be read"
    rm secret.prom
fi

# --- Real servers ---

say "a real server: the rate is fio's"
truncate -s 16M disk.img
start server disk.img metrics="$dir/real.prom" metrics-server='a, b'
fio --name=reads --ioengine=nbd --uri="$uri" --rw=randread --bs=4k --iodepth=4 --rate_iops=1000 \
    --size=16M --time_based --runtime=20 --output=fio.out &
pids+=($!)
has_rates() {
    "$top" --once --json -d 2 real.prom >json
    jq -e '.servers[0] | .state == "running" and
        (.exports[0] | .export == "" and .connections >= 1 and
        .reads_per_second > 800 and .reads_per_second < 1200 and
        .read_p50_seconds <= .read_p99_seconds and .read_p99_seconds < 1)' json >/dev/null
}
wait_for 15 has_rates
kill %%
stop
"$top" --once --json real.prom | jq -e '.servers[0].state == "ended"' >/dev/null ||
    fail "the server that ended is not said to have ended"

# --- Terminal ---

# open WIDTH HEIGHT ARGUMENTS...: starts aiodisk-top in a terminal of that size.  Each terminal is a
# tmux server of its own, because a socket cannot be used again while its last server ends.
tmux=(true)
before_cleanup() { "${tmux[@]}" kill-server 2>/dev/null; }
terminals=0
open() {
    "${tmux[@]}" kill-server
    terminals=$((terminals + 1))
    tmux=(tmux -f /dev/null -S "$dir/tmux.$terminals")
    "${tmux[@]}" new-session -d -x "$1" -y "$2" "$top ${*:3} 2>$dir/top.err; \
        echo \"ended with \$?\"; stty -a; exec sleep 1000"
}
screen() { "${tmux[@]}" capture-pane -p >"$dir/screen"; }
key() { "${tmux[@]}" send-keys "$@"; }
# shows PATTERN: the screen shows a line that matches; waits for it.
shows() {
    say "   shows: $1"
    local deadline=$((SECONDS + 30))
    until screen && grep -qE -- "$1" "$dir/screen"; do
        [ $SECONDS -lt $deadline ] || {
            cat "$dir/top.err" >&2
            fail_with screen "never shown: $1"
        }
        sleep 0.05
    done
}
hides() { ! grep -qE -- "$1" "$dir/screen" || fail_with screen "shown: $1"; }
# order PATTERN: the first words of the rows, in this order from the top.
order() { shows "^EXPORT"; wait_for 20 in_order "$1"; }
in_order() { screen && grep -o '^disk[0-9]*' screen | tr '\n' ' ' | grep -q "^$1"; }
# fits COLUMNS LINES: nothing is wider or longer than the terminal, and the last line has the keys.
fits() {
    screen
    [ "$("$python" -c 'import sys
print(max(len(line.rstrip("\n")) for line in open(sys.argv[1])))' screen)" -le "$1" ] &&
        [ "$(wc -l <screen)" = "$2" ] && tail -1 screen | grep -q "q quit" ||
        fail_with screen "does not fit $1 x $2"
}

say "80 columns: some are hidden, and said so; sorting by a hidden column shows it"
open 80 24 a.prom
shows '^disk0 +1000 +200 .* 16 +250ms +0$'
fits 80 24
hides 'r50 .*OLDEST'
shows '^hidden for want of width: r50 w50 CONN$'
key s s
shows 'sorted by CONN'
shows '^EXPORT +CONN'
fits 80 24

say "keys: sort, reverse, pause, quit"
key S S
shows 'sorted by r/s.w/s'
order 'disk0 disk1 disk2 disk3 disk4'
key r
order 'disk4 disk3 disk2 disk1 disk0'
shows reversed
key r p
shows PAUSED
clock=$(grep -o '..:..:..' screen)
# No event shows that nothing happens, so the test waits for longer than the interval.
sleep 2.2
screen
grep -q "$clock.*PAUSED" screen || fail_with screen "a paused display changes"
key Space
wait_for 10 eval 'screen; ! grep -q PAUSED screen'
wait_for 10 eval "screen; ! grep -q $clock screen"
key q
shows '^ended with 0'
shows ' icanon'
shows ' echo '
[ ! -s top.err ] || fail_with top.err "an error"

say "200 columns: all columns; the terminal becomes smaller and larger"
open 200 50 a.prom
shows '^disk0 +2 +1000 +200 +4.1 +13 +120us +159us +3.8ms +5.1ms +20ms +80us +16 +250ms +0$'
hides hidden
fits 200 50
shows '^disk3 .*FAILED$'
"${tmux[@]}" resize-window -x 60 -y 12
wait_for 10 eval 'screen; grep -q "^EXPORT.*ERR$" screen && ! grep -q "^EXPORT.*r50" screen'
fits 60 12
"${tmux[@]}" resize-window -x 20 -y 3
wait_for 10 eval 'screen; [ $(wc -l <screen) = 3 ]'
"${tmux[@]}" resize-window -x 200 -y 50
shows '^EXPORT +CONN.* r50 .*ERR$'
key C-c
shows '^ended with 0'
shows ' icanon'

say "SIGTERM restores the terminal"
open 80 24 a.prom
shows '^disk0'
kill -TERM "$(pgrep -P "$("${tmux[@]}" display -p '#{pane_pid}')")"
shows '^ended with 143'
shows ' icanon'

say "500 exports: scroll to the last and back"
server many.prom 500
many_writer=$writer
open 80 24 many.prom
shows '^exports 1-19 of 500'
order 'disk0 disk1 disk2'
key s
shows 'sorted by EXPORT'
order 'disk0 disk1 disk10 disk100 disk101'
fits 80 24
key Down
order 'disk1 disk10 disk100'
key k NPage
order 'disk115 disk116'
key G
shows '^exports 482-500 of 500'
order 'disk82 .*disk98 disk99 $'
key j j j PPage # also if all arrive at once
shows '^exports 463-481 of 500'
key g
shows '^exports 1-19 of 500'
"${tmux[@]}" resize-window -x 200 -y 60
shows '^exports 1-56 of 500'
fits 200 60
key q
shows '^ended with 0'
kill "$many_writer"

say "500 exports of a real server"
mkdir images
(cd images && truncate -s 1M $(seq -f 'e%g' 500))
start server dir=images metrics="$dir/real.prom"
cat >clients.py <<'P'
import nbd, sys
for i in range(500):
    h = nbd.NBD()
    h.connect_uri(f"nbd+unix:///e{i + 1}?socket={sys.argv[1]}")
    h.pread(4096, 0)
    h.shutdown()
P
open 200 60 real.prom
"$python" clients.py "$socket"
shows '^exports 1-56 of 500'
fits 200 60
key q
shows '^ended with 0'
stop

say "several servers: one ends, one is killed, one comes later"
mkdir run
server run/ends.prom 1 4
open 120 24 run
shows '^disk0 '
server run/killed.prom 2
shows '^ends +2 +1000|^ends/disk0'
shows '^killed/disk1 '
shows 'ends.prom: server gone: it ended'
kill -9 "$writer"
shows 'killed.prom: server gone: no update for'
shows 'servers: 0 of 2'
shows '^killed/disk1 +- +-'
rm run/killed.prom
shows 'servers: 0 of 1'
printf 'aiodisk_up{' >run/ends.prom
shows 'ends.prom: is not in Prometheus.s text format.*server gone'
key q
shows '^ended with 0'
"$top" --once --json run >json || fail "a server that is gone is no error"
jq -e '.servers[0].state == "gone"' json >/dev/null || fail_with json "state is not gone"

say "hostile and wide names reach the terminal only as text"
PYTHONPATH=$source_root/tests/lib "$python" - <<'P'
import fake_metrics as metrics, time
s = metrics.Server("names.prom", time.time())
for name in ["\x1b[31mred\x1b]0;title\x07", "世界" * 20, "[bold]markup[/bold]", "a\nb", ""]:
    s.set("connections", 1, export=name)
s.write(time.time() + 3600)
P
open 100 24 names.prom
shows '^\\x1b\[31mred'
shows '^\[bold\]mar'
shows '^a\\nb '
shows '^世界.*…'
shows '^\(default\)'
key q
shows '^ended with 0'
