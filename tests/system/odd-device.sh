#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A block device of 4096-byte blocks whose size is no multiple of 4096: what cannot be read at its
# end is not served, one line in the log says so, and the disk can be copied.  Where the page cache
# can read the end, all of the device is served; strace makes that answer of the kernel.
. "$(dirname "$0")/../lib/functions.sh"
blocks=$((1 << 20)) size=$(((1 << 20) + 1536))
lines() { grep -c "cannot be read, because they are less than one of the device's blocks" "$log"; }
expect_size() {
    local found
    found=$(nbdinfo --size "$uri")
    [ "$found" = "$1" ] || fail_with "$log" "the size is $found, not $1"
}

for cache in default none; do
    say "cache=$cache"
    head -c $size /dev/urandom >"$dir/disk.img"
    make_loop "$dir/disk.img" --sector-size 4096
    [ "$(blockdev --getsize64 "$loop")" = $size ] || skip "the kernel rounds the size of the device"
    if dd if="$loop" of="$dir/tail" bs=512 skip=$((blocks / 512)) 2>"$dir/dd.log"; then
        readable=yes
    else
        readable=no
    fi

    nbdkit=(nbdkit)
    start odd "$loop" cache=$cache
    served=$size
    [ $readable = yes ] || served=$blocks
    expect_size $served
    nbdcopy "$uri" "$dir/copy.img"
    cmp -n $served "$dir/copy.img" "$dir/disk.img" || fail "nbdcopy out"
    qemu-img convert -f raw -O raw "$uri" "$dir/copy.img"
    cmp -n $served "$dir/copy.img" "$dir/disk.img" || fail "qemu-img convert"
    head -c $served /dev/urandom >"$dir/source.img"
    nbdcopy --flush "$dir/source.img" "$uri"
    nbdcopy "$uri" "$dir/copy.img"
    cmp "$dir/copy.img" "$dir/source.img" || fail "nbdcopy in"
    [ $readable = yes ] || [ "$(lines)" = 1 ] || fail_with "$log" "$(lines) lines in the log"

    # A client is connected meanwhile, so the image stays open.
    hold_client "$uri"
    truncate -s $((blocks * 2)) "$dir/disk.img"
    losetup -c "$loop"
    expect_size $((blocks * 2))
    truncate -s $((blocks + 8192 + 512)) "$dir/disk.img"
    losetup -c "$loop"
    [ $readable = yes ] || expect_size $((blocks + 8192))
    [ $readable = yes ] || [ "$(lines)" = 2 ] || fail_with "$log" "$(lines) lines in the log"
    release_client
    stop

    if [ $readable = no ] && command -v strace >/dev/null; then
        say "cache=$cache, the page cache can read the end"
        nbdkit=(strace -f -qq -o "$dir/trace" -P "$loop" -e trace=pread64
            -e inject=pread64:retval=1 nbdkit)
        start odd "$loop" cache=$cache
        expect_size $((blocks + 8192 + 512))
        stop
        [ "$(lines)" = 0 ] || fail_with "$log" "$(lines) lines in the log"
    fi
    drop_loop "$loop"
done
