#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# unaligned.py on a file whose size is no multiple of a sector, or on a loop device.
#
# unaligned.sh file|loop [--full] PARAMETERS...
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
[ "$(stat -Lc %s "$dir/target.img")" = $size ] || fail "the size of the image has changed"
