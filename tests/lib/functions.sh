# SPDX-License-Identifier: BSD-3-Clause
# For the system tests, sourced by each: a private directory that goes away at the end with everything
# that was made in it (servers, loop devices, mounts, cgroups), and a few words to start nbdkit with.
#
# AIODISK_PLUGIN names the plugin under test; meson sets it.
set -euo pipefail

: "${AIODISK_PLUGIN:?is not set: run this through meson test, or set it to the .so}"
plugin=$AIODISK_PLUGIN
here=$(cd "$(dirname "$0")" && pwd) # the folder of the test that sources this
source_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=/usr/bin/python3 # Debian's: it has libnbd's module

dir=$(mktemp -d "${TMPDIR:-/var/tmp}/aiodisk-test.XXXXXX")
pids=() loops=() mounts=() cgroups=()

cleanup() {
    local status=$? i
    trap - EXIT
    for i in "${pids[@]}"; do kill -9 "$i" 2>/dev/null || true; done
    for i in "${pids[@]}"; do wait "$i" 2>/dev/null || true; done
    for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do umount -l "${mounts[i]}" 2>/dev/null || true; done
    for i in "${loops[@]}"; do losetup -d "$i" 2>/dev/null || true; done
    for i in "${cgroups[@]}"; do rmdir "$i" 2>/dev/null || true; done
    rm -rf "$dir"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 143' TERM INT

fail() {
    echo "FAILED: $*" >&2
    [ -z "${log:-}" ] || grep -s -A 40 -E 'ERROR: AddressSanitizer|runtime error:' "$log" >&2 || true
    exit 1
}
skip() { echo "skipped: $*"; exit 77; }
need_root() { [ "$(id -u)" = 0 ] || skip "needs root, for $1"; }
say() { echo "-- $*"; }

# The plugin was built with ASan: its runtime has to be the first library of nbdkit, and of nbdkit alone.  Leaks are
# valgrind.sh's business: nbdkit itself forgets the connections that live at its end.
if [ -n "${AIODISK_PRELOAD:-}" ]; then
    mkdir "$dir/bin"
    cat >"$dir/bin/nbdkit" <<S
#!/bin/sh
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 LD_PRELOAD='$AIODISK_PRELOAD'
exec $(command -v nbdkit) "\$@"
S
    chmod +x "$dir/bin/nbdkit"
    PATH=$dir/bin:$PATH
fi

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || fail "waited in vain for: $*"
        sleep 0.02
    done
}

# start NAME ARGS...: nbdkit with the plugin, in the background; sets $pid, $uri and $log.
start() {
    local name=$1
    shift
    log=$dir/$name.log
    rm -f "$dir/$name.sock" "$dir/$name.pid"
    "${nbdkit[@]:-nbdkit}" -f -v -U "$dir/$name.sock" -P "$dir/$name.pid" "$plugin" "$@" 2>"$log" &
    pid=$!
    pids+=("$pid")
    uri="nbd+unix:///?socket=$dir/$name.sock"
    wait_for 20 started "$dir/$name.pid" "$pid" || true
    [ -e "$dir/$name.pid" ] || { cat "$log" >&2; fail "nbdkit did not start: $*"; }
}
started() { [ -s "$1" ] || ! kill -0 "$2" 2>/dev/null; }

# stop: ends the nbdkit that was started last, and checks that it ended well.
stop() {
    local status=0
    kill "$pid"
    wait "$pid" || status=$?
    [ $status = 0 ] || { tail -50 "$log" >&2; fail "nbdkit ended with status $status"; }
}

# make_loop FILE OPTIONS...: sets $loop.
make_loop() {
    local file=$1
    shift
    need_root "loop devices"
    loop=$(losetup --show -f "$@" "$file")
    loops+=("$loop")
}

# make_target file|loop SIZE: sets $target, filled with zeros.
make_target() {
    truncate -s "$2" "$dir/target.img"
    target=$dir/target.img
    if [ "$1" = loop ]; then
        make_loop "$dir/target.img" --direct-io=on
        target=$loop
    fi
}

# make_fs TYPE SIZE OPTIONS...: a filesystem on a loop device, or a tmpfs; sets $mnt.
make_fs() {
    local type=$1 size=$2
    shift 2
    need_root mounts
    mnt=$(mktemp -d "$dir/mnt.XXXX")
    if [ "$type" = tmpfs ]; then
        mount -t tmpfs -o "size=$size" aiodisk-test "$mnt"
    else
        truncate -s "$size" "$mnt.fs"
        make_loop "$mnt.fs"
        "mkfs.$type" -q "$@" "$loop"
        mount "$loop" "$mnt"
    fi
    mounts+=("$mnt")
}

# counter NAME: of the last nbdkit, which was started with -D aiodisk.stats=1 and has ended.
counter() { sed -n "s/^aiodisk: counters:.* $1=\([0-9]*\).*/\1/p" "$log"; }

checksum() { sha256sum <"$1"; }
