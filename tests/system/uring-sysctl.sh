#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# io_uring switched off for the whole machine (kernel.io_uring_disabled = 2): auto serves, io_uring named is refused.  Alone, by
# ./check --long, and restored afterwards.
. "$(dirname "$0")/../lib/functions.sh"
switch=/proc/sys/kernel/io_uring_disabled
need_root "a sysctl"
[ -e $switch ] || skip "the kernel has no kernel.io_uring_disabled"
before=$(cat $switch)
trap 'echo $before >$switch; cleanup' EXIT

truncate -s 16M "$dir/disk.img"
nbdkit --dump-plugin "$plugin" | grep -x "aiodisk_backends=threads io_uring libaio" || fail "io_uring was off before"
echo 2 >$switch
nbdkit --dump-plugin "$plugin" | grep -x "aiodisk_backends=threads libaio" || fail "io_uring is listed"
status=0
nbdkit -f -U "$dir/refused.sock" "$plugin" "$dir/disk.img" backend=io_uring 2>"$dir/refused.log" || status=$?
cat "$dir/refused.log"
[ $status = 1 ] || fail "status $status"
grep -q "backend=io_uring does not work here: Operation not permitted" "$dir/refused.log" || fail "the line does not say why"
for cache in default none; do
    start auto "$dir/disk.img" cache=$cache
    qemu-io -f raw -c 'write -P 7 0 64k' -c 'read -P 7 0 64k' -c flush "$uri"
    stop
done
