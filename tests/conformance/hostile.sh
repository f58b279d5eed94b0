#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Garbage at the socket: random bytes, handshakes that are cut short, requests of random type,
# flags, offset and length, requests cut in the middle, many connections at once, clients that leave
# with requests in flight.  The server lives, and a good client gets the right data all the time.
# In the build of ./check with ASan and UBSan the plugin has these sanitizers.
#
# hostile.sh SECONDS SEED|- [PARAMETER...]
. "$(dirname "$0")/../lib/functions.sh"
seconds=$1 seed=$2
shift 2
[ "$seed" != - ] || seed=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
make_target file $((8 << 20))
"$python" "$here/hostile.py" "$dir" "$plugin" "$target" "$seconds" "$seed" "$@" ||
    fail_with "$dir/server.log" "seed $seed"
