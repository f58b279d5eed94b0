#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The unit test each-call on a block device: each system call and each allocation of a session
# fails in turn.
#
# each-call.sh BACKEND
. "$(dirname "$0")/../lib/functions.sh"
: "${AIODISK_EACH_CALL:?is not set: set it to the program test-each-call of the build}"

truncate -s 128K "$dir/disk.img"
make_loop "$dir/disk.img"
TMPDIR=$dir "$AIODISK_EACH_CALL" all "$1" "$loop"
