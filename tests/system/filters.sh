#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdkit's filters on top of the plugin.  Each filter gets the same random requests; the answers and
# the final image are compared with a model.  Each filter's own purpose is checked as well.
#
# filters.sh [PARAMETERS...]
. "$(dirname "$0")/../lib/functions.sh"
size=$(((4 << 20) + 1000))
image=$dir/disk.img

cat >"$dir/exercise.py" <<'P'
import nbd, os, random, sys

uri, image, first, mode, *checks = sys.argv[1:]
first = int(first)  # offset in the image of the first byte that is served
rng = random.Random(7)
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
size = h.get_size()
assert size > 1 << 20, size
unit = h.get_block_size(nbd.SIZE_MINIMUM) or 1
largest = min(h.get_block_size(nbd.SIZE_MAXIMUM) or 1 << 20, 1 << 20)
model = bytearray(h.pread(largest, 0))
while len(model) < size:
    model += h.pread(min(largest, size - len(model)), len(model))
with open(image, "rb") as f:
    before = f.read()
assert model == before[first:first + size], "the export differs from the image"


def pick():
    offset = rng.choice([0, 1, 511, 4096, 65536, rng.randrange(size), rng.randrange(size)])
    offset = offset // unit * unit
    count = rng.choice([1, 512, 4096, 65536, rng.randrange(1, 200000),
                        rng.randrange(1, largest + 1)])
    return max(min(count, size - offset) // unit, 1) * unit, offset


fua = nbd.CMD_FLAG_FUA if h.can_fua() else 0
for i in range(150):
    count, offset = pick()
    if offset + count > size:
        continue
    flags = rng.choice([0, 0, 0, fua])
    op = rng.choice(["write", "write", "write", "zero", "trim", "cache", "flush", "read", "status"])
    if op == "write":
        data = rng.randbytes(count)
        h.pwrite(data, offset, flags)
        model[offset:offset + count] = data
    elif op == "zero" and h.can_zero():
        h.zero(count, offset, flags | rng.choice([0, nbd.CMD_FLAG_NO_HOLE]))
        model[offset:offset + count] = bytes(count)
    elif op == "trim" and h.can_trim():
        h.trim(count, offset, flags)
        # After a trim each byte is zero or unchanged.
        now = b"".join(h.pread(min(largest, count - at), offset + at)
                       for at in range(0, count, largest))
        assert all(new in (0, old) for new, old in zip(now, model[offset:offset + count])), \
            f"trim of {count} at {offset}"
        model[offset:offset + count] = now
    elif op == "cache" and h.can_cache():
        h.cache(count, offset)
    elif op == "flush" and h.can_flush():
        h.flush()
    elif op == "status" and h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION):
        found = []
        h.block_status(count, offset, lambda context, at, entries, error: found.extend(entries))
        assert sum(found[::2]) > 0
        at = offset
        for length, kind in zip(found[::2], found[1::2]):
            end = min(at + length, size)
            assert not kind & nbd.STATE_ZERO or not any(model[at:end]), \
                f"block status reports {length} bytes at {at} as zeros, but they are not"
            at = end
    else:
        assert h.pread(count, offset) == model[offset:offset + count], \
            f"read of {count} at {offset}, after {i} requests"
for at in range(0, size, largest):
    count = min(largest, size - at)
    assert h.pread(count, at) == model[at:at + count], f"the whole image, at {at}"
if h.can_flush():
    h.flush()
for check in checks:
    assert eval(check), f"not true: {check}"
h.shutdown()
with open(image, "rb") as f:
    after = f.read()
want = before if mode == "overlay" else before[:first] + bytes(model) + before[first + size:]
assert after == want, "the image afterwards differs from the model"
P

# exercise MODE CHECK...: sends the requests to the selected server.  MODE is overlay if the filter
# keeps writes from the image, or direct.  Each CHECK is a Python expression that must be true.
exercise() { "$python" "$dir/exercise.py" "$uri" "$image" "${first:-0}" "$@"; }

# on "FILTERS AND THEIR PARAMETERS" MODE CHECK...: starts nbdkit on a fresh image and exercises it.
n=0
on() {
    local arguments=$1
    shift
    say "$arguments"
    head -c $size /dev/urandom >"$image"
    # shellcheck disable=SC2086 # several words
    start "filter$((++n))" $arguments "$image" "${parameters[@]}"
    exercise "$@"
    stop
}
parameters=("$@")

on "--filter=cow" overlay 'not h.is_read_only()'
on "--filter=cow cow-on-read=true cow-block-size=128k" overlay
on "--filter=blocksize minblock=4k maxdata=64k maxlen=1M" direct
on "--filter=blocksize maxdata=512" direct
on "--filter=fua" direct 'not h.can_fua()' # fuamode=none is the default; 1.32 refuses its name
on "--filter=fua fuamode=emulate" direct 'h.can_fua()'
on "--filter=fua fuamode=native" direct 'h.can_fua()'
on "--filter=fua fuamode=force" direct 'h.can_fua()'
on "--filter=nozero" direct 'not h.can_zero()'
on "--filter=nozero zeromode=emulate" direct 'h.can_zero()'
on "--filter=nozero zeromode=notrim" direct 'h.can_zero()'
on "--filter=nozero zeromode=plugin fastzeromode=none" direct 'h.can_zero()' 'not h.can_fast_zero()'
on "--filter=multi-conn multi-conn-mode=emulate" direct 'h.can_multi_conn()'
on "--filter=multi-conn multi-conn-mode=disable" direct 'not h.can_multi_conn()'
on "--filter=rate rate=4G" direct
on "--filter=readahead" direct
on "--filter=noparallel" direct
first=5000 on "--filter=offset offset=5000 range=2000000" direct 'h.get_size() == 2000000'

