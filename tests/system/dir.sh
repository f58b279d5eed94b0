#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# dir= and dirfd=: exactly the regular files and block devices in the directory are exports; no file
# outside of the directory is one, and no name makes the server hang.  Files appear and disappear
# while the server runs.  Two names of one file are one disk.
. "$(dirname "$0")/../lib/functions.sh"
need_root "device nodes"
# This is the usual soft limit; many exports must not need more descriptors.
ulimit -Sn 1024
exports=$dir/exports
mkdir "$exports" "$exports/folder" "$exports.other"
truncate -s 3M "$exports.other/secret" "$exports/folder/inner"
truncate -s 1234567 "$exports/plain"
truncate -s 1M "$exports/with space" "$exports/größe-日本" "$exports/a=b" "$exports/q?x&y#z%20+;" \
    "$exports/-r" "$exports/.hidden" "$exports/$(printf 'n%.0s' {1..255})"
: >"$exports/empty"
truncate -s 2M "$exports/first"
ln "$exports/first" "$exports/second"
truncate -s 5M "$dir/loop.img"
make_loop "$dir/loop.img"
mknod "$exports/disk" b "$(stat -c 0x%t "$loop")" "$(stat -c 0x%T "$loop")"
ln -s plain "$exports/link"
# These must not be served.
mkfifo "$exports/fifo"
mknod "$exports/null" c 1 3
ln -s ../exports.other/secret "$exports/link-out"
ln -s "$exports.other/secret" "$exports/link-absolute"
ln -s folder/../../exports.other/secret "$exports/link-winding"
ln -s nowhere "$exports/link-dangling"
ln -s link-loop "$exports/link-loop"
ln -s fifo "$exports/link-fifo"
ln -s /proc/self/fd/0 "$exports/link-magic"
"$python" -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$exports/socket"

say "dir=, directory= and a bare directory name mean the same"
names() { timeout 20 nbdinfo --list --json "$uri" | jq -r '.exports[]."export-name"' | sort; }
start bare "$exports"
names >"$dir/bare"
stop
cd "$exports"
start directory directory=.
names >"$dir/directory"
stop
start relative dir=../exports
cd "$dir"
names >"$dir/relative"
grep -qx plain "$dir/bare" || fail "no export 'plain' in: $(cat "$dir/bare")"
cmp "$dir/bare" "$dir/directory" && cmp "$dir/bare" "$dir/relative" ||
    fail "the three servers list different exports"
stop

for source in dir="$exports" dirfd=8; do
    for cache in default none; do
        say "$source cache=$cache"
        start "dir-$cache" "$source" cache=$cache 8<"$exports"
        "$python" "$here/dir.py" "$dir/dir-$cache.sock" "$pid" "$log" "$exports"
        stop
    done
done
[ "$(stat -c %s-%b "$exports.other/secret")" = $((3 << 20))-0 ] ||
    fail "a file outside of the directory was written to"

say "1,000 exports, 100 clients at once"
mkdir many
for ((i = 0; i < 1000; i++)); do truncate -s $((65536 + i)) "many/export $i"; done
start many many
"$python" "$here/dir.py" "$dir/many.sock" "$pid" "$log" "$dir/many" many
stop
