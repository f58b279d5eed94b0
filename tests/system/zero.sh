#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Zero, fast zero and trim change exactly their bytes, compared with a model: around 200 MiB, at
# each kind of edge, and with 4 GiB - 1 bytes.  The test counts allocated blocks: a thin image stays
# thin, and a zero without may_trim leaves no hole.
#
# zero.sh ext4|xfs|btrfs|tmpfs|loop PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
shift

cat >"$dir/zero.py" <<'P'
import errno, nbd, os, sys
uri, path, kind, cache = sys.argv[1:]
MiB = 1 << 20
NO_HOLE, FAST, FUA = nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FUA
h = nbd.NBD()
h.connect_uri(uri)
size = h.get_size()
pattern = bytes(range(1, 252)) * 4178  # no zero byte, and no power of two as its period
is_file = not kind.startswith("loop")

def allocated():
    h.flush()
    return os.stat(path).st_blocks * 512

def fill(start, end):
    for at in range(start, end, MiB):
        h.pwrite(pattern[:min(MiB, end - at)], at)

def expect_pattern(start, end, from_):
    """Bytes [start, end) are the bytes that fill(from_, ...) wrote."""
    for at in range(start, end, MiB):
        length = min(MiB, end - at)
        first = (at - from_) % MiB
        want = (pattern[:MiB] * 2)[first:first + length]
        assert h.pread(length, at) == want, f"{kind}: data at {at} changed"

def expect_zeros(start, end):
    for at in range(start, end, 4 * MiB):
        length = min(4 * MiB, end - at)
        assert h.pread(length, at) == bytes(length), f"{kind}: not zero near {at}"

# 200 MiB at an unaligned offset, with data before, inside and after the range.
start, length = 7 * MiB + 1001, 200 * MiB
end = start + length
for flags in (0, NO_HOLE | FUA):
    fill(5 * MiB, 9 * MiB)
    fill(70 * MiB, 72 * MiB)
    fill(205 * MiB, 209 * MiB)
    before = allocated()
    h.zero(length, start, flags)
    expect_pattern(5 * MiB, start, 5 * MiB)
    expect_zeros(start, end)
    expect_pattern(end, 209 * MiB, 205 * MiB)
    if is_file:
        # NBD's flag NO_HOLE reaches the plugin as "without may_trim".
        after = allocated()
        if flags & NO_HOLE:
            assert after >= length, \
                f"{kind}: {after} bytes are allocated after a zero of {length} without may_trim"
            h.trim(length, start)  # thin again
        else:
            assert after <= before, f"{kind}: a thin image grew from {before} to {after}"
            assert after < 8 * MiB, f"{kind}: {after} bytes are still allocated"
print(kind, "zero: exact")

# A zero without may_trim allocates holes, whole or in part, and they stay allocated.
if is_file:
    for at, count in ((20 * MiB, 3 * MiB), (30 * MiB + 511, 100001), (40 * MiB + 4096, 4096),
                      (41 * MiB, 1)):
        before = allocated()
        h.zero(count, at, NO_HOLE)
        after = allocated()
        # The count includes ext4's blocks for the extent tree, whose number may fall.
        slack = 8192 if count > 65536 else 0
        assert after - before >= count - slack, f"{kind}: {after - before} allocated for {count}"
        h.zero(count, at, NO_HOLE)
        assert allocated() >= after, f"{kind}: a second zero deallocated blocks"

# Small zeros at every kind of edge.
fill(0, MiB)
model = bytearray(pattern[:MiB])
for at, count in ((0, 1), (511, 2), (512, 512), (4095, 4098), (8192, 4096), (12289, 4095),
                  (20000, 1), (65536, 65536), (MiB - 1, 1), (MiB - 5000, 5000)):
    for flags in (0, NO_HOLE):
        model[at:at + count] = pattern[:count]
        h.pwrite(pattern[:count], at)
        h.zero(count, at, flags)
        model[at:at + count] = bytes(count)
        assert h.pread(MiB, 0) == model, f"{kind}: zero of {count} at {at}, flags {flags}"
