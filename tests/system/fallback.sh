#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Where the kernel refuses a ring or a part of it, backend=auto serves, a named backend is an error
# that gives the reason, and --dump-plugin lists the backends that work.  The obstacles are real: a
# seccomp filter, a limit of descriptors, a limit of locked memory.  Where the kernel permits the
# ring, strace shows that the ring carries the data.
. "$(dirname "$0")/../lib/functions.sh"
: "${AIODISK_DENY:?is not set: run the test through meson test, or set it to deny-syscalls}"

truncate -s 16M "$dir/disk.img"
cat >"$dir/use.py" <<'P'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
data = os.urandom(1 << 20)
for offset in (0, 5 << 20, (9 << 20) + 512):
    h.pwrite(data, offset)
    assert h.pread(len(data), offset) == data
h.zero(4096, 0)
h.trim(65536, 65536)
h.pwrite(data, 1 << 20, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(4096, 0) == bytes(4096)
assert h.pread(len(data), 1 << 20) == data
h.shutdown()
P
use() { "$python" "$dir/use.py" "$uri"; }

EPERM=1 EAGAIN=11 ENOMEM=12 ENOSYS=38

# serves WHAT PARAMETERS...: ${nbdkit[@]} starts with PARAMETERS, and a client can use the disk.
serves() {
    say "$1"
    shift
    start server "$dir/disk.img" "$@"
    use
    stop
}

# refuses WHAT PATTERN PARAMETERS...: ${nbdkit[@]} ends with status 1 and a line that matches
# PATTERN.
refuses() {
    local what=$1 pattern=$2 status=0
    shift 2
    say "$what"
    timeout 20 "${nbdkit[@]}" -f -U "$dir/refused.sock" "$plugin" "$dir/disk.img" "$@" \
        2>"$dir/refused.log" || status=$?
    [ $status = 1 ] || fail_with "$dir/refused.log" "$what: status $status instead of 1"
    grep -q "$pattern" "$dir/refused.log" ||
        fail_with "$dir/refused.log" "$what: no line with '$pattern'"
}

# lists BACKENDS: --dump-plugin of ${nbdkit[@]} lists BACKENDS, in this order.
lists() {
    local got
    got=$("${nbdkit[@]}" --dump-plugin "$plugin" | sed -n 's/^aiodisk_backends=//p')
    [ "$got" = "$1" ] || fail "--dump-plugin lists '$got' instead of '$1'"
}

nbdkit=(nbdkit)
lists "threads io_uring libaio"
say "the log names the backend and the reason, and warns of libaio without O_DIRECT"
start auto "$dir/disk.img"
stop
grep -q "debug: backend threads (auto: it measured fastest" "$log" ||
    fail_with "$log" "no line gives the backend that auto chose and the reason"
start libaio "$dir/disk.img" backend=libaio
stop
grep -q "debug: backend libaio (as named by backend=)" "$log" ||
    fail_with "$log" "no line gives the backend that was named"
grep -q "error: backend=libaio is asynchronous only with cache=none" "$log" ||
    fail_with "$log" "no warning that libaio carries no reads and writes"
start libaio "$dir/disk.img" backend=libaio cache=none
stop
! grep -q "asynchronous only" "$log" || fail_with "$log" "a warning although cache=none"

for cache in default none; do
    for error in $EPERM $ENOSYS $ENOMEM $EAGAIN; do
        nbdkit=("$AIODISK_DENY" $error io_uring_setup -- nbdkit)
        lists "threads libaio"
        serves "io_uring_setup fails with $error: auto, cache=$cache" cache=$cache
        refuses "io_uring_setup fails with $error: io_uring, cache=$cache" \
            "backend=io_uring does not work here" backend=io_uring cache=$cache
        nbdkit=("$AIODISK_DENY" $error io_setup -- nbdkit)
        lists "threads io_uring"
        serves "io_setup fails with $error: auto, cache=$cache" cache=$cache
        refuses "io_setup fails with $error: libaio, cache=$cache" \
            "backend=libaio does not work here" backend=libaio cache=$cache
    done
    nbdkit=("$AIODISK_DENY" $ENOSYS io_uring_setup io_setup -- nbdkit)
    lists "threads"
    serves "neither ring: auto, cache=$cache" cache=$cache
    # The kernel creates the ring and then refuses its use: the read with which a backend is opened
    # fails.
    nbdkit=("$AIODISK_DENY" $EPERM io_getevents io_pgetevents -- nbdkit)
    lists "threads io_uring"
    refuses "io_getevents denied, cache=$cache" \
        "backend=libaio does not work here: Operation not permitted" backend=libaio cache=$cache
    nbdkit=("$AIODISK_DENY" $EPERM io_uring_enter -- nbdkit)
    refuses "io_uring_enter denied, cache=$cache" \
        "backend=io_uring does not work here" backend=io_uring cache=$cache
    nbdkit=("$AIODISK_DENY" $ENOSYS pwritev2 preadv2 -- nbdkit)
    serves "neither RWF_NOWAIT nor RWF_DSYNC, cache=$cache" cache=$cache
    # Old container engines answer EPERM to system calls that they do not know.
    nbdkit=("$AIODISK_DENY" $EPERM pwritev2 preadv2 statx openat2 -- nbdkit)
    serves "pwritev2, preadv2, statx and openat2 denied, cache=$cache" cache=$cache
    nbdkit=("$AIODISK_DENY" 95 fallocate -- nbdkit)
    serves "no fallocate, cache=$cache" cache=$cache
done

# A container may refuse files in memory that could be executed (sysctl vm.memfd_noexec, Linux 6.3).
if [ "$(id -u)" = 0 ] && [ -e /proc/sys/vm/memfd_noexec ]; then
    nbdkit=(unshare --pid --fork --kill-child=SIGTERM
        sh -c 'echo 2 >/proc/sys/vm/memfd_noexec && exec nbdkit "$@"' nbdkit)
    lists "threads io_uring libaio"
fi

say "descriptors run out while the ring is created"
found=
for limit in 5 6 7 8 9 10 11 12 13 14 15 16; do
    nbdkit=(prlimit --nofile=$limit nbdkit)
    status=0
    timeout 20 "${nbdkit[@]}" -f -U "$dir/few.sock" --run true "$plugin" "$dir/disk.img" \
        backend=io_uring 2>"$dir/few.log" || status=$?
    [ $status -le 1 ] || fail_with "$dir/few.log" "with $limit descriptors: status $status"
    if grep -q "Too many open files" "$dir/few.log"; then found=$limit; fi
done
[ -n "$found" ] || fail "no limit of descriptors led to EMFILE"

if [ "$(id -u)" = 0 ]; then
    chmod 755 "$dir"
    chmod 666 "$dir/disk.img"
    cp "$plugin" "$dir/plugin.so"
    mkdir "$dir/nobody"
    chmod 777 "$dir/nobody"
fi
# as_nobody MEMLOCK-BYTES BACKEND: an unprivileged user serves and uses the disk.
as_nobody() {
    local socket=$dir/nobody/$2-$1.sock
    timeout 60 setpriv --reuid=nobody --regid=nogroup --clear-groups \
        prlimit --memlock="$1" nbdkit -f -U "$socket" "$dir/plugin.so" "$dir/disk.img" \
        backend="$2" cache=none \
        --run "$python $dir/use.py 'nbd+unix:///?socket=$socket'"
}
if [ "$(id -u)" = 0 ]; then
    for backend in io_uring libaio auto; do
        say "nobody may lock 64 KiB of memory: $backend"
        as_nobody 65536 $backend || fail "not served"
    done
    for backend in libaio auto; do
        say "nobody may lock no memory: $backend"
        as_nobody 0 $backend || fail "not served"
    done
    say "nobody may lock no memory: io_uring"
    ! as_nobody 0 io_uring 2>"$dir/memlock.log" ||
        fail "served, although the kernel charges the memory of the ring"
    grep -q "backend=io_uring does not work here: Cannot allocate memory" "$dir/memlock.log" ||
        fail_with "$dir/memlock.log" "no line names the reason"
fi

# traced BACKEND SYSCALL: the backend carries the data by SYSCALL and not by blocking calls.
traced() {
    say "strace: backend=$1 carries its data by $2"
    nbdkit=(strace -f -qq -o "$dir/trace"
        -e trace="$2,pread64,preadv,preadv2,pwrite64,pwritev,pwritev2" nbdkit)
    start traced "$dir/disk.img" backend="$1" cache=none
    "$python" - "$uri" <<'P'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(100):
    h.pwrite(os.urandom(4096), i * 4096)
    h.pread(4096, i * 4096)
h.shutdown()
P
    kill -TERM "$(cat "$dir/traced.pid")"
    wait "$pid" || fail "nbdkit did not end with status 0 under strace"
    [ "$(grep -c "$2(" "$dir/trace")" -ge 200 ] ||
        fail "fewer than 200 calls of $2 for 200 requests"
    # A few blocking calls carry no data of the client: those of the dynamic loader, and the read
    # that checks the alignment when the image is opened.
    grep -E 'p(read|write)(64|v2?)\(' "$dir/trace" >"$dir/blocking" || true
    [ "$(wc -l <"$dir/blocking")" -lt 20 ] ||
        fail_with "$dir/blocking" "blocking calls carried data"
}
traced io_uring io_uring_enter
traced libaio io_submit
