#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdcopy in and out gives the same bytes, and qemu-img agrees.  copy.sh file|loop PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
shift

# Data, holes and zeros, and for files a size that is no multiple of anything.
size=$((48 << 20))
[ "$kind" = loop ] || size=$((size + 1234))
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
[ "$(checksum "$dir/copy")" = "$(checksum "$dir/source")" ] || fail "nbdcopy out differs from what was copied in"
say "qemu-img compare"
qemu-img compare -f raw -F raw "$dir/source" "$uri"
say "qemu-img convert out"
qemu-img convert -f raw -O raw "$uri" "$dir/converted"
# qemu-img rounds sizes up to 512 bytes.
cmp -n $size "$dir/converted" "$dir/source" || fail "qemu-img convert out differs"
say "qemu-img convert in"
if [ "$kind" = loop ]; then
    dd if=/dev/urandom of="$dir/source" bs=1M count=3 seek=7 conv=notrunc status=none
    qemu-img convert -n -f raw -O raw "$dir/source" "$uri"
fi
stop
cmp "$dir/source" "$target" || fail "the image itself differs"
