#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images whose storage hangs must not hold up any other image.  The server has four exports: `good`
# and `late` are healthy, the filesystem below `frozen` is frozen (fsfreeze), and the FUSE server
# behind `stopped` is stopped (SIGSTOP).  With writes, FUA writes, trims and zeros stuck on the
# first, and reads, writes, flushes and opens stuck on the second, every request on `good` is
# answered and `late` can be opened.  Afterwards the stuck requests complete and their data are
# there; then SIGTERM ends the server although an image is stuck once more.
# stuck-image.sh PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
need_root "frozen filesystems"

make_fs ext4 128M
mkdir "$dir/exports"
truncate -s 32M "$dir/exports/good" "$dir/exports/late" "$mnt/frozen" "$dir/backing.img"
touch "$dir/exports/frozen" "$dir/exports/stopped"
mount --bind "$mnt/frozen" "$dir/exports/frozen"
mounts+=("$dir/exports/frozen")

# The FUSE filesystem: one file, served by nbdfuse from an nbdkit of its own.
nbdkit -f -U "$dir/backing.sock" -P "$dir/backing.pid" file "$dir/backing.img" &
pids+=($!)
wait_for 20 test -s "$dir/backing.pid"
nbdfuse "$dir/exports/stopped" --unix "$dir/backing.sock" &
fuse=$!
pids+=("$fuse")
mounts+=("$dir/exports/stopped")
wait_for 20 mountpoint -q "$dir/exports/stopped"

gone() { ! kill -0 "$1" 2>/dev/null; }
frozen=no
thaw() {
    [ $frozen = no ] || fsfreeze -u "$mnt" || true
    frozen=no
    kill -CONT "$fuse" 2>/dev/null || true
}
trap 'status=$?; set +e; thaw; (exit $status); cleanup' EXIT

start server "dir=$dir/exports" "$@"
say "$*: requests of other images while two images are stuck"
coproc CLIENT { "$python" "$here/stuck-image.py" "$dir/server.sock"; }
client=$CLIENT_PID
# The client asks for each step by a line, and is answered when it is done.
while read -r step; do
    case $step in
    freeze) fsfreeze -f "$mnt" && frozen=yes && suspend "$fuse" ;;
    thaw) thaw ;;
    *) echo "$step"; continue ;;
    esac
    echo "$step done" >&"${CLIENT[1]}"
done <&"${CLIENT[0]}"
status=0
wait "$client" || status=$?
[ $status = 0 ] || fail "the client failed"

say "SIGTERM while requests are stuck ends the server as soon as they end"
fsfreeze -f "$mnt" && frozen=yes
suspend "$fuse"
"$python" "$here/stuck-image.py" "$dir/server.sock" leave &
pids+=($!)
wait_for 20 test -e "$dir/server.sock.left"
kill "$pid"
thaw
wait_for 10 gone "$pid"
wait "$pid" || fail "the server ended with status $?"
