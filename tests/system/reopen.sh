#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A new client gets the current file of that name if the file was replaced, and may write if the
# disk is no longer read-only; the old file does not stay open.  A write that was in flight during
# another connection's flush is synced before the image is closed.
. "$(dirname "$0")/../lib/functions.sh"
readonly_now() { nbdinfo --json "$uri" | jq '.exports[0].is_read_only'; }

say "the file is replaced"
truncate -s 1M "$dir/disk.img"
start replaced "$dir/disk.img"
qemu-io -f raw -c 'write -P 1 0 4k' "$uri" >"$dir/out"
before=$(find "/proc/$(cat "$dir/replaced.pid")/fd" | wc -l)
for i in 1 2 3; do
    truncate -s $((i + 1))M "$dir/new.img"
    mv "$dir/new.img" "$dir/disk.img"
    [ "$(nbdinfo --size "$uri")" = $(((i + 1) << 20)) ] || fail "the client got the old file"
done
! find "/proc/$(cat "$dir/replaced.pid")/fd" -lname '*(deleted)' | grep . ||
    fail "replaced files are still open"
after=$(find "/proc/$(cat "$dir/replaced.pid")/fd" | wc -l)
[ "$after" -le $((before + 1)) ] || fail "$before descriptors became $after"
stop

say "the disk is read-only, and then is not"
truncate -s 1M "$dir/backing.img"
make_loop "$dir/backing.img"
blockdev --setro "$loop"
start setrw "$loop"
[ "$(readonly_now)" = true ] && [ "$(readonly_now)" = true ] ||
    fail "a read-only disk is served read-write"
[ "$(grep -c 'served read-only' "$log")" = 1 ] || fail "not exactly one line gives the reason"
blockdev --setrw "$loop"
[ "$(readonly_now)" = false ] || fail "the export is still read-only"
qemu-io -f raw -c 'write -P 2 0 4k' "$uri" >"$dir/out" || fail "the export cannot be written to"
stop

say "dir=: a write that a flush overtook is synced before the image is closed"
mkdir "$dir/exports"
truncate -s 1M "$dir/exports/disk"
nbdkit=(strace -f -qq -o "$dir/trace" -e "trace=pwritev,fdatasync"
    -e "inject=pwritev:delay_enter=500000" nbdkit)
start overtaken dir="$dir/exports"
"$python" - "$dir/overtaken.sock" <<'P'
import nbd, sys, time
handles = []
for _ in range(2):
    h = nbd.NBD()
    h.set_export_name("disk")
    h.connect_unix(sys.argv[1])
    handles.append(h)
first, second = handles
cookie = first.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * 4096)), 0)
first.poll(0)
time.sleep(0.2)
second.flush()
assert not first.aio_command_completed(cookie), "the write completed before the flush"
while not first.aio_command_completed(cookie):
    first.poll(-1)
first.shutdown()
second.shutdown()
P
stop
sed -n '/pwritev/,$p' "$dir/trace" | sed '1,/resumed.*= 4096/d' | grep -q 'fdatasync' ||
    fail_with "$dir/trace" "no fdatasync follows the write"
