#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Through the page cache of a block device only whole pages are zeroed and discarded by the kernel's
# calls, and zeros are written into the rest: before Linux 6.15 a write beside a zeroed part of a
# page may undo the zero.  With O_DIRECT the calls get every whole sector.  strace shows the calls.
. "$(dirname "$0")/../lib/functions.sh"
command -v strace >/dev/null || skip "strace is not installed"
page=$(getconf PAGESIZE)

cat >"$dir/zeros.py" <<'P'
import nbd, sys
uri, page = sys.argv[1], int(sys.argv[2])
h = nbd.NBD()
h.connect_uri(uri)
size = 64 * page
model = bytearray(bytes(range(1, 252)) * (size // 251 + 1))[:size]
h.pwrite(bytes(model), 0)
for flags in 0, nbd.CMD_FLAG_NO_HOLE:
    for count, at in ((512, 512), (1024, page - 512), (page, 2 * page + 512), (page, 5 * page),
                      (3 * page, 7 * page - 512), (2 * page + 1, 11 * page), (5, 20 * page - 2),
                      (4 * page + 1024, 30 * page - 512)):
        at += 32 * page if flags else 0
        count = min(count, size - at)
        h.zero(count, at, flags)
        model[at:at + count] = bytes(count)
        assert h.pread(size, 0) == model, f"zero of {count} at {at}, flags {flags}"
h.flush()
h.trim(2 * page, 40 * page + 512)
assert h.pread(40 * page + 512, 0) == model[:40 * page + 512]
assert h.pread(21 * page, 42 * page + 512) == model[42 * page + 512:63 * page + 512]
h.shutdown()
P

# ranges: "OFFSET LENGTH" of each call that zeroes or discards.
ranges() {
    sed -nE 's/.*fallocate\([0-9]+, [^,]*, ([0-9]+), ([0-9]+)\).*/\1 \2/p
        s/.*ioctl\([0-9]+, BLK(ZEROOUT|DISCARD), \[([0-9]+), ([0-9]+)\]\).*/\2 \3/p' "$dir/trace"
}

# Without fallocate(2) the calls are BLKZEROOUT and BLKDISCARD.
for inject in "" "-einject=fallocate:error=EOPNOTSUPP"; do
    for cache in default none; do
        say "cache=$cache $inject"
        make_target loop 8M
        # shellcheck disable=SC2086 # one word or none
        nbdkit=(strace -f -qq -o "$dir/trace" -e trace=fallocate,ioctl $inject nbdkit)
        start "zeros" "$target" cache=$cache
        "$python" "$dir/zeros.py" "$uri" "$page"
        stop
        ranges >"$dir/ranges"
        [ "$(wc -l <"$dir/ranges")" -ge 8 ] || fail_with "$dir/trace" "too few calls"
        parts=$(awk -v page="$page" '$1 % page || $2 % page' "$dir/ranges" | wc -l)
        case $cache in
        default) [ "$parts" = 0 ] || fail_with "$dir/ranges" "$parts calls on parts of pages" ;;
        none) [ "$parts" != 0 ] || fail_with "$dir/ranges" "no call on whole sectors" ;;
        esac
    done
done
