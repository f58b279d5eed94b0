#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A slow export does not delay the clients of another export: not while the slow export is opened,
# not while it is prefetched, and not when its last client disconnects.  A prefetch delays neither
# another export's flush nor the end of the server.
. "$(dirname "$0")/../lib/functions.sh"
need_root "a FUSE mount"
[ -e /dev/fuse ] || skip "no /dev/fuse"

# slow NAME NBDKIT-ARGUMENTS...: makes a file in $dir/exports on which every read is delayed.
slow() {
    local file=$dir/exports/$1
    shift
    : >"$file"
    mounts+=("$file")
    nbdfuse "$file" --command nbdkit -s --filter=delay "$@" 2>"$dir/nbdfuse.log" &
    pids+=($!)
    wait_for 20 test -s "$file"
}
mkdir "$dir/exports"
truncate -s 8M "$dir/exports/fast"
slow opened memory 8M rdelay=4
slow read memory 4G rdelay=50ms

cat >"$dir/use.py" <<'P'
import nbd, sys, threading, time
socket, phase = sys.argv[1:]
AT_ONCE = 2  # seconds: the delayed operations take longer

def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(socket)
    return h

def in_time(what, function, *arguments):
    begin = time.monotonic()
    result = function(*arguments)
    took = time.monotonic() - begin
    print(f"{what}: {took:.2f} s")
    assert took < AT_ONCE, f"{what} took {took:.1f} s"
    return result

if phase == "opening":
    begin = time.monotonic()
    opener = threading.Thread(target=lambda: connect("opened").shutdown())
    opener.start()
    time.sleep(0.3)
    in_time("a client of another export connects", connect, "fast").shutdown()
    assert opener.is_alive(), "the slow export was not slow"
    opener.join()
else:
    h = connect("read")
    for i in range(16):
        in_time("a hint", h.cache, 1 << 28, i << 28)
    fast = in_time("a client of another export connects", connect, "fast")
    fast.pwrite(b"x" * 4096, 0)
    in_time("its flush", fast.flush)
    h.shutdown()
    in_time("after the last client has left, another connects", connect, "fast").shutdown()
    fast.shutdown()
P

say "an export that is slow to open: with cache=none, the open reads from it"
start opening dir="$dir/exports" cache=none
"$python" "$dir/use.py" "$dir/opening.sock" opening
stop
for threads in 64 4; do
    say "max-threads=$threads: an export that is slow to prefetch"
    start hints dir="$dir/exports" max-threads=$threads
    "$python" "$dir/use.py" "$dir/hints.sock" hints
    began=$SECONDS
    stop
    [ $((SECONDS - began)) -le 4 ] || fail "the server took $((SECONDS - began)) s to end"
done
