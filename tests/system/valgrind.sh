#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Under memcheck no error and no leak, through open, I/O, disconnect and SIGTERM, and through SIGTERM with a client
# still connected, when nbdkit does not call .close.  And no thread of ours is left when the plugin is unloaded.
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
    # nbdkit answers what is in flight or refuses it, and then ends without .close for us.
    parts = [nbd.Buffer(4096) for _ in range(64)]
    for i, part in enumerate(parts):
        h.aio_pread(part, 512 * i)
    os.kill(pid, signal.SIGTERM)
    # Connected until the server ends.
    try:
        while True:
            h.pread(1, 0)
    except nbd.Error:
        pass
else:
    h.shutdown()
P

# memcheck does not see what a ring has read into nbdkit's buffers (libaio too fetches completions without a system call), and
# takes it for uninitialised when it is sent.
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
    grep -q 'ERROR SUMMARY: 0 errors' "$dir/$1.valgrind" || { cat "$dir/$1.valgrind"; fail "memcheck found errors ($1)"; }
    # nbdkit 1.32 itself forgets a connection that lives at its end: only leaks with a frame of ours count.
    ! awk -v RS='==[0-9]+== \n' '/lost in loss record/ && /\/(plugin|backends|pool)\/[a-z]+\.c:|aiodisk-plugin/' \
        "$dir/$1.valgrind" | grep . || fail "memcheck found a leak ($1)"
}

for backend in threads io_uring libaio; do
    for way in leave stay; do
        say "backend=$backend, client: $way"
        nbdkit=(valgrind --leak-check=full --errors-for-leak-kinds=none --fullpath-after= --keep-debuginfo=yes
            --log-file="$dir/$backend-$way.valgrind" nbdkit)
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

say "no thread is left at dlclose"
unset nbdkit
start threads "$target" dispatch=pool
"$python" "$dir/client.py" "$uri" "$pid" leave
ls /proc/"$pid"/task/*/comm >/dev/null
grep -lq aiodisk-loop /proc/"$pid"/task/*/comm || fail "the loop thread was expected by the name aiodisk-loop"
address=$(grep -m1 "$(realpath "$plugin")" /proc/"$pid"/maps | cut -d- -f1 | sed 's/^0*//')
strace -f -qq -e trace=exit,munmap,exit_group -o "$dir/strace" -p "$pid" &
tracer=$!
pids+=("$tracer")
traced() { ! grep -q '^TracerPid:\s*0$' /proc/"$pid"/task/*/status; }
wait_for 10 traced
ours=$(grep -l aiodisk /proc/"$pid"/task/*/comm | sed 's,.*/task/\([0-9]*\)/.*,\1,')
[ "$(echo "$ours" | wc -l)" -ge 2 ] || fail "only these threads are ours: $ours; expected the loop and a worker"
stop
wait "$tracer" || true
# dlclose unmaps the plugin.
gone=$(grep -n "munmap(0x$address," "$dir/strace" | cut -d: -f1)
[ -n "$gone" ] || { tail -40 "$dir/strace"; fail "the plugin was never unmapped"; }
for tid in $ours; do
    line=$(grep -n "^$tid .*exit(" "$dir/strace" | head -1 | cut -d: -f1)
    [ -n "$line" ] && [ "$line" -lt "$gone" ] || { tail -40 "$dir/strace"; fail "thread $tid outlived the plugin"; }
done
