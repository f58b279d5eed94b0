#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The plugin and libnbdkit-corked.so are built as Debian builds its packages: read-only relocations,
# no executable stack, no text relocations, stack protector and glibc's checked functions.  While
# the plugin serves, every descriptor is opened close-on-exec, also one that is closed at once, and
# the log holds no byte of a disk: with -v and the debug flags, and when requests fail.
. "$(dirname "$0")/../lib/functions.sh"
corked=$AIODISK_BUILD/plugin/libnbdkit-corked.so

for library in "$plugin" "$corked"; do
    say "${library##*/}"
    readelf -lW "$library" >"$dir/segments"
    readelf -dW "$library" >"$dir/dynamic"
    readelf -sW --dyn-syms "$library" >"$dir/symbols"
    grep -q GNU_RELRO "$dir/segments" || fail "no read-only relocations"
    grep -Eq 'FLAGS.*(BIND_NOW|NOW)' "$dir/dynamic" || fail "relocations stay writable"
    ! grep -q 'GNU_STACK.*RWE' "$dir/segments" || fail "executable stack"
    ! grep -q TEXTREL "$dir/dynamic" || fail "text relocations"
    ! grep -Eq 'RPATH|RUNPATH' "$dir/dynamic" || fail "a search path for libraries"
    grep -q __stack_chk_fail "$dir/symbols" || fail "no stack protector"
done
readelf -sW --dyn-syms "$plugin" >"$dir/symbols"
grep -q '__[a-z]*_chk@' "$dir/symbols" || fail "no checked functions of glibc"
exported=$(nm -D --defined-only "$plugin" | awk '{ print $3 }' | sort | tr '\n' ' ')
[ "$exported" = "aiodisk_debug_stats plugin_init " ] || fail "the plugin exports: $exported"

say "descriptors are close-on-exec, and the log holds no byte of the disk"
# The calls that make a descriptor.
calls=open,openat,openat2,creat,eventfd,eventfd2,epoll_create,epoll_create1,socket,memfd_create
calls+=,accept,accept4,dup,dup2,dup3,fcntl,pipe,pipe2,timerfd_create,signalfd4
for parameters in "cache=default" "cache=none" "dispatch=pool" "backend=io_uring" \
    "cache=none backend=io_uring" "cache=none backend=libaio"; do
    truncate -s 4M "$dir/disk.img"
    # strace also sees the descriptors that are open for a moment only.
    nbdkit=(strace -D -f -qq --seccomp-bpf -o "$dir/trace" -e "trace=$calls"
        nbdkit -D aiodisk.stats=1 -D nbdkit.backend.controlpath=1 -D nbdkit.backend.datapath=1)
    # shellcheck disable=SC2086
    start server "$dir/disk.img" metrics="$dir/metrics.prom" $parameters
    mark=SECRET-$RANDOM-BYTES
    "$python" - "$uri" "$(cat "$pid_file")" "$mark" "$dir/disk.img" <<'P' || fail "see above"
import glob, nbd, os, sys
uri, pid, mark, path = sys.argv[1:]
data = mark.encode() * 1000
h = nbd.NBD()
h.connect_uri(uri)
h.set_strict_mode(0)


def fails(call, *args):
    try:
        call(*args)
    except nbd.Error:
        return
    sys.exit(f"{call.__name__} succeeded")


h.pwrite(data, 12345)
assert h.pread(len(mark), 12345).decode() == mark
h.flush()
h.pwrite(data, 100_000, nbd.CMD_FLAG_FUA)
h.zero(4096, 8192)
h.cache(1 << 20, 0)
fails(h.pread, 4096, 1 << 40)
# Load, while the descriptors are looked at.
cookies = []
for i in range(64):
    buffer = nbd.Buffer.from_bytearray(bytearray(data))
    cookies.append(h.aio_pwrite(buffer, 200_000 + i * len(data)))
    cookies.append(h.aio_pread(nbd.Buffer(len(data)), 200_000 + i * len(data)))
kinds = set()
# What nbdkit and this program have from the shell of the test.
inherited = {n: os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
             if os.path.islink(f"/proc/self/fd/{n}")}
while cookies:
    h.poll(10)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
    for entry in glob.glob(f"/proc/{pid}/fdinfo/*"):
        number = entry.rsplit("/", 1)[1]
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            with open(entry, encoding="ascii") as info:
                flags = int(next(l for l in info if l.startswith("flags:")).split()[1], 8)
        except (FileNotFoundError, StopIteration):
            continue
        kinds.add(target.split(":")[-1])
        # nbdkit's own: the standard streams.
        if int(number) > 2 and not flags & os.O_CLOEXEC and inherited.get(number) != target:
            sys.exit(f"descriptor {number} ({target}) is inherited by children")
assert {path, "[eventfd]", "[eventpoll]"} <= kinds, kinds
# Requests that fail.
os.truncate(path, 1 << 20)
fails(h.pread, 5000, 2 << 20)
fails(h.pwrite, data, 2 << 20)
fails(h.pwrite, data, 2 << 20, nbd.CMD_FLAG_FUA)
h.shutdown()
P
    stop
    grep -q "write of .* bytes at 2097152" "$log" || fail_with "$log" "no failed write in the log"
    ! grep -q "SECRET" "$log" || fail_with "$log" "the log holds bytes of the disk"
    # The standard streams are nbdkit's; glibc opens "comm" for pthread_setname_np(3).
    grep -vE 'CLOEXEC|F_[GS]ET|F_OFD|dup2\(|"/dev/null"|/comm", O_RDWR| = -1 |resumed|\+\+\+|---' \
        "$dir/trace" >"$dir/inherited" || true
    [ ! -s "$dir/inherited" ] || fail_with "$dir/inherited" "opened without close-on-exec"
    grep -q eventfd2 "$dir/trace" || fail "strace saw no eventfd"
done
