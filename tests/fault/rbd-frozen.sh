#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# An OSD that is frozen (SIGSTOP) holds up only what needs it.  Two OSDs, a pool on each: while the
# second is frozen, the requests of `slow`, whose data lie there, wait, slow-request= names them,
# and they complete afterwards.  Meanwhile another image of the same server, an image of a server
# beside it, and a file have the latencies of before.  A client that would have to open an image on
# the frozen OSD is refused in the time of rbd-timeout=, also while the image is being closed, and
# when the image is open and has changed.
#
# rbd-frozen.sh SECONDS
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/ceph.sh"
nbdkit --dump-plugin "$plugin" | grep -q '^aiodisk_rbd=yes' || skip "the plugin has no Ceph"
seconds=$1
start_ceph
first_osd=$osd
add_osd
second_osd=$osd

# The header of an image lies in its pool, its data in the data pool.
pool_on_osd rbd 0
make_pool far
pool_on_osd far 1
rbd create rbd/slow --size 64M --data-pool far
rbd create rbd/good --size 64M
rbd create rbd/beside --size 64M
rbd create far/image --size 64M
rbd create rbd/plain --size 64M --data-pool far --image-feature layering,data-pool
truncate -s 64M "$dir/disk.img"

start file "$dir/disk.img"
file_uri=$uri
start beside rbd=rbd/beside
beside_uri=$uri
start far rbd-pool=far rbd-timeout=3
start pool rbd-pool=rbd slow-request=1 max-threads=8
slow="nbd+unix:///slow?socket=$socket" good="nbd+unix:///good?socket=$socket"
osd=$second_osd
"$python" "$here/rbd-frozen.py" "$osd" "$seconds" "$slow" "$good" "$beside_uri" "$file_uri" \
    "nbd+unix:///image?socket=$dir/far.sock" "nbd+unix:///plain?socket=$socket" ||
    fail_with "$log" "rbd-frozen.py failed"
kill -0 "$first_osd"

say "slow-request= names what waits, and what has ended"
for line in 'slow request: read of 4096 bytes at 4096 .*waiting for the storage' \
    'slow request: write of 4096 bytes at .*waiting for the storage' 'slow request ended: read'; do
    grep -m1 "slow: $line" "$log" || fail_with "$log" "no line matches '$line'"
done
! grep 'good: slow request' "$log" || fail "a request of another image was slow"
stop
select_server far "$(cat "$dir/far.pid")"
say "a client that cannot be served is told why"
for line in 'an OSD did not answer in 3 s' 'still waits for the cluster' 'the image has changed'; do
    grep -m1 "error: rbd far/image: .*$line" "$log" || fail_with "$log" "no line matches '$line'"
done
