#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# QEMU's block layer writes patterns at unaligned offsets, zeroes and discards, and reads back the
# expected patterns.
#
# qemu-io.sh file|loop|rbd PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
shift
make_target "$kind" 16M
start server "$target" "$@"

cat >"$dir/commands" <<'C'
write -P 0x11 0 4M
write -P 0x22 511 1025
read -P 0x11 0 511
read -P 0x22 511 1025
read -P 0x11 1536 1k
write -P 0x33 4095 2
read -P 0x11 4000 95
read -P 0x33 4095 2
read -P 0x11 4097 4095
write -f -P 0x44 1000001 70001
read -P 0x11 1000000 1
read -P 0x44 1000001 70001
read -P 0x11 1070002 1000
write -z 2000001 99999
read -P 0x11 2000000 1
read -P 0 2000001 99999
read -P 0x11 2100000 1000
write -z -u 1048576 65536
read -P 0 1048576 65536
discard 3M 1M
write -P 0x55 16777215 1
read -P 0x55 16777215 1
read -P 0 16777000 215
aio_write -P 0x66 8M 1M
aio_write -P 0x77 9437184 1M
aio_flush
flush
read -P 0x66 8M 1M
read -P 0x77 9M 1M
C
qemu-io -f raw "$uri" <"$dir/commands" >"$dir/out" 2>&1 || fail_with "$dir/out" "qemu-io failed"
! grep -Ei 'failed|error|invalid' "$dir/out" || fail "qemu-io reported an error"
[ "$(grep -cE 'read [0-9]+/' "$dir/out")" = "$(grep -c '^read' "$dir/commands")" ] ||
    fail_with "$dir/out" "qemu-io did not do every read"
stop
