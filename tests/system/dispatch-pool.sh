#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# dispatch=pool sends every request through queue, worker and completion bottom half: counted. And when no thread can be
# created at all, the callers run their requests themselves, until threads can be had again.
. "$(dirname "$0")/../lib/functions.sh"
need_root "a pids cgroup"
make_target file 8M

counted() { # NAME EXPECTED
    [ "$(counter "$1")" = "$2" ] || fail "$1 is $(counter "$1"), expected $2: $(grep counters: "$log")"
}

for cache in default none; do
    say "one aligned read, cache=$cache"
    start one "$target" dispatch=pool cache=$cache -D aiodisk.stats=1
    "$python" -c 'import nbd, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pread(4096, 8192); h.shutdown()' "$uri"
    stop
    for name in submitted enqueued worker_runs completions threads_created; do counted $name 1; done
    for name in helped taken_back stranded_runs stranded_errors cancelled; do counted $name 0; done
done

say "the same with dispatch=auto: the caller helps"
start auto "$target" cache=none -D aiodisk.stats=1
"$python" -c 'import nbd, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pread(4096, 8192); h.shutdown()' "$uri"
stop
counted helped 1
counted enqueued 0

say "a thousand requests at depth 16 with dispatch=pool"
start many "$target" dispatch=pool cache=none -D aiodisk.stats=1
(cd "$dir" && fio --name=m --ioengine=nbd --uri="$uri" --rw=randrw --bs=4k --iodepth=16 --number_ios=1000 --size=8M \
    --output=/dev/null)
stop
for name in helped taken_back stranded_runs; do counted $name 0; done
[ "$(counter enqueued)" = "$(counter submitted)" ] || fail "some were not queued"
[ "$(counter worker_runs)" = "$(counter completions)" ] || fail "some were not completed by the bottom half"

say "no thread to be had: a pids cgroup, after the client has connected"
group=/sys/fs/cgroup/pids/aiodisk-test.$$
[ -d /sys/fs/cgroup/pids ] || group=/sys/fs/cgroup/aiodisk-test.$$
mkdir "$group"
cgroups+=("$group")
start stranded "$target" dispatch=pool cache=none -D aiodisk.stats=1
cat >"$dir/stranded.py" <<'P'
import nbd, os, sys, time
uri, pid, group = sys.argv[1:]
h = nbd.NBD()
h.connect_uri(uri)
# nbdkit's threads have to be there first: main, one for the connection, its 16 workers; and our loop.
end = time.monotonic() + 10
while len(os.listdir(f"/proc/{pid}/task")) < 19:
    assert time.monotonic() < end, "nbdkit did not start its threads"
with open(group + "/cgroup.procs", "w") as f:
    f.write(pid)
threads = len(os.listdir(f"/proc/{pid}/task"))
with open(group + "/pids.max", "w") as f:
    f.write(str(threads))
for i in range(50):
    h.pwrite(bytes([i]) * 4096, i * 4096)
h.flush()
for i in range(50):
    assert h.pread(4096, i * 4096) == bytes([i]) * 4096, i
assert len(os.listdir(f"/proc/{pid}/task")) == threads, "a thread was created after all"
with open(group + "/pids.max", "w") as f:
    f.write("max")
# The retry timer backs off up to 1 s; then workers run them again.
end = time.monotonic() + 10
while len(os.listdir(f"/proc/{pid}/task")) == threads and time.monotonic() < end:
    h.pread(4096, 0)
assert len(os.listdir(f"/proc/{pid}/task")) > threads, "no worker was created once there could be"
for i in range(10):
    h.pread(4096, 0)
h.shutdown()
P
"$python" "$dir/stranded.py" "$uri" "$pid" "$group"
stop
[ "$(counter stranded_runs)" -ge 101 ] || fail "only $(counter stranded_runs) were run by their callers"
[ "$(counter worker_runs)" -ge 1 ] || fail "no worker ran anything once there could be one"
[ "$(counter spawn_failures)" -ge 1 ] || fail "no failed creation was counted"
