#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdkit's own abort: ./serve starts nbdkit again at once, says so in one line, and gives up after 5
# aborts within 10 s.  A client that reconnects sees no error, and every write is in the image.
#
# abort.sh ABORTS PARAMETERS...    PARAMETERS: --cache=none and the like
#
# nbdkit up to 1.32.5 aborts when a client dies with parallel requests in flight (connections.c).
. "$(dirname "$0")/../lib/functions.sh"
: "${AIODISK_BUILD:?is not set: run the test through meson test, or set it to the build directory}"
aborts=$1
shift
ulimit -c 0
mkdir "$dir/run"
export XDG_RUNTIME_DIR=$dir/run
truncate -s 32M "$dir/disk.img"
before_cleanup() {
    local file
    for file in "$dir"/run/aiodisk.*/pid; do
        [ ! -s "$file" ] || kill -9 "$(cat "$file")" 2>/dev/null
    done
}
"$python" "$here/abort.py" "$aborts" "$dir" "$dir/disk.img" "$source_root/serve" --stock "$@" ||
    fail_with "$dir/serve.log" "abort.py failed"
