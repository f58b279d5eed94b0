#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# io_uring is disabled for the whole machine (kernel.io_uring_disabled = 2): backend=auto serves,
# and backend=io_uring is refused.  The test restores the setting.  Only ./check --long runs this
# test, and runs no other test at the same time.
. "$(dirname "$0")/../lib/functions.sh"
switch=/proc/sys/kernel/io_uring_disabled
need_root "a sysctl"
[ -e $switch ] || skip "the kernel has no kernel.io_uring_disabled"
before=$(cat $switch)
before_cleanup() { echo "$before" >$switch; }

truncate -s 16M "$dir/disk.img"
nbdkit --dump-plugin "$plugin" | grep -x "aiodisk_backends=threads io_uring libaio" ||
    fail "io_uring does not work before the test disables it"
echo 2 >$switch
nbdkit --dump-plugin "$plugin" | grep -x "aiodisk_backends=threads libaio" ||
    fail "--dump-plugin lists io_uring although it is disabled"
refused "backend=io_uring does not work here: Operation not permitted" \
    "$dir/disk.img" backend=io_uring
for cache in default none; do
    start auto "$dir/disk.img" cache=$cache
    qemu-io -f raw -c 'write -P 7 0 64k' -c 'read -P 7 0 64k' -c flush "$uri"
    stop
done
