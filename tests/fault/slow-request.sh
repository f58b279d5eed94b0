#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# slow-request=SECONDS: a request that does not end is named in the log with what it waits for,
# again at doubled ages, and once more when it ends.  The requests are stuck because the filesystem
# below the image is frozen, or because the FUSE server below it is stopped.  Meanwhile the metrics
# file is still written, and tells how old the oldest request is.
. "$(dirname "$0")/../lib/functions.sh"
need_root "frozen filesystems"
[ -e /dev/fuse ] || skip "no /dev/fuse"

make_fs ext4 192M
truncate -s 96M "$mnt/frozen" "$dir/backing.img"
dd if=/dev/zero of="$mnt/frozen" bs=1M count=96 conv=notrunc status=none
touch "$dir/stopped"
nbdkit -f -U "$dir/backing.sock" -P "$dir/backing.pid" file "$dir/backing.img" &
pids+=($!)
wait_for 20 test -s "$dir/backing.pid"
nbdfuse "$dir/stopped" --unix "$dir/backing.sock" &
fuse=$!
pids+=("$fuse")
mounts+=("$dir/stopped")
wait_for 20 mountpoint -q "$dir/stopped"

stuck=no
let_go() {
    [ $stuck = no ] || fsfreeze -u "$mnt" || true
    stuck=no
    kill -CONT "$fuse" 2>/dev/null || true
}
trap 'status=$?; set +e; let_go; (exit $status); cleanup' EXIT

# requests COUNT OPERATION OFFSET LENGTH STEP: COUNT requests at OFFSET, OFFSET + STEP, ..., at most
# 16 on a connection, which end when the disk goes on.  They are sent when the clients are connected
# and the disk is stuck.
cat >"$dir/requests.py" <<'P'
import nbd, sys, threading
uri, operation = sys.argv[1], sys.argv[3]
count, offset, length, step = (int(n) for n in [sys.argv[2]] + sys.argv[4:])
failures, connected, go = [], threading.Semaphore(0), threading.Event()

def client(first, last):
    h = nbd.NBD()
    h.connect_uri(uri)
    connected.release()
    go.wait()
    buf = nbd.Buffer(length)
    cookies = [h.aio_flush() if operation == "flush" else h.aio_pwrite(buf, offset + i * step)
               for i in range(first, last)]
    try:
        for cookie in cookies:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
        h.shutdown()
    except nbd.Error as e:
        failures.append(e)

threads = [threading.Thread(target=client, args=(i, min(i + 16, count)))
           for i in range(0, count, 16)]
for t in threads:
    t.start()
for t in threads:
    connected.acquire()
print("connected", flush=True)
sys.stdin.readline()
go.set()
for t in threads:
    t.join()
sys.exit(str(failures) if failures else 0)
P
requests() {
    mkfifo "$dir/connected" "$dir/go"
    exec 8<>"$dir/go" 9<>"$dir/connected"
    rm "$dir/connected" "$dir/go"
    "$python" "$dir/requests.py" "$uri" "$@" <&8 >&9 8<&- 9<&- &
    clients+=($!)
    pids+=($!)
    read -r _ <&9
    "$stick"
    echo >&8
}
# named PATTERN: the log names a slow request so.
named() { grep -Eq "slow request: $1" "$log"; }
# all_end: the disk goes on, and every request ends and says so.
all_end() {
    local i
    let_go
    for i in "${clients[@]}"; do wait "$i" || fail "a request failed"; done
    clients=()
    grep -q "slow request ended: .* after [0-9.]* s: Success" "$log" ||
        fail_with "$log" "no line for the end of a slow request"
    stop
}
clients=()
freeze() {
    [ $stuck = yes ] || fsfreeze -f "$mnt"
    stuck=yes
}
stop_fuse() { suspend "$fuse"; }
stick=freeze

say "named at 0.3, 0.6, 1.2 s, ..., and when it ends; the metrics go on"
start server "$mnt/frozen" slow-request=0.3 metrics="$dir/aiodisk.prom"
requests 1 write 8192 4096 0
wait_for 10 named "write of 4096 bytes at 8192 for 1.[2-9] s: waiting for the storage"
sample() { sed -n "s/^aiodisk_$1 //p" "$dir/aiodisk.prom"; }
older() { [ "$(sample 'oldest_request_seconds{export=""}' | cut -d. -f1)" -ge "$1" ]; }
wait_for 10 older 2
before=$(sample updated_seconds)
later() { [ "$(sample updated_seconds)" != "$before" ]; }
wait_for 10 later
[ "$(sample 'requests_in_flight{export=""}')" = 1 ] || fail "not one request in flight"
lines=$(grep -c "slow request: " "$log")
((lines == 3 || lines == 4)) || fail_with "$log" "named $lines times within about 3 s"
all_end
[ "$(grep -c "slow request ended" "$log")" = 1 ] || fail_with "$log" "not one end"

say "writes into the page cache take turns"
start server "$mnt/frozen" slow-request=0.3
requests 4 write 0 4096 65536
wait_for 10 named "write .*: waiting for its turn to write into the page cache"
all_end

say "blocks that are read, modified and written; the pool's queue"
start server "$mnt/frozen" slow-request=0.3 cache=none max-threads=1
requests 2 write 100 10 0
requests 2 write 65536 4096 65536
wait_for 10 named "write of 10 bytes at 100 .*: waiting for the range lock"
wait_for 10 named "write of 4096 bytes .*: waiting in the pool's queue"
all_end

say "bounce memory"
start server "$mnt/frozen" slow-request=0.3 cache=none
requests 64 write 100 1000000 1048576
wait_for 10 named "write of 1000000 bytes .*: waiting for bounce memory"
all_end

say "a flush that joins another"
start server "$dir/stopped" slow-request=0.3
stick=stop_fuse
requests 32 flush 0 1 0
wait_for 10 named "flush .*: waiting for the storage"
wait_for 10 named "flush .*: waiting for the sync of another flush"
all_end

stick=freeze
for backend in io_uring libaio; do
    say "a write in the ring: $backend"
    start server "$mnt/frozen" slow-request=0.3 cache=none backend=$backend queue-depth=2
    requests 8 write 0 4096 65536
    wait_for 10 named "write .*: waiting for the storage"
    all_end
done

say "0: never; and what is no number of seconds"
start server "$mnt/frozen" slow-request=0
requests 1 write 0 4096 0
sleep 1
let_go
wait "${clients[0]}"
stop
! grep -q "slow request" "$log" || fail_with "$log" "named although slow-request=0"
for value in -1 10s nan 1e9 0x10 "" 2000000 .; do
    refused "slow-request=$value: not a number of seconds; allowed is 0" \
        "$mnt/frozen" slow-request="$value"
done
