# SPDX-License-Identifier: BSD-3-Clause
# The common part of all shell tests; each test sources this file first.
#
# Every test gets a private directory, $dir.  At the end of the test, also after a failure,
# cleanup() removes the directory and everything that the test registered: processes (pids), mounts,
# loop devices (loops) and cgroups.  The functions below start nbdkit, make targets and report
# results.
#
# AIODISK_PLUGIN names the plugin under test; meson sets this variable.
set -euo pipefail

: "${AIODISK_PLUGIN:?is not set: run the test through meson test, or set it to the path of the .so}"
plugin=$AIODISK_PLUGIN
here=$(cd "$(dirname "$0")" && pwd) # the folder of the test that sources this file
source_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=/usr/bin/python3 # Debian's python3 has libnbd's module; another python3 in PATH may not
export PYTHONPATH=$source_root/tests/lib PYTHONDONTWRITEBYTECODE=1

# As the kernel names it in /proc.
dir=$(realpath "$(mktemp -d "${TMPDIR:-/var/tmp}/aiodisk-test.XXXXXX")")
pids=() mounts=() cgroups=()
declare -A loops=()

# is_ours PID: the process is a child of this test or names its directory.  A test that makes many
# threads uses up the numbers of processes, and the number of one that has ended is then another's.
is_ours() {
    [ "$(ps -o ppid= -p "$1" | tr -d ' ')" = $$ ] || grep -qaF "$dir" "/proc/$1/cmdline" 2>/dev/null
}

# end_processes: kills every registered process and waits for its end.
end_processes() {
    local i
    for i in "${pids[@]}"; do ! is_ours "$i" || kill -9 "$i" 2>/dev/null; done
    for i in "${pids[@]}"; do wait "$i" 2>/dev/null; done
}

# drop_loop LOOP: detaches a device of make_loop, which may belong to another test from then on.
drop_loop() {
    unset "loops[$1]"
    blockdev --setrw "$1" 2>/dev/null || true # the flag would stay with the device
    losetup -d "$1"
}

# A test that changes more than the registered things defines before_cleanup() to undo the change.
cleanup() {
    local status=$? i
    trap - EXIT
    set +e
    if declare -F before_cleanup >/dev/null; then before_cleanup; fi
    end_processes
    for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do umount -l "${mounts[i]}" 2>/dev/null; done
    for i in "${!loops[@]}"; do drop_loop "$i"; done
    for i in "${cgroups[@]}"; do rmdir "$i" 2>/dev/null; done
    rm -rf "$dir"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 143' TERM INT

# fail MESSAGE: ends the test as failed, and shows what a sanitizer wrote into the server's log.
fail() {
    echo "FAILED: $*" >&2
    [ -z "${log:-}" ] ||
        grep -s -A 60 -E '(ERROR|WARNING): (Address|Thread)Sanitizer|runtime error:' "$log" >&2 ||
        true
    exit 1
}
# fail_with FILE MESSAGE: the same; shows the end of FILE first.
fail_with() {
    tail -n 200 "$1" >&2
    shift
    fail "$@"
}
skip() { echo "skipped: $*"; exit 77; }
need_root() { [ "$(id -u)" = 0 ] || skip "needs root, for $1"; }
say() { echo "-- $*"; }

# If the plugin was built with ASan or TSan, the runtime must be the first library of nbdkit, and
# only of nbdkit.  TSan's first finding ends nbdkit; tsan.supp says what is no finding, and why.
# Leak detection is off: nbdkit 1.32 does not free connections that are open at its end.
# valgrind.sh checks for leaks of the plugin.  AIODISK_CORKED names libnbdkit-corked.so, if the test
# is to run with that library in nbdkit.
if [ -n "${AIODISK_PRELOAD:-}${AIODISK_CORKED:-}" ]; then
    mkdir "$dir/bin"
    cat >"$dir/bin/nbdkit" <<S
#!/bin/sh
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
TSAN_OPTIONS='halt_on_error=1 second_deadlock_stack=1'
export TSAN_OPTIONS="\$TSAN_OPTIONS suppressions=$source_root/tests/lib/tsan.supp"
export LD_PRELOAD='${AIODISK_PRELOAD:-} ${AIODISK_CORKED:-}'
exec $(command -v nbdkit) "\$@"
S
    chmod +x "$dir/bin/nbdkit"
    PATH=$dir/bin:$PATH
fi

# wait_for SECONDS COMMAND...: repeats the command until it succeeds.  After SECONDS the test fails,
# and shows the end of the selected server's log.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        if [ $SECONDS -ge $deadline ]; then
            [ ! -e "${log:-}" ] || tail -n 60 "$log" >&2
            fail "the time limit expired while waiting for: $*"
        fi
        sleep 0.02
    done
}

