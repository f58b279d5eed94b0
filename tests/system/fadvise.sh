#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# fadvise= changes how far the kernel reads ahead of a client that reads sequentially: by the
# device's setting with normal, twice as far with sequential, not at all with random.  The page
# cache shows it.
. "$(dirname "$0")/../lib/functions.sh"
need_root "loop devices and mounts"
pages=32 # what the kernel reads ahead, in pages: the test sets it for the loop devices

cat >"$dir/ahead.py" <<'P'
"""Reads 256 pages, one after the other; prints how many pages behind the last one that was read
were in the page cache at most."""
import ctypes, mmap, os, sys
import nbd

uri, path = sys.argv[1:]
PAGE, PAGES, READ = 4096, 1024, 256
fd = os.open(path, os.O_RDONLY)
os.fsync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
memory = mmap.mmap(fd, PAGES * PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc = ctypes.CDLL(None, use_errno=True)


def cached():
    vector = (ctypes.c_ubyte * PAGES)()
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(PAGES * PAGE), vector) == 0
    return [bool(v & 1) for v in vector]


assert not any(cached()), "the page cache is not empty"
h = nbd.NBD()
h.connect_uri(uri)
most = 0
for i in range(READ):
    h.pread(PAGE, i * PAGE)
    now = cached()
    assert now[i]
    most = max(most, sum(now[i + 1:]))
print(most)
P

# reads_ahead TARGET PARAMETERS...: prints what ahead.py prints.
reads_ahead() {
    start ahead "$@"
    "$python" "$dir/ahead.py" "$uri" "$1" || fail_with "$log" "ahead.py failed"
    stop
}

truncate -s 8M "$dir/device.img"
head -c 8M /dev/urandom >"$dir/device.img"
make_loop "$dir/device.img" --direct-io=on
device=$loop
make_fs ext4 32M
for i in "$device" "$loop"; do blockdev --setra $((pages * 8)) "$i"; done
head -c 8M /dev/urandom >"$mnt/disk.img"
for target in "$mnt/disk.img" "$device"; do
    for advice in "" normal random sequential; do
        ahead=$(reads_ahead "$target" ${advice:+"fadvise=$advice"})
        say "$target ${advice:-default}: $ahead pages ahead"
        # The kernel begins to read the next window when a client has begun to read the last one.
        case $advice in
        random) [ "$ahead" = 0 ] || fail "the kernel reads ahead" ;;
        sequential) [ "$ahead" -gt $((2 * pages)) ] || fail "the kernel does not read further" ;;
        *) [ "$ahead" -gt 0 ] && [ "$ahead" -le $((2 * pages)) ] || fail "unexpected" ;;
        esac
    done
done
