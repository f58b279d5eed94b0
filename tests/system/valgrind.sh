#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# memcheck finds no error and no leak through open, I/O, disconnect and SIGTERM, or through SIGTERM
# with a connected client, when nbdkit 1.32 does not call .close.  No thread of the plugin exists
# when nbdkit unloads the plugin.
. "$(dirname "$0")/../lib/functions.sh"
make_target file 8M

cat >"$dir/client.py" <<'P'
import errno, nbd, os, signal, sys
uri, pid, stay = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "stay"
h = nbd.NBD()
h.connect_uri(uri)
buf = bytes(range(256)) * 40
h.pwrite(buf, 1001)
h.pwrite(buf, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(len(buf), 4096) == buf
h.zero(100000, 4001)
h.zero(100000, 4001, nbd.CMD_FLAG_NO_HOLE)
h.trim(65536, 1 << 20)
h.cache(65536, 0)
h.flush()
assert h.pread(10000, 5000) == bytes(10000)
if stay:
    # nbdkit answers or refuses the requests in flight, and then ends without a call of .close.
    parts = [nbd.Buffer(4096) for _ in range(64)]
    for i, part in enumerate(parts):
        h.aio_pread(part, 512 * i)
    os.kill(pid, signal.SIGTERM)
    # This client stays connected until the server ends.
    try:
        while True:
            h.pread(1, 0)
    except nbd.Error:
        pass
else:
    h.shutdown()
P

# memcheck does not see a ring's reads into nbdkit's buffers, because a completion arrives without a
# system call (also with libaio).  memcheck therefore takes the data that nbdkit sends for
# uninitialised.
cat >"$dir/ring.supp" <<'S'
{
   ring-reads
   Memcheck:Param
   socketcall.sendto(msg)
   ...
   fun:send
   obj:*/nbdkit
   ...
}
S

check_log() {
    grep -q 'ERROR SUMMARY: 0 errors' "$dir/$1.valgrind" ||
        fail_with "$dir/$1.valgrind" "memcheck found errors ($1)"
    # nbdkit 1.32 does not free a connection that is open at its end, so only leaks with a frame of
    # the plugin's sources count.  A thread of nbdkit that gets the cached stack of a joined thread
    # of the plugin also gets its TLS (allocate_dtv), so that memory is not the plugin's.
    local ours='/(plugin|plugin/disk|backends|pool)/[a-z_-]+[.]c:|aiodisk-plugin'
    local leaks='/lost in loss record/ && $0 ~ ours && $0 !~ /allocate_dtv/'
    ! awk -v RS='==[0-9]+== \n' -v ours="$ours" "$leaks" "$dir/$1.valgrind" | grep . ||
        fail "memcheck found a leak ($1)"
}

for backend in $(working_backends); do
    for way in leave stay; do
        say "backend=$backend, client: $way"
        nbdkit=(valgrind --leak-check=full --errors-for-leak-kinds=none --fullpath-after=
            --keep-debuginfo=yes --log-file="$dir/$backend-$way.valgrind" nbdkit)
        [ $backend = threads ] || nbdkit=(valgrind --suppressions="$dir/ring.supp" "${nbdkit[@]:1}")
        start "$backend-$way" "$target" cache=none backend=$backend
        "$python" "$dir/client.py" "$uri" "$pid" $way
        if [ $way = leave ]; then
            stop
        else
            wait "$pid" || fail "nbdkit ended with $?"
        fi
        check_log "$backend-$way"
    done
done

say "no thread of the plugin exists at dlclose"
unset nbdkit
start threads "$target" dispatch=pool
hold_client "$uri" # the threads are those of an open image
"$python" "$dir/client.py" "$uri" "$pid" leave
ls /proc/"$pid"/task/*/comm >/dev/null
grep -lq aiodisk-loop /proc/"$pid"/task/*/comm || fail "no thread has the name aiodisk-loop"
address=$(grep -m1 "$(realpath "$plugin")" /proc/"$pid"/maps | cut -d- -f1 | sed 's/^0*//')
strace -f -qq -e trace=exit,munmap,exit_group -o "$dir/strace" -p "$pid" &
tracer=$!
pids+=("$tracer")
traced() { ! grep -q '^TracerPid:\s*0$' /proc/"$pid"/task/*/status; }
wait_for 10 traced
ours=$(grep -l aiodisk /proc/"$pid"/task/*/comm | sed 's,.*/task/\([0-9]*\)/.*,\1,')
[ "$(echo "$ours" | wc -l)" -ge 2 ] || fail "expected the loop thread and a worker, but only: $ours"
release_client
stop
wait "$tracer" || true
# dlclose unmaps the plugin.
gone=$(grep -n "munmap(0x$address," "$dir/strace" | cut -d: -f1)
[ -n "$gone" ] || fail_with "$dir/strace" "the plugin was never unmapped"
for tid in $ours; do
    line=$(grep -n "^$tid .*exit(" "$dir/strace" | head -1 | cut -d: -f1)
    [ -n "$line" ] && [ "$line" -lt "$gone" ] ||
        fail_with "$dir/strace" "thread $tid ended after the plugin was unmapped"
done
