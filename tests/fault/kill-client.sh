#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Clients that are killed with 64 requests in flight leave nothing behind.
#
# kill-client.sh [ROUNDS [PARAMETERS...]]
#
# The image is on a filesystem of its own, which is frozen in every other round.  The writes that
# are in flight at the kill are then inside the plugin, and end only after their client is dead.
#
# nbdkit up to 1.32.5 often aborts in this case (connections.c, assert (sock >= 0)).  kill-client.py
# recognises that abort by its message, counts it and starts a new server.  With one request on each
# of 64 connections nbdkit does not abort, so in that case one server survives all rounds.
. "$(dirname "$0")/../lib/functions.sh"
rounds=${1:-50}
shift || true
ulimit -c 0
make_fs ext4 256M
before_cleanup() { fsfreeze -u "$mnt" 2>/dev/null; } # nbdkit cannot end on a frozen filesystem

ways=(cache=none cache=default)
[[ " $* " != *" cache="* ]] || ways=("") # the arguments name the cache mode
for way in "${ways[@]}"; do
    for connections in 4 64; do
        n=$((connections == 4 ? rounds : (rounds + 4) / 5))
        say "$way${*:+ $*}: $n clients are killed, with $connections connections"
        "$python" "$here/kill-client.py" "$plugin" $n $connections "$mnt" "$dir" ${way:+"$way"} "$@"
    done
done
