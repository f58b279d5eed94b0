#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# dispatch=pool sends every request through the queue, a worker and the completion bottom half: the
# pool's counters prove it.  If no thread can be created, the callers run their own requests until
# thread creation works again.
. "$(dirname "$0")/../lib/functions.sh"
need_root "a pids cgroup"
make_target file 8M

counted() { # NAME EXPECTED
    [ "$(counter "$1")" = "$2" ] ||
        fail "$1 is $(counter "$1"), expected $2: $(grep counters: "$log")"
}
one_read() {
    "$python" - "$uri" <<'P'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(4096, 8192)
h.shutdown()
P
}

for cache in default none; do
    say "one aligned read, cache=$cache"
    start one "$target" dispatch=pool cache=$cache -D aiodisk.stats=1
    one_read
    stop
    for name in submitted enqueued worker_runs completions threads_created; do counted $name 1; done
    for name in helped taken_back stranded_runs stranded_errors cancelled; do counted $name 0; done
done

say "one aligned read with dispatch=auto: the caller runs the request"
start auto "$target" cache=none -D aiodisk.stats=1
one_read
stop
counted helped 1
counted enqueued 0

say "a thousand requests at depth 16 with dispatch=pool"
start many "$target" dispatch=pool cache=none -D aiodisk.stats=1
(cd "$dir" && fio --name=m --ioengine=nbd --uri="$uri" --rw=randrw --bs=4k --iodepth=16 \
    --number_ios=1000 --size=8M --output=/dev/null)
stop
for name in helped taken_back stranded_runs; do counted $name 0; done
[ "$(counter enqueued)" = "$(counter submitted)" ] || fail "some requests were not queued"
[ "$(counter worker_runs)" = "$(counter completions)" ] ||
    fail "the bottom half did not complete every request"

# make_pids_cgroup: makes a cgroup with a pids controller; sets $group.  In cgroup v1 the controller
# has a hierarchy of its own.  In v2 a child has the controller if its parent lists it in
# cgroup.subtree_control.
make_pids_cgroup() {
    local v1 v2
    v1=$(awk '$3 == "cgroup" && $4 ~ /(^|,)pids(,|$)/ { print $2; exit }' /proc/self/mounts)
    v2=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
    if [ -n "$v1" ]; then
        group=$v1/aiodisk-test.$$
    elif [ -n "$v2" ] && grep -qw pids "$v2/cgroup.controllers"; then
        grep -qw pids "$v2/cgroup.subtree_control" || echo +pids >"$v2/cgroup.subtree_control" ||
            skip "the pids controller cannot be enabled in $v2"
        group=$v2/aiodisk-test.$$
    else
        skip "no cgroup hierarchy with a pids controller is mounted"
    fi
    mkdir "$group" 2>/dev/null || skip "$group cannot be made: the cgroup hierarchy is read-only"
    cgroups+=("$group")
    [ -e "$group/pids.max" ] || fail "$group has no pids.max"
}

say "no thread can be created: a pids cgroup limits them after the client has connected"
make_pids_cgroup
start stranded "$target" dispatch=pool cache=none -D aiodisk.stats=1
cat >"$dir/stranded.py" <<'P'
import nbd, os, sys, time
uri, pid, group = sys.argv[1:]
h = nbd.NBD()
h.connect_uri(uri)
# The limit must not stop nbdkit's own threads: the main thread, one for the connection, its 16
# workers; and the plugin's loop thread and observer.
end = time.monotonic() + 10
while len(os.listdir(f"/proc/{pid}/task")) < 20:
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
assert len(os.listdir(f"/proc/{pid}/task")) == threads, "a thread was created in spite of the limit"
with open(group + "/pids.max", "w") as f:
    f.write("max")
# The pool's retry timer backs off up to 1 s; then workers run the requests again.
end = time.monotonic() + 10
while len(os.listdir(f"/proc/{pid}/task")) == threads and time.monotonic() < end:
    h.pread(4096, 0)
assert len(os.listdir(f"/proc/{pid}/task")) > threads, "no worker was created without the limit"
for i in range(10):
    h.pread(4096, 0)
h.shutdown()
P
"$python" "$dir/stranded.py" "$uri" "$pid" "$group"
stop
[ "$(counter stranded_runs)" -ge 101 ] ||
    fail "the callers ran only $(counter stranded_runs) requests themselves"
[ "$(counter worker_runs)" -ge 1 ] || fail "no worker ran a request without the limit"
[ "$(counter spawn_failures)" -ge 1 ] || fail "no failed creation was counted"
