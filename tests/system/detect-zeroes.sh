#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# detect-zeroes=: a write of zeros is carried out as a zero with `on`, as one that gives space back
# with `unmap`, and as a write with `off`.  All bytes are as written, at every alignment.  A write
# with FUA is synced in every case.
#
# detect-zeroes.sh ext4|xfs|tmpfs|loop PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
shift
size=$((16 << 20))
[ "$kind" = loop ] || size=$((size + 777))

cat >"$dir/detect.py" <<'P'
import nbd, os, random, sys

uri, path, blocks_of, mode = sys.argv[1:]
MiB, FUA = 1 << 20, nbd.CMD_FLAG_FUA
rng = random.Random(3)
h = nbd.NBD()
h.connect_uri(uri)
size = h.get_size()
model = bytearray(size)


def allocated():
    h.flush()
    return os.stat(blocks_of).st_blocks * 512


def write(data, at, flags=0):
    h.pwrite(data, at, flags)
    model[at:at + len(data)] = data


def check(what):
    found = b"".join(h.pread(min(MiB, size - at), at) for at in range(0, size, MiB))
    assert found == model, what


# Zeros over data: the space stays, or is given back.
for at in range(0, size, MiB):
    write(rng.randbytes(min(MiB, size - at)), at)
before = allocated()
for at in range(2 * MiB, 6 * MiB, 65536):
    write(bytes(65536), at)
write(bytes(2 * MiB + 1001), 7 * MiB + 511)
after = allocated()
check("zeros over data")
if mode == "unmap":
    assert after <= before - 5 * MiB, f"of {before} bytes {after} are still allocated"
else:
    assert after >= before, f"of {before} bytes only {after} are still allocated"

# Zeros over holes: with off and on the range is allocated, with unmap it stays a hole.
h.trim(4 * MiB, 10 * MiB)
model[10 * MiB:14 * MiB] = bytes(4 * MiB)
check("trim")
before = allocated()
for at in range(10 * MiB, 14 * MiB, 65536):
    write(bytes(65536), at)
after = allocated()
if mode == "unmap":
    assert after <= before, f"the image grew from {before} to {after}"
else:
    assert after >= before + 4 * MiB - 65536, f"{before} bytes became only {after}"

# Zeros, and data in which one byte is not zero, at every kind of edge, over random data.
edges = [0, 1, 511, 512, 4095, 4096, 4097, 8191, 65536, MiB - 1, MiB + 4096]
lengths = [1, 511, 512, 513, 4095, 4096, 4097, 8192, 12289, 65536, 200001]
for at in range(0, 2 * MiB, MiB):
    write(rng.randbytes(MiB), at)
for at in edges:
    for length in lengths:
        write(bytes(length), at, rng.choice([0, FUA]))
        data = bytearray(length)
        data[rng.choice([0, length // 2, length - 1])] = rng.randrange(1, 256)
        write(data, at + rng.randrange(3) * 4096, rng.choice([0, FUA]))
    check(f"edges at {at}")
    write(rng.randbytes(MiB), rng.randrange(MiB))
for length in lengths:
    write(bytes(length), size - length)
check("the end of the disk")

# Anything in any order.
for i in range(300):
    at = rng.choice([0, 4096 * rng.randrange(512), rng.randrange(2 * MiB)])
    length = rng.choice([1, 512, 4096, 8192, rng.randrange(1, 30000)])
    write(rng.choice([bytes(length), rng.randbytes(length)]), at, rng.choice([0, 0, FUA]))
check("random writes")
h.flush()
h.shutdown()
with open(path, "rb") as f:
    assert f.read() == model, "the disk itself has other bytes"
P
cat >"$dir/fua.py" <<'P'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(10):
    h.pwrite(bytes(65536), i * 65536, nbd.CMD_FLAG_FUA)
h.shutdown()
P

case $kind in
loop)
    truncate -s $size "$dir/loop.img"
    make_loop "$dir/loop.img" --direct-io=on
    target=$loop blocks_of=$dir/loop.img
    ;;
*)
    make_fs "$kind" 400M
    target=$mnt/disk.img blocks_of=$mnt/disk.img
    ;;
esac
for mode in off on unmap; do
    say "detect-zeroes=$mode"
    : >"$blocks_of"
    truncate -s $size "$blocks_of"
    start "$mode" "$target" "$@" detect-zeroes=$mode
    "$python" "$dir/detect.py" "$uri" "$target" "$blocks_of" $mode ||
        fail_with "$log" "detect.py failed"
    stop
    [ "$(stat -Lc %s "$blocks_of")" = $size ] || fail "the size of the image has changed"
done

# The kernel makes the calls of a ring, and strace does not see them.
[[ " $* " != *backend=io_uring* ]] || exit 0
strace -e trace=none true 2>"$dir/err" || skip "strace does not work here: $(cat "$dir/err")"
for mode in off on unmap; do
    say "detect-zeroes=$mode with FUA"
    nbdkit=(strace -f -qq -o "$dir/trace" -e trace=fallocate,fdatasync,pwritev2 nbdkit)
    start "fua-$mode" "$target" "$@" detect-zeroes=$mode
    "$python" "$dir/fua.py" "$uri"
    stop
    zeros=$(grep -c 'fallocate(.*ZERO_RANGE' "$dir/trace" || true)
    holes=$(grep -c 'fallocate(.*PUNCH_HOLE' "$dir/trace" || true)
    syncs=$(grep -cE 'fdatasync\(|RWF_DSYNC' "$dir/trace" || true)
    [ "$syncs" -ge 10 ] || fail_with "$dir/trace" "10 FUA writes made $syncs syncs"
    case $mode in
    off) [ $((zeros + holes)) = 0 ] ;;
    on) [ $((zeros + holes)) -ge 10 ] && { [ "$kind" = tmpfs ] || [ "$holes" = 0 ]; } ;;
    unmap) [ "$zeros" = 0 ] && [ "$holes" -ge 10 ] ;;
    esac || fail_with "$dir/trace" "$zeros calls to zero and $holes calls to punch"
done
