#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# After a lost write, no flush of the disk ever succeeds again.
#
# lost-writeback.sh [ROUNDS] [BACKENDS...]
#
# The disk is a loop device on a full tmpfs: the page cache accepts writes, and their writeback
# fails.  The kernel reports the failure once per open file description.  Of two flushes at once on
# one descriptor the second would therefore succeed, as it does with nbdkit's file plugin.
. "$(dirname "$0")/../lib/functions.sh"
rounds=${1:-50}
shift || true
backends=("$@")
[ ${#backends[@]} -gt 0 ] || backends=(threads io_uring)
make_fs tmpfs 2m
truncate -s 64M "$mnt/backing"
make_loop "$mnt/backing"

for backend in "${backends[@]}"; do
    say "backend=$backend: $rounds rounds"
    "$python" "$here/lost-writeback.py" "$plugin" "$backend" "$rounds" "$loop" "$mnt/backing" "$dir"
done
