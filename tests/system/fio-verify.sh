#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# fio reads back every block that it wrote: blocks of 512 B to 64 KiB at odd multiples of 512 bytes,
# at depth 64 on one connection, then with four processes on four connections.
#
# fio-verify.sh file|loop|rbd PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
shift
make_target "$kind" 64M
start server "$target" "$@"
common=(--ioengine=nbd "--uri=$uri" --rw=randwrite --bsrange=512-64k --blockalign=512
    --verify=crc32c --verify_fatal=1 --group_reporting --output-format=json
    --output="$dir/out.json")
cd "$dir"

say "one connection, depth 64"
fio --name=one --iodepth=64 --size=24M --offset=512 "${common[@]}" || fail "fio found an error"
say "four processes, four connections"
fio --name=four --iodepth=16 --numjobs=4 --size=8M --offset=1536 --offset_increment=9M --fsync=64 \
    "${common[@]}" || fail "fio found an error"
[ "$(jq '[.jobs[].error] | add' out.json)" = 0 ] || fail "fio reports an error"
[ "$(jq '[.jobs[].read.total_ios] | add' out.json)" -gt 500 ] || fail "fio verified nothing"
stop
