#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# An image that grows while clients connect.  A client that connects after the image has grown never
# sees the old size, although another client measured the image before and is slow to store what it
# found.
. "$(dirname "$0")/../lib/functions.sh"
truncate -s 1M "$dir/disk.img"
start server -t 1 "$dir/disk.img" # one thread for each connection
strace -e trace=none true 2>"$dir/err" || skip "strace does not work here: $(cat "$dir/err")"

cat >"$dir/slow.py" <<'P'
# The image is open.  `slow` is held up for 1 s after it has measured the image, and `late` for 2 s
# after it has opened the image.  Without a lock `slow` stores the old size while `late` waits.
import nbd, os, subprocess, sys, time
from servers import wait_until

uri, path, pid, directory = sys.argv[1:]
MiB = 1 << 20
tasks = f"/proc/{pid}/task"


def connect():
    """Returns a handle that has asked for no export yet, and the server's thread for it."""
    before = set(os.listdir(tasks))
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(uri)
    (thread,) = set(os.listdir(tasks)) - before
    return h, thread


def hold_up(thread, expression):
    log = f"{directory}/strace.{thread}"
    with open(log, "w") as f:
        tracer = subprocess.Popen(["strace", "-p", thread, "-e", "trace=close,statx",
                                   "-e", "inject=" + expression], stderr=f)
    wait_until(lambda: "attached" in open(log).read() or tracer.poll() is not None, "strace")
    assert tracer.poll() is None, open(log).read()
    return tracer


def is_held_up(thread):
    """strace holds a thread for longer than a few polls only to delay it."""
    for _ in range(10):
        with open(f"{tasks}/{thread}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] != "t":
                return False
        time.sleep(0.01)
    return True


opener = nbd.NBD()
opener.connect_uri(uri)
slow, slow_thread = connect()
late, late_thread = connect()
# The first statx is that of the disk's key, the second one that of its size.  The first close is
# that of the descriptor that a second client does not need, the second close that of the path.
tracers = [hold_up(slow_thread, "statx:delay_exit=1000000:when=2"),
           hold_up(late_thread, "close:delay_enter=2000000:when=2")]
slow.aio_opt_go()
slow.poll(0)
wait_until(lambda: is_held_up(slow_thread), "the slow client to have measured the image")
os.truncate(path, 2 * MiB)
start = time.monotonic()
late.opt_go()
assert time.monotonic() - start > 2, "the late client was not held up"
assert late.get_size() == 2 * MiB, f"the late client sees {late.get_size()} bytes"
while slow.aio_is_connecting():
    slow.poll(-1)
for h in opener, slow, late:
    h.shutdown()
for tracer in tracers:
    tracer.wait()
P
cat >"$dir/many.py" <<'P'
# Eight threads connect again and again while the image grows.  Each client sees at least the size
# of the moment in which it began to connect, and at most that of the moment in which it was served.
import nbd, os, sys, threading
from servers import wait_until

uri, path = sys.argv[1:]
STEPS, STEP, THREADS = 200, 1 << 16, 8
size = os.path.getsize(path)
ended = False
errors = []
served = [0] * THREADS


def connect(number):
    while not ended and not errors:
        least = size
        h = nbd.NBD()
        h.connect_uri(uri)
        seen, most = h.get_size(), size + STEP
        h.shutdown()
        served[number] += 1
        if not least <= seen <= most:
            errors.append(f"a client saw {seen} bytes, not {least} to {most}")


opener = nbd.NBD()
opener.connect_uri(uri)
threads = [threading.Thread(target=connect, args=[i]) for i in range(THREADS)]
for t in threads:
    t.start()
for _ in range(STEPS):
    os.truncate(path, size + STEP)
    size += STEP
    before = sum(served)
    wait_until(lambda: sum(served) > before + 1 or errors, "two clients")
ended = True
for t in threads:
    t.join()
assert not errors, errors[0]
assert min(served) > 0, served
h = nbd.NBD()
h.connect_uri(uri)
assert h.get_size() == size, f"in the end a client sees {h.get_size()} of {size} bytes"
print(f"{sum(served)} clients")
P

say "one client is held up between the measurement and the store of the size"
"$python" "$dir/slow.py" "$uri" "$dir/disk.img" "$(cat "$pid_file")" "$dir" ||
    fail_with "$log" "slow.py failed"
say "many clients"
"$python" "$dir/many.py" "$uri" "$dir/disk.img" || fail_with "$log" "many.py failed"
stop
