#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The units that the plugin finds are those of the disk, also where statx(2) says nothing about
# direct I/O (before Linux 6.1), and with pages of 64 KiB.
#
# AIODISK_GEOMETRY names the program unit/geometry.c, which opens an image and prints its units.
. "$(dirname "$0")/../lib/functions.sh"
: "${AIODISK_GEOMETRY:?is not set: run the test through meson test}"
need_root "loop devices and mounts"

# expect PATTERN ARGUMENTS...: what the program prints contains the words of PATTERN in this order.
expect() {
    local pattern=$1 found
    shift
    found=$("$AIODISK_GEOMETRY" "$@") || fail "test-geometry $*"
    # shellcheck disable=SC2254 # a pattern
    case $found in *${pattern// /*}*) ;; *) fail "$*: $found, expected: $pattern" ;; esac
}

# make_ext4 SECTOR: ext4 on a loop device with this logical block; sets $mnt.
make_ext4() {
    mnt=$(mktemp -d "$dir/mnt.XXXX")
    truncate -s 64M "$mnt.fs"
    make_loop "$mnt.fs" --sector-size "$1"
    mkfs.ext4 -q -b 4096 "$loop"
    mount "$loop" "$mnt"
    mounts+=("$mnt")
}

# A direct read of a hole succeeds with any unit, so it proves none.
for sector in 512 4096; do
    say "a disk of $sector-byte blocks, without STATX_DIOALIGN"
    make_ext4 $sector
    truncate -s 8M "$mnt/sparse"
    fallocate -l 8M "$mnt/preallocated"
    head -c 1M /dev/urandom >"$mnt/data"
    truncate -s 8M "$mnt/few-bytes"
    head -c 100 /dev/urandom | dd of="$mnt/few-bytes" bs=1 seek=2M conv=notrunc status=none
    truncate -s 8M "$mnt/late-data"
    head -c 64K /dev/urandom |
        dd of="$mnt/late-data" bs=64K seek=$((4 << 20)) oflag=seek_bytes conv=notrunc status=none
    : >"$mnt/empty"
    sync -f "$mnt"
    for file in sparse preallocated empty; do
        expect "direct=1 align=4096 " "$mnt/$file" none 4096 no-dioalign
    done
    for file in data few-bytes late-data; do
        expect "direct=1 align=$sector " "$mnt/$file" none 4096 no-dioalign
    done
    expect "direct=1 align=4096 " "$mnt/sparse" none 4096 no-dioalign no-holes
    expect "direct=1 align=$sector " "$mnt/data" none 4096 no-dioalign no-holes
    expect "direct=1 align=$sector " "$mnt/sparse" none 4096
    expect "direct=1 align=4096 write=direct" "$mnt/sparse" none 4096 no-dioalign write=5000
    expect "direct=1 align=$sector sector=$sector" "$loop" none 4096 no-dioalign
    expect "align=1 granule=65536 sector=$sector" "$loop" default 65536
done
# Only a device of larger sectors may have a tail, which goes through the page cache.
expect "align=4096 granule=65536 " "$loop" none 65536

# What lies in the last page of a file that ends inside a block goes through the page cache, for
# the page is written back as a whole.
say "pages of 64 KiB"
make_ext4 512
truncate -s $(((128 << 10) + 4096 + 600)) "$mnt/disk"
expect "align=512 granule=4096 write=direct" "$mnt/disk" none 4096 write=$((128 << 10))
expect "align=512 granule=4096 write=cached" "$mnt/disk" none 4096 write=$(((128 << 10) + 4096))
expect "align=512 granule=65536 write=cached" "$mnt/disk" none 65536 write=$((128 << 10))
expect "align=512 granule=65536 write=direct" "$mnt/disk" none 65536 write=$(((128 << 10) - 512))
expect "align=1 granule=1 write=cached" "$mnt/disk" default 65536 write=0
expect "align=512 granule=512 " "$loop" none 65536
