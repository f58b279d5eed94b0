#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A server that is killed under load: every acknowledged write is in the image, the image is usable,
# no lock remains, and every client gets an error at once.
#
# kill-server.sh [ROUNDS [BACKENDS...]]
#
# The page cache outlives the server, so this test says nothing about power loss (power-loss.sh
# does).  This test proves that no request is acknowledged too early.
. "$(dirname "$0")/../lib/functions.sh"
rounds=${1:-34}
shift || true
backends=("$@")
[ ${#backends[@]} -gt 0 ] || read -ra backends < <(working_backends)
truncate -s 16M "$dir/file.img" "$dir/loop.img"
make_loop "$dir/loop.img" --direct-io=on

for backend in "${backends[@]}"; do
    say "backend=$backend: $rounds servers are killed"
    "$python" "$here/kill-server.py" "$plugin" "$backend" "$rounds" "$dir" "$dir/file.img" "$loop"
done
