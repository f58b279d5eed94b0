#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdcopy into the image and out of it gives the same bytes, and qemu-img reads the same bytes.
#
# copy.sh file|loop|rbd PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
shift

# The source has data, holes and zeros.  For files its size is no multiple of a sector.
size=$((48 << 20))
[ "$kind" != file ] || size=$((size + 1234))
dd if=/dev/urandom of="$dir/source" bs=1M count=20 status=none
truncate -s $size "$dir/source"
dd if=/dev/urandom of="$dir/source" bs=64k count=100 seek=500 conv=notrunc status=none
dd if=/dev/zero of="$dir/source" bs=64k count=20 seek=650 conv=notrunc status=none
truncate -s $size "$dir/source"
make_target "$kind" $size

start server "$target" "$@"
say "nbdcopy in, flush, out"
nbdcopy --flush "$dir/source" "$uri"
nbdcopy "$uri" "$dir/copy"
[ "$(checksum "$dir/copy")" = "$(checksum "$dir/source")" ] ||
    fail "the copy differs from the source"
say "qemu-img compare"
qemu-img compare -f raw -F raw "$dir/source" "$uri"
say "qemu-img convert out"
qemu-img convert -f raw -O raw "$uri" "$dir/converted"
# qemu-img rounds sizes up to 512 bytes.
cmp -n $size "$dir/converted" "$dir/source" || fail "the converted image differs from the source"
say "qemu-img convert in"
if [ "$kind" != file ]; then
    dd if=/dev/urandom of="$dir/source" bs=1M count=3 seek=7 conv=notrunc status=none
    qemu-img convert -n -f raw -O raw "$dir/source" "$uri"
fi
stop
if [ "$kind" = rbd ]; then
    say "the holes of the source are holes in the image"
    rbd export --no-progress rbd/target "$dir/image"
    rbd diff --format json rbd/target | jq -e '[.[].length] | add < 36e6' >/dev/null ||
        fail "the image has no holes"
    target=$dir/image
fi
cmp "$dir/source" "$target" || fail "the image itself differs from the source"