# suspend PID: stops a process.  On a busy machine its threads go on for some time after the signal.
suspend() {
    kill -STOP "$1"
    wait_for 20 suspended "$1"
}
suspended() { ! grep -sh '^State:' /proc/"$1"/task/*/status | grep -qv 'T (stopped)'; }

# working_backends: prints the names of the backends that work here.  capabilities.sh proves that
# this list is right.
working_backends() { nbdkit --dump-plugin "$plugin" | sed -n 's/^aiodisk_backends=//p'; }

# all_ways CACHE...: sets the array ways to the parameters of each way to carry requests.
all_ways() {
    local cache backend
    ways=()
    for cache; do
        for backend in $(working_backends); do ways+=("cache=$cache backend=$backend"); done
        ways+=("cache=$cache dispatch=pool")
    done
}

# ended PID: the process has ended.
ended() { ! kill -0 "$1" 2>/dev/null; }

# select_server NAME PID: $pid, $pid_file, $log, $socket and $uri are those of this server.
select_server() {
    pid=$2 pid_file=$dir/$1.pid log=$dir/$1.log socket=$dir/$1.sock
    uri="nbd+unix:///?socket=$socket"
}

# start NAME ARGUMENTS...: starts nbdkit with the plugin in the background and selects it.
# If the array nbdkit is set, it is the command that runs nbdkit, such as (strace -o FILE nbdkit).
start() {
    local name=$1
    shift
    rm -f "$dir/$name.sock" "$dir/$name.pid"
    "${nbdkit[@]:-nbdkit}" -f -v -U "$dir/$name.sock" -P "$dir/$name.pid" "$plugin" "$@" \
        2>"$dir/$name.log" &
    pids+=($!)
    select_server "$name" $!
    wait_for 20 started "$pid_file" "$pid" || true
    [ -e "$pid_file" ] || fail_with "$log" "nbdkit did not start: $*"
}
started() { [ -s "$1" ] || ended "$2"; }

# stop: ends the selected server and checks its exit status.  The signal goes to the process in the
# pid file, because $pid may be a tracer's; the tracer ends with the status of nbdkit.
stop() {
    local status=0
    kill "$(cat "$pid_file")"
    wait "$pid" || status=$?
    [ $status = 0 ] || fail_with "$log" "nbdkit ended with status $status"
}

# refused PATTERN ARGUMENTS...: nbdkit refuses the arguments before a client connects: its exit
# status is 1, and stderr is exactly one line, which matches PATTERN.
refused() {
    local pattern=$1 status=0
    shift
    timeout 20 nbdkit -f -U "$dir/refused.sock" "$plugin" "$@" --run true 2>"$dir/refused.err" ||
        status=$?
    rm -f "$dir/refused.sock"
    [ $status = 1 ] || fail_with "$dir/refused.err" "exit status $status for: $*"
    [ "$(grep -c . "$dir/refused.err")" = 1 ] || fail_with "$dir/refused.err" "not one line for: $*"
    grep -q -- "$pattern" "$dir/refused.err" ||
        fail_with "$dir/refused.err" "no line matches '$pattern' for: $*"
    cat "$dir/refused.err"
}

# make_loop FILE OPTIONS...: makes a loop device; sets $loop.
make_loop() {
    local file=$1
    shift
    need_root "loop devices"
    loop=$(losetup --show -f "$@" "$file")
    loops[$loop]=1
    # A killed test may have left the device read-only with blockdev --setro.
    [[ " $* " = *" -r "* ]] || blockdev --setrw "$loop"
}

# make_target file|loop|rbd SIZE: makes a file, a loop device or an RBD image of a new Ceph cluster,
# filled with zeros; sets $target, the argument of the plugin.
make_target() {
    if [ "$1" = rbd ]; then
        . "$source_root/tests/lib/ceph.sh"
        start_ceph
        rbd create rbd/target --size "$2$([[ $2 = *[0-9] ]] && echo B)"
        target=rbd=rbd/target
        return
    fi
    truncate -s "$2" "$dir/target.img"
    target=$dir/target.img
    if [ "$1" = loop ]; then
        make_loop "$dir/target.img" --direct-io=on
        target=$loop
    fi
}

# make_fs TYPE SIZE OPTIONS...: mounts a new filesystem on a loop device, or a tmpfs; sets $mnt.
make_fs() {
    local type=$1 size=$2
    shift 2
    need_root mounts
    mnt=$(mktemp -d "$dir/mnt.XXXX")
    if [ "$type" = tmpfs ]; then
        mount -t tmpfs -o "size=$size" aiodisk-test "$mnt"
    else
        modprobe "$type" 2>/dev/null || grep -qw "$type" /proc/filesystems ||
            skip "the kernel has no $type"
        truncate -s "$size" "$mnt.fs"
        make_loop "$mnt.fs"
        "mkfs.$type" -q "$@" "$loop" >/dev/null
        mount "$loop" "$mnt"
    fi
    mounts+=("$mnt")
}

# hold_client URI: a client that connects and stays; sets $holder.  release_client ends the client.
hold_client() {
    rm -f "$dir/held"
    "$python" -c 'import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
open(sys.argv[2], "w").close()
time.sleep(600)' "$1" "$dir/held" &
    holder=$!
    pids+=("$holder")
    wait_for 10 test -e "$dir/held"
}
release_client() {
    kill "$holder"
    wait "$holder" 2>/dev/null || true
}

# counter NAME: a counter of the selected server, which had -D aiodisk.stats=1 and has ended.
counter() { sed -n "s/^aiodisk: counters:.* $1=\([0-9]*\).*/\1/p" "$log"; }

checksum() { sha256sum <"$1"; }

# milliseconds_since TIME: TIME is an earlier value of $EPOCHREALTIME.
milliseconds_since() { echo $(((${EPOCHREALTIME/./} - ${1/./}) / 1000)); }
