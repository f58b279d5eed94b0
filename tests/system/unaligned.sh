#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# unaligned.py on a file or RBD image whose size is no multiple of a sector, or on a loop device.
#
# unaligned.sh file|loop|rbd [--full] PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
shift
full=()
[ "$1" != --full ] || { full=(--full); shift; }
size=$((4 << 20))
[ "$kind" = loop ] || size=$((size + 777))
make_target "$kind" $size
start server "$target" "$@"
"$python" "$here/unaligned.py" "$uri" $size "${full[@]}"
stop
if [ "$kind" = rbd ]; then
    found=$(rbd info --format json rbd/target | jq .size)
else
    found=$(stat -Lc %s "$dir/target.img")
fi
[ "$found" = $size ] || fail "the size of the image has changed"
