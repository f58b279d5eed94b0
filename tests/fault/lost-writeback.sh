#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk that lost a write never says "flushed" again.  lost-writeback.sh [ROUNDS] [BACKENDS...]
# A loop device on a full tmpfs: the page cache takes the writes, and writing them back fails.  The kernel reports that once
# for each open file, so of two flushes at once on one descriptor the second would be told a false ok (nbdkit file tells it).
. "$(dirname "$0")/../lib/functions.sh"
rounds=${1:-50}
shift || true
backends=("$@")
[ ${#backends[@]} -gt 0 ] || backends=(threads io_uring)
mnt=$dir/full
mkdir "$mnt"
need_root "a full tmpfs"
mount -t tmpfs -o size=2m aiodisk-test "$mnt"
mounts+=("$mnt")
truncate -s 64M "$mnt/backing"
make_loop "$mnt/backing"

for backend in "${backends[@]}"; do
    say "backend=$backend: $rounds rounds"
    "$python" "$here/lost-writeback.py" "$plugin" "$backend" "$rounds" "$loop" "$mnt/backing" "$dir"
done
