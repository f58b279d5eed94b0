#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# One system call, or one allocation, of the plugin fails: every request of a scripted session fails
# or is right, reads never return other data, no flush succeeds after a failed sync, nothing hangs,
# and the server does not crash.  When the fault is gone, a second session is served without an
# error, the server has the descriptors and threads of before, SIGTERM ends it with status 0, and
# the image holds what was acknowledged.
#
# A first run under `strace -k` finds the system calls that the plugin makes, and which calls of
# each thread they are.  Then each of the first 20 of each thread fails in turn, with each error
# that its man page allows, once and for good.  Allocations fail by tests/lib/fail-allocation.c.
#
# inject.sh syscalls|allocations file|loop PART PARAMETERS...
# PART: a number of faults, chosen at random; "all"; or "I/N" (see inject.py).  SEED chooses again.
. "$(dirname "$0")/../lib/functions.sh"
kind=$1 target=$2 part=$3
shift 3
seed=${SEED:-$RANDOM}
if [ "$target" = loop ]; then
    truncate -s $(((3 << 20) + 1024)) "$dir/backing"
    make_loop "$dir/backing"
    target=$loop
fi
say "seed $seed, $kind on $target, $*"
"$python" "$here/inject.py" "$kind" "$dir" "$plugin" "$AIODISK_FAIL_ALLOCATION" "$target" "$part" \
    "$seed" "$@" || fail "see above; SEED=$seed chooses the same faults"
