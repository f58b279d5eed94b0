#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The plugin and libnbdkit-corked.so are built as Debian builds its packages: read-only relocations,
# no executable stack, no text relocations, stack protector and glibc's checked functions.  While
# the plugin serves, every descriptor that it opened is close-on-exec, and the log holds no byte of
# a disk.
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
for parameters in "cache=default" "cache=none backend=io_uring" "cache=none backend=libaio"; do
    truncate -s 4M "$dir/disk.img"
    # shellcheck disable=SC2086
    start server "$dir/disk.img" metrics="$dir/metrics.prom" $parameters
    mark=SECRET-$RANDOM-BYTES
    "$python" - "$uri" "$(cat "$pid_file")" "$mark" <<'P' || fail "see above"
import glob, nbd, os, sys
uri, pid, mark = sys.argv[1:]
h = nbd.NBD()
h.connect_uri(uri)
h.pwrite(mark.encode() * 100, 12345)
assert h.pread(len(mark), 12345).decode() == mark
h.flush()
h.zero(4096, 8192)
try:
    h.set_strict_mode(0)
    h.pread(4096, 1 << 40)
except nbd.Error:
    pass
for entry in glob.glob(f"/proc/{pid}/fdinfo/*"):
    number = entry.rsplit("/", 1)[1]
    target = os.readlink(f"/proc/{pid}/fd/{number}")
    with open(entry, encoding="ascii") as info:
        flags = int(next(l for l in info if l.startswith("flags:")).split()[1], 8)
    # nbdkit's own: the standard streams.
    if int(number) > 2 and not flags & os.O_CLOEXEC:
        sys.exit(f"descriptor {number} ({target}) is inherited by children")
h.shutdown()
P
    stop
    ! grep -q "$mark" "$log" || fail_with "$log" "the log holds bytes of the disk"
done
