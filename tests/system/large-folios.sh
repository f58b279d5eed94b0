#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A small write through the page cache splits the large folio that it goes into, on ext4 and on a
# block device; a large write, and a read, leave the folio as it is.  The kernel shows which pages
# belong to a large folio.
. "$(dirname "$0")/../lib/functions.sh"
need_root "loop devices, mounts and /proc/kpageflags"

cat >"$dir/folios.py" <<'P'
"""Writes and reads at several places, and prints for each place whether a large folio holds it."""
import mmap, os, struct, sys
import nbd

uri, path = sys.argv[1:]
PAGE, REGION, SIZE = 4096, 2 << 20, 16 << 20
HEAD, TAIL = 1 << 15, 1 << 16  # KPF_COMPOUND_HEAD and _TAIL, linux/kernel-page-flags.h
fd = os.open(path, os.O_RDONLY)


def is_large(offset):
    """Whether the page of the file at this offset belongs to a large folio."""
    with mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset) as memory:
        memory[0]  # the page is now mapped
        for line in open("/proc/self/maps"):
            if path in line and int(line.split()[2], 16) == offset:
                address = int(line.split("-")[0], 16)
        with open("/proc/self/pagemap", "rb") as pagemap, open("/proc/kpageflags", "rb") as flags:
            pagemap.seek(address // PAGE * 8)
            frame = struct.unpack("Q", pagemap.read(8))[0] & ((1 << 55) - 1)
            flags.seek(frame * 8)
            return bool(struct.unpack("Q", flags.read(8))[0] & (HEAD | TAIL))


h = nbd.NBD()
h.connect_uri(uri)
for at in range(0, SIZE, 4 << 20):  # in large folios, and clean
    h.pwrite(bytes(4 << 20), at)
h.flush()
for name, act in (("read", lambda at: h.pread(PAGE, at)),
                  ("large-write", lambda at: h.pwrite(bytes([1]) * (1 << 20), at - at % REGION)),
                  ("write", lambda at: h.pwrite(b"small" * 100, at + 10)),
                  ("fua-write", lambda at: h.pwrite(b"small", at, nbd.CMD_FLAG_FUA))):
    at = {"read": 0, "large-write": 1, "write": 2, "fua-write": 3}[name] * REGION + 16 * PAGE
    before = is_large(at)
    act(at)
    print(name, *("large" if large else "single" for large in (before, is_large(at))))
P

# check TARGET PARAMETERS...: serves the target and compares with what is expected.
check() {
    start folios "$@"
    got=$("$python" "$dir/folios.py" "$uri" "$1") || fail_with "$log" "folios.py failed"
    stop
    [ "$got" = "$expected" ] || fail "$*: got '$got', expected '$expected'"
}

make_fs ext4 64M -b 4096
truncate -s 16M "$dir/device.img"
make_loop "$dir/device.img"
split='read large large
large-write large large
write large single
fua-write large single'
for backend in $(working_backends); do
    rm -f "$mnt/disk.img" # its folios are split
    truncate -s 16M "$mnt/disk.img"
    for target in "$mnt/disk.img" "$loop"; do
        expected=$split check "$target" cache=default backend="$backend"
    done
done
