#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# An image that is merely slow (2 s for each read, 8 busy clients) does not delay the writes of
# another image: no write waits for a slow read.  Prints the worst write alone and beside the slow
# image.  The limit is below the 2 s of one slow read; on a busy machine a write that waits for
# nothing has taken 0.4 s.
# slow-image.sh PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
need_root "a FUSE mount"
[ -e /dev/fuse ] || skip "no /dev/fuse"

mkdir "$dir/exports"
truncate -s 64M "$dir/exports/fast"
: >"$dir/exports/slow"
mounts+=("$dir/exports/slow")
nbdfuse "$dir/exports/slow" --command nbdkit -s --filter=delay memory 4G rdelay=2 \
    2>"$dir/nbdfuse.log" &
pids+=($!)
wait_for 20 test -s "$dir/exports/slow"

start server "dir=$dir/exports" "$@"
say "$*: writes beside an image that takes 2 s for each read"
"$python" - "$dir/server.sock" "${pids[0]}" <<'P' || fail "see above"
import nbd, os, random, signal, sys, threading, time

CLIENTS, IN_FLIGHT, SECONDS = 8, 16, 3
LIMIT_MS = 1500  # beyond the worst write alone

def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(sys.argv[1])
    return h

def worst_write(h):
    """In ms."""
    worst, data = 0, bytes(1 << 20)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for length in 4096, 1 << 20:
            begin = time.monotonic()
            h.pwrite(data[:length], random.randrange(48) << 20)
            worst = max(worst, time.monotonic() - begin)
    return 1000 * worst

done, served = threading.Event(), []

def read_slowly(h):
    """Keeps reads in flight, each of another page, so that each is a slow one."""
    def finished(error):
        if not error.value:
            served.append(1)
        return 1
    while not done.is_set():
        while h.aio_in_flight() < IN_FLIGHT:
            h.aio_pread(nbd.Buffer(4096), random.randrange(1 << 16) << 16, finished)
        h.poll(20)
    while h.aio_in_flight():
        h.poll(-1)

fast = connect("fast")
alone = worst_write(fast)
threads = [threading.Thread(target=read_slowly, args=[connect("slow")]) for _ in range(CLIENTS)]
for t in threads:
    t.start()
while len(served) < CLIENTS:
    time.sleep(0.05)
beside = worst_write(fast)
done.set()
os.kill(int(sys.argv[2]), signal.SIGKILL)   # nbdfuse: the reads that are left fail at once
for t in threads:
    t.join()
print(f"   worst write: {alone:.1f} ms alone, {beside:.1f} ms beside; {len(served)} slow reads")
if beside > alone + LIMIT_MS:
    sys.exit(f"FAILED: {beside:.0f} ms, more than {alone:.0f} + {LIMIT_MS} ms")
P
stop