print(kind, "zero at the edges: exact")

# The last bytes of the disk; the size of a file is no multiple of a sector.
tail = 3 * 4096 + 99
h.pwrite(pattern[:tail], size - tail)
h.zero(5000, size - 5000)
assert h.pread(tail, size - tail) == pattern[:tail - 5000] + bytes(5000)
h.pwrite(pattern[:tail], size - tail)
h.zero(5000, size - 5000, NO_HOLE)
assert h.pread(tail, size - tail) == pattern[:tail - 5000] + bytes(5000)

# A fast zero succeeds, or fails with EOPNOTSUPP and changes nothing.
results = {}
for name, at, count, flags in (("aligned", 2 * MiB, MiB, 0),
                               ("aligned, no hole", 2 * MiB, MiB, NO_HOLE),
                               ("unaligned", 2 * MiB + 1, 5000, 0),
                               ("unaligned, no hole", 2 * MiB + 1, 5000, NO_HOLE)):
    fill(2 * MiB, 3 * MiB)
    model = bytearray(pattern[:MiB])
    try:
        h.zero(count, at, FAST | flags)
        model[at - 2 * MiB:at - 2 * MiB + count] = bytes(count)
        results[name] = True
    except nbd.Error as error:
        assert error.errnum == errno.EOPNOTSUPP, error
        results[name] = False
    assert h.pread(MiB, 2 * MiB) == model, f"{kind}: fast zero, {name}"
print(kind, "fast zero:", results)
# On a loop device only PUNCH_HOLE is fast; the other calls make the kernel write zeros.
assert results["aligned"], kind
assert results["aligned, no hole"] == is_file, kind
# In a file, the page cache zeroes partial blocks itself, so that a fast zero of them may succeed.
if cache == "none" or not is_file:
    assert not results["unaligned"] and not results["unaligned, no hole"], kind

# A trim deallocates blocks and changes nothing else.
fill(50 * MiB, 60 * MiB)
before = allocated()
h.trim(8 * MiB, 51 * MiB + 17)
expect_pattern(50 * MiB, 51 * MiB + 17, 50 * MiB)
expect_pattern(59 * MiB + 17, 60 * MiB, 50 * MiB)
if is_file:
    assert before - allocated() >= 7 * MiB, \
        f"{kind}: a trim of 8 MiB deallocated {before - allocated()} bytes"
print(kind, "trim: exact")

# 4 GiB - 1 bytes, if the disk is large enough; the bytes before and after do not change.
big = (1 << 32) - 1
if size > big + 20 * MiB:
    fill(10 * MiB, 11 * MiB)
    h.pwrite(b"x" * 8192, 11 * MiB + big)
    before = allocated()
    h.zero(big, 11 * MiB)
    h.trim(big, 11 * MiB)
    expect_pattern(10 * MiB, 11 * MiB, 10 * MiB)
    assert h.pread(8192, 11 * MiB + big) == b"x" * 8192
    expect_zeros(11 * MiB, 80 * MiB)
    assert h.pread(4096, 11 * MiB + big - 4096) == bytes(4096)
    assert allocated() <= before + 65536, f"{kind}: the image grew by {allocated() - before} bytes"
    print(kind, "4 GiB - 1: exact")
h.shutdown()
P

case $kind in
loop)
    truncate -s 220M "$dir/loop.img"
    make_loop "$dir/loop.img" --direct-io=on
    size=$((220 << 20)) target=$loop
    ;;
*)
    make_fs "$kind" 600M
    size=$(((5 << 30) + 777)) target=$mnt/disk.img
    truncate -s $size "$target"
    ;;
esac
cache=default
for parameter; do [ "$parameter" != cache=none ] || cache=none; done
start zero "$target" "$@"
"$python" "$dir/zero.py" "$uri" "$target" "$kind" $cache
stop
[ "$kind" = loop ] || [ "$(stat -c %s "$target")" = $size ] ||
    fail "the size of the image has changed"
