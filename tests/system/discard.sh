#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# discard=ignore: a trim changes no byte, a zero that may trim leaves zeros and no hole, not even
# for a moment, and the image keeps every block.  With discard=unmap, the default, the same requests
# give the space back, which shows that they would.
#
# discard.sh ext4|xfs|btrfs|tmpfs|loop PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
shift

cat >"$dir/discard.py" <<'P'
import errno, nbd, os, sys

uri, blocks_of, expected = sys.argv[1:]
MiB = 1 << 20
FUA, FAST, NO_HOLE = nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_NO_HOLE
h = nbd.NBD()
h.connect_uri(uri)
assert h.can_trim() and h.can_zero()
size = h.get_size()
model = bytearray(os.urandom(size))
for at in range(0, size, MiB):
    h.pwrite(model[at:at + MiB], at)


def allocated():
    h.flush()
    return os.stat(blocks_of).st_blocks * 512


def check(what):
    assert b"".join(h.pread(MiB, at) for at in range(0, size, MiB)) == model, what
    now = allocated()
    kept = now >= before
    assert kept == (expected == "ignore"), f"{what}: {before} bytes allocated, then {now}"


before = allocated()
assert before >= size, f"only {before} of {size} bytes are allocated"
zeros = [(4 * MiB, 2 * MiB), (100001, 8 * MiB + 511), (4096, 12 * MiB), (1, 14 * MiB)]
if expected == "ignore":
    for flags in 0, FUA:
        h.trim(size, 0, flags)
        h.trim(100001, 511, flags)
        check(f"trim, flags {flags}")
    for flags in 0, FUA, FAST, FAST | FUA, NO_HOLE:
        for count, at in zeros:
            h.pwrite(model[:count], at)
            model[at:at + count] = model[:count]
            try:
                h.zero(count, at, flags)
                model[at:at + count] = bytes(count)
            except nbd.Error as error:
                assert flags & FAST and error.errnum == errno.EOPNOTSUPP, error
            check(f"zero of {count} at {at}, flags {flags}")
else:
    for count, at in zeros[:2]:
        h.zero(count, at)
        model[at:at + count] = bytes(count)
    check("zero")
    before = allocated()
    h.trim(size, 0)
    model[:] = bytes(size)
    check("trim")
h.shutdown()
P

case $kind in
loop)
    fallocate -l 16M "$dir/loop.img"
    make_loop "$dir/loop.img" --direct-io=on
    target=$loop blocks_of=$dir/loop.img
    ;;
*)
    make_fs "$kind" 400M
    target=$mnt/disk.img blocks_of=$mnt/disk.img
    fallocate -l 16M "$target"
    ;;
esac
strace -e trace=none true 2>"$dir/err" || skip "strace does not work here: $(cat "$dir/err")"
# server NAME PARAMETERS...: with a record of every fallocate(2) and ioctl(2), unless a ring makes
# these calls.
server() {
    local name=$1
    shift
    nbdkit=(strace -f -qq -o "$dir/trace.$name" -e trace=fallocate,ioctl nbdkit)
    start "$name" "$target" "$@"
    unset nbdkit
}
for words in "" "discard=unmap"; do
    say "${words:-the default}: space is given back"
    fallocate -l 16M "$blocks_of"
    # shellcheck disable=SC2086 # none or one word
    server unmap "$@" $words
    "$python" "$dir/discard.py" "$uri" "$blocks_of" unmap || fail_with "$log" "discard.py failed"
    stop
done
grep -qE 'PUNCH_HOLE|BLKDISCARD' "$dir/trace.unmap" || fail "the record shows no call that unmaps"
say "discard=ignore: every block stays"
fallocate -l 16M "$blocks_of"
server ignore "$@" discard=ignore
"$python" "$dir/discard.py" "$uri" "$blocks_of" ignore || fail_with "$log" "discard.py failed"
stop
! grep -E 'PUNCH_HOLE|BLKDISCARD' "$dir/trace.ignore" || fail "a call unmaps for a moment"
