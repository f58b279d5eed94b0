#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Clients that are killed with 64 requests in flight leave nothing behind.  kill-client.sh [ROUNDS [PARAMETERS...]]
# The image is on a filesystem of its own, which is frozen in every other round: then the writes that are in flight at the
# kill are inside the plugin, and end only after their client has died.
# nbdkit up to 1.32.5 often aborts then (connections.c, assert (sock >= 0)): it is told from ours by its message, counted,
# and started again.  With one request on each of 64 connections it does not, so there one server lives through all of them.
. "$(dirname "$0")/../lib/functions.sh"
rounds=${1:-50}
shift || true
ulimit -c 0
make_fs ext4 256M
# A frozen filesystem would keep nbdkit from dying.
trap 'status=$?; fsfreeze -u "$mnt" 2>/dev/null || true; set +e; (exit $status); cleanup' EXIT

ways=(cache=none cache=default)
[[ " $* " != *" cache="* ]] || ways=("") # a parameter names it
for way in "${ways[@]}"; do
    for connections in 4 64; do
        n=$((connections == 4 ? rounds : (rounds + 4) / 5))
        say "$way${*:+ $*}: $n clients killed, with $connections connections"
        "$python" "$here/kill-client.py" "$plugin" $n $connections "$mnt" "$dir" ${way:+"$way"} "$@"
    done
done
