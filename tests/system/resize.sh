#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images that shrink or grow while they are served, and images of every odd size.  A read past the
# new end fails and never returns zeros, and no request makes a file larger again.
#
# resize.sh file|loop|odd
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
cd "$dir"

cat >resize.py <<'P'
import errno, nbd, os, subprocess, sys

uri, path, device = sys.argv[1:]  # the device is the file's loop device, or empty
OLD, NEW, LARGE = (2 << 20) + 777, (1 << 20) + 300, (3 << 20) + 5
if device:
    OLD, NEW, LARGE = 2 << 20, 1 << 20, 3 << 20
data = os.urandom(LARGE)


def resize(size):
    os.truncate(path, size)
    if device:
        subprocess.run(["losetup", "-c", device], check=True)
        assert size_now() == size


def size_now():
    with open(device or path, "rb") as f:
        return f.seek(0, os.SEEK_END)


def content(count, offset):
    with open(device or path, "rb") as f:
        return os.pread(f.fileno(), count, offset)


def connect():
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h


def fails(what, errors, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum in errors, f"{what}: {error}"
        assert size_now() == now, f"{what}: the size is {size_now()} after the failure"
        return
    sys.exit(f"{what} succeeded")


READ, WRITE = [errno.EIO], [errno.ENOSPC, errno.EIO]
with open(device or path, "r+b") as f:
    f.write(data[:OLD])
    os.fsync(f.fileno())
old, new = connect(), None
assert old.get_size() == OLD
# With cache=default this read brings the second half into the page cache.
assert old.pread(OLD // 2, OLD // 2) == data[OLD // 2:OLD // 2 * 2]
old.pwrite(data[OLD - 5:OLD], OLD - 5)
old.flush()

now = NEW
resize(NEW)
for h, who in (old, "the old client"), (None, "the old client beside a new one"):
    if h is None:
        new = connect()
        assert new.get_size() == NEW, f"a new client sees {new.get_size()} bytes"
        # A failed request across the new end may have changed the bytes before that end.
        assert new.pread(NEW, 0) == content(NEW, 0), "a new client reads other data"
        h = old
    for count, offset in [(1, NEW), (10, NEW), (512, NEW + 212), (4096, 1 << 20),
                          (4096, (1 << 20) + 4096), (20, NEW - 10), (65536, NEW - 10000),
                          (NEW, 10000), (OLD, 0), (1, OLD - 1), (100000, OLD - 100000),
                          (512, OLD - 1024)]:
        what = f"{who}: {count} bytes at {offset}"
        if offset + count <= NEW:
            continue
        fails("read, " + what, READ, h.pread, count, offset)
        fails("write, " + what, WRITE, h.pwrite, b"W" * count, offset)
        fails("FUA write, " + what, WRITE, h.pwrite, b"W" * count, offset, nbd.CMD_FLAG_FUA)
        for flags in 0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA:
            fails(f"zero {flags}, " + what, WRITE, h.zero, count, offset, flags)
        fails("fast zero, " + what, WRITE + [errno.EOPNOTSUPP], h.zero, count, offset,
              nbd.CMD_FLAG_FAST_ZERO)
        # A trim is a hint: what is gone already needs no trim.
        for flags in 0, nbd.CMD_FLAG_FUA:
            h.trim(count, offset, flags)
        h.cache(count, offset)
        assert size_now() == now, f"{what}: the size is {size_now()}"
        found = []
        try:
            h.block_status(count, offset, lambda context, at, entries, error:
                           found.extend(zip(entries[::2], entries[1::2])))
        except nbd.Error:
            found = []
        at = offset
        for length, kind in found:
            # A client would copy such an extent as zeros without a read.
            assert at + length <= NEW or not kind & nbd.STATE_ZERO, \
                f"{who}: block status reports {length} bytes at {at} as zeros"
            at += length
    for count, offset in (1000, 0), (4096, 512), (100, NEW - 100), (NEW - 1, 1):
        assert h.pread(count, offset) == content(count, offset), \
            f"{who}: read of {count} at {offset}"
    # A trim across the new end discards the part that exists, and nothing before it.
    at = NEW - (300 << 10)
    h.pwrite(data[:NEW - (4 << 10)], 0)
    h.flush()
    before = os.stat(path).st_blocks
    h.trim(OLD - at, at)
    assert content(at, 0) == data[:at], f"{who}: the trim changed bytes before its start"
    h.flush()
    trimmed = (before - os.stat(path).st_blocks) * 512
    assert trimmed >= 256 << 10, f"{who}: a trim across the end discarded {trimmed} bytes"
    # A write that ends at the new end, in the middle of a block: it succeeds once the plugin knows
    # the new size, and may fail before.
    try:
        h.pwrite(data[:200], NEW - 200)
        assert content(200, NEW - 200) == data[:200]
    except nbd.Error as error:
        assert error.errnum in WRITE and new is None, error
    assert size_now() == now, f"{who}: the size is {size_now()} after a write that ends at {NEW}"
    h.pwrite(data[:70000], 0)
    h.flush()
    assert content(70000, 0) == data[:70000]
new.shutdown()
print("smaller")

now = OLD
resize(OLD)
old.pwrite(data[:OLD], 0)
old.flush()
assert old.pread(OLD, 0) == data[:OLD] == content(OLD, 0), "as large as before"
now = LARGE
resize(LARGE)
with open(device or path, "r+b") as f:
    os.pwrite(f.fileno(), data[OLD:], OLD)
    os.fsync(f.fileno())
for who in "the old client", "the old client beside a new one":
    assert old.get_size() == OLD
    h = connect() if who.endswith("new one") else None
    # The old client's last block is now in the middle of the file.  No request of that client may
    # change the bytes after the client's end.
    for offset in OLD - 1, OLD - 10, OLD - 777, OLD - 5000, OLD - 70000:
        old.pwrite(data[:OLD - offset], offset)
        assert content(LARGE - OLD, OLD) == data[OLD:], f"{who}: write at {offset}"
        assert old.pread(OLD - offset, offset) == data[:OLD - offset]
        for flags in 0, nbd.CMD_FLAG_NO_HOLE:
            old.zero(OLD - offset, offset, flags)
            assert old.pread(OLD - offset, offset) == bytes(OLD - offset)
            assert content(LARGE - OLD, OLD) == data[OLD:], f"{who}: zero at {offset}"
        old.trim(OLD - offset, offset)
        old.flush()
        assert content(LARGE - OLD, OLD) == data[OLD:], f"{who}: trim at {offset}"
    old.set_strict_mode(0)
    fails(f"{who}: read past the end", [errno.EINVAL, errno.ENOSPC], old.pread, 512, OLD)
    fails(f"{who}: write past the end", [errno.EINVAL, errno.ENOSPC], old.pwrite, bytes(512), OLD)
    if h:
        assert h.get_size() == LARGE, f"a new client sees {h.get_size()} bytes"
        assert h.pread(LARGE - OLD, OLD) == data[OLD:]
        h.pwrite(data[:LARGE - OLD], OLD)
        h.flush()
        assert content(LARGE - OLD, OLD) == data[:LARGE - OLD]
        h.shutdown()
old.shutdown()
print("larger")
P

all_ways default none

resize_file() {
    local way
    for way in "${ways[@]}"; do
        say "a file, $way"
        : >disk.img
        truncate -s $(((2 << 20) + 777)) disk.img
        # shellcheck disable=SC2086 # several words
        start file disk.img $way
        "$python" resize.py "$uri" disk.img ''
        stop
    done
}

resize_loop() {
    local way
    for way in "${ways[@]}"; do
        say "a loop device, $way"
        : >disk.img
        truncate -s 2M disk.img
        make_loop "$dir/disk.img" --direct-io=on
        # shellcheck disable=SC2086 # several words
        start loop "$loop" $way
        "$python" resize.py "$uri" disk.img "$loop"
        stop
        drop_loop "$loop"
    done
}

resize_odd() {
    local cache size
    for cache in default none; do
        say "odd sizes, cache=$cache"
        for size in 0 1 511 512 513 4095 4096 4097 65535 1048575 1048577 1234567; do
            head -c $size /dev/urandom >odd.img
            start odd odd.img cache=$cache
            nbdcopy "$uri" copy.img
            cmp copy.img odd.img || fail "nbdcopy out of $size bytes"
            head -c $size /dev/urandom >source.img
            nbdcopy --flush source.img "$uri"
            cmp source.img odd.img || fail "nbdcopy in of $size bytes"
            # QEMU rounds the size up to 512 bytes and appends zeros.
            qemu-img convert -f raw -O raw "$uri" converted.img
            truncate -s %512 source.img
            cmp converted.img source.img || fail "qemu-img convert out of $size bytes"
            [ "$(nbdinfo --size "$uri")" = $size ] ||
                fail "the export's size is $(nbdinfo --size "$uri"), not $size"
            stop
            [ "$(stat -c %s odd.img)" = $size ] ||
                fail "the file's size is $(stat -c %s odd.img), not $size"
        done
    done
}

case $kind in
file | loop | odd) "resize_$kind" ;;
*) fail "usage: resize.sh file|loop|odd" ;;
esac