say "--filter=noextents: the export is all data, where the plugin reports a hole"
: >"$image"
truncate -s $size "$image"
start extents "$image" "${parameters[@]}"
[ "$(nbdinfo --map "$uri" | awk '{print $3}')" = 3 ] ||
    fail "no hole without the filter: $(nbdinfo --map "$uri")"
stop
start noextents --filter=noextents "$image" "${parameters[@]}"
[ "$(nbdinfo --map "$uri" | awk '{print $3}')" = 0 ] ||
    fail "not all data: $(nbdinfo --map "$uri")"
exercise direct
stop

say "--filter=stats counts every kind of request"
start stats --filter=stats statsfile="$dir/stats" "$image" "${parameters[@]}"
exercise direct
stop
for what in read write zero trim flush cache extents; do
    grep -q "^$what: [1-9][0-9]* ops" "$dir/stats" ||
        fail_with "$dir/stats" "the statistics have no $what"
done

say "--filter=partition: the second of two partitions; the first does not change"
head -c $size /dev/urandom >"$image"
"$python" - "$image" <<'P'
import struct, sys
entry = struct.Struct("<B3sB3sII")
with open(sys.argv[1], "r+b") as f:
    f.seek(446)
    f.write(entry.pack(0, bytes(3), 0x83, bytes(3), 63, 1000))
    f.write(entry.pack(0, bytes(3), 0x83, bytes(3), 1063, 5000))
    f.write(bytes(32) + b"\x55\xaa")
P
start partition --filter=partition partition=2 "$image" "${parameters[@]}"
first=$((1063 * 512)) exercise direct 'h.get_size() == 5000 * 512'
stop

say "--filter=exportname: the filter's own list, and its default export"
mkdir "$dir/exports"
ln "$image" "$dir/exports/disk"
start exportname --filter=exportname exportname-list=explicit exportname=disk default-export=disk \
    dir="$dir/exports" "${parameters[@]}"
[ "$(nbdinfo --list --json "$uri" | jq -r '.exports[]."export-name"')" = disk ] ||
    fail "the list is not 'disk'"
exercise direct
stop

say "--filter=retry: nbdkit reopens the plugin after a failed read, between two writes"
touch "$dir/inject"
start retry --filter=retry --filter=error retry-delay=1 error-pread-rate=1 \
    error-file="$dir/inject" "$image" "${parameters[@]}"
"$python" - "$uri" "$dir/inject" <<'P'
import nbd, os, sys, threading
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"before", 1000)
threading.Timer(0.5, lambda: os.unlink(sys.argv[2])).start()
assert h.pread(6, 1000) == b"before"
h.pwrite(b"behind", 1000)
assert h.pread(6, 1000) == b"behind"
h.shutdown()
P
grep -q 'retry 1:' "$log" || fail "no request was retried"
exercise direct
stop

say "--filter=rate: the copy takes longer"
head -c $size /dev/urandom >"$image"
# The rate is in bits per second; the filter allows a burst of two seconds.
start rate --filter=rate rate=12M "$image" "${parameters[@]}"
before=$EPOCHREALTIME
nbdcopy "$uri" null:
took=$(milliseconds_since "$before")
[ "$took" -ge 500 ] || fail "4.2 MB at 1.5 MB/s, after a burst of 3 MB, took $took ms"
stop

# The model does not fit this filter, over any plugin: in nbdkit 1.32 the filter leaves trimmed
# blocks in its cache, and reports the extents of the image below.
say "--filter=cache takes cache=; direct=on asks for O_DIRECT below the filter"
for mode in writeback writethrough; do
    head -c $size /dev/urandom >"$image"
    start "cache-$mode" --filter=cache "$image" direct=on cache=$mode
    qemu-io -f raw -c "write -P 9 1000 200k" -c flush -c "read -P 9 1000 200k" "$uri" \
        >"$dir/out" || fail_with "$dir/out" "qemu-io failed"
    cmp <(tail -c +1001 "$image" | head -c 200K) <(head -c 200K /dev/zero | tr '\0' '\11') ||
        fail "cache=$mode: the image does not have the data"
    grep -qE 'read-write, O_DIRECT|cache=none is not possible' "$log" ||
        fail_with "$log" "direct=on did not ask for O_DIRECT"
    stop
done

say "no filter takes a parameter of the plugin, except for cache="
all=()
for filter in "$(nbdkit --dump-config | sed -n 's/^filterdir=//p')"/nbdkit-*-filter.so; do
    filter=${filter##*/nbdkit-}
    all+=(--filter="${filter%-filter.so}")
done
for wrong in file= dir= directory= fd=x dirfd=x cache=x direct=x backend=x dispatch=x \
    max-threads=x min-threads=x queue-depth=x locking=x symlinks=x fadvise=x discard=x \
    detect-zeroes=x; do
    selected=("${all[@]}")
    [[ $wrong != cache* ]] || mapfile -t selected < <(printf '%s\n' "${all[@]}" | grep -vw cache)
    ! nbdkit -f -U - "${selected[@]}" "$plugin" "$wrong" 2>"$dir/err" || fail "accepted: $wrong"
    grep -qE "error: $wrong: (the name is empty|unknown value|not a number)" "$dir/err" ||
        fail_with "$dir/err" "$wrong did not reach the plugin"
done

say "several filters"
filters="--filter=cow --filter=blocksize --filter=fua --filter=readahead"
on "$filters minblock=512 fuamode=emulate" overlay
filters="--filter=nozero --filter=multi-conn --filter=noextents --filter=fua"
on "$filters fuamode=force multi-conn-mode=emulate" direct
