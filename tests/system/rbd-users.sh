#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Users of a Ceph cluster with different permissions: what each may do works, and what it may not do
# costs one clear line.  The limit that the user sets with rados_osd_op_timeout holds.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/ceph.sh"
nbdkit --dump-plugin "$plugin" | grep -q '^aiodisk_rbd=yes' || skip "the plugin has no Ceph"
start_ceph cephx
make_pool other
rbd namespace create rbd/space
rbd create rbd/image --size 8M
rbd create rbd/space/image --size 8M
rbd bench --io-type write --io-size 64K --io-total 1M rbd/image >/dev/null

add_user writer mon 'profile rbd' osd 'profile rbd'
add_user reader mon 'profile rbd' osd 'profile rbd-read-only'
add_user nothing mon 'profile rbd'
add_user elsewhere mon 'profile rbd' osd 'profile rbd pool=other'
add_user inside mon 'profile rbd' osd 'profile rbd pool=rbd namespace=space'
add_user careless mon 'allow r' osd 'allow rwx pool=rbd'
printf '[client.stale]\nkey = %s\n' "$(ceph-authtool --gen-print-key)" >>"$ceph/keyring"

say "no key, an unknown key, no permission: one line each, before a client connects"
refused "the monitors refuse client.nobody (keyring=$ceph/keyring" rbd=rbd/image rbd-user=nobody
refused 'the monitors refuse client.stale' rbd=rbd/image rbd-user=stale
refused 'rbd rbd/image: the image cannot be opened by client.nothing: Operation not permitted' \
    rbd=rbd/image rbd-user=nothing
refused 'rbd rbd/image: the image cannot be opened by client.elsewhere: Operation not permitted' \
    rbd=rbd/image rbd-user=elsewhere
refused 'rbd rbd/image: the image cannot be opened by client.inside: Operation not permitted' \
    rbd=rbd/image rbd-user=inside

write_and_read() { qemu-io -f raw -c "write -P $1 0 64k" -c flush -c "read -P $1 0 64k" "$uri"; }

say "a user who may write to the image only, or to its namespace only"
start writer rbd=rbd/image rbd-user=writer
write_and_read 7 >/dev/null || fail_with "$log" "the writer cannot write"
stop
start inside rbd=rbd/space/image rbd-user=inside
write_and_read 8 >/dev/null || fail_with "$log" "the user of the namespace cannot write"
stop

say "a user who may only read: the export is read-only, and the log says why"
start reader rbd=rbd/image rbd-user=reader
nbdinfo --json "$uri" | jq -e '.exports[0].is_read_only' >/dev/null || fail "not read-only"
qemu-io -r -f raw -c 'read -P 7 0 64k' "$uri" | grep -q 'read 65536/65536' || fail "other data"
! qemu-io -f raw -c 'write 0 4k' "$uri" >/dev/null 2>&1 || fail "the reader could write"
grep -m1 'rbd/image: served read-only, because client.reader may not write: ' "$log" ||
    fail_with "$log" "no warning"
say "and sees the size of when it connects"
rbd resize rbd/image --size 12M --no-progress
[ "$(nbdinfo --size "$uri")" = $((12 << 20)) ] || fail "the size is $(nbdinfo --size "$uri")"
stop
start list rbd-pool=rbd rbd-user=reader
nbdinfo --list --json "$uri" | jq -e '[.exports[]."export-name"] == ["image"]' >/dev/null ||
    fail_with "$log" "other exports"
stop

say "the lock of a killed server: a user who may not use the blocklist is refused, another is not"
for user in careless writer; do
    start killed rbd=rbd/image rbd-user=writer
    write_and_read 9 >/dev/null
    hold_client "$uri"
    kill -9 "$pid"
    wait "$pid" || true
    release_client
    start $user rbd=rbd/image rbd-user=$user rbd-timeout=60
    if [ $user = writer ]; then
        qemu-io -f raw -c 'read -P 9 0 64k' "$uri" >/dev/null || fail_with "$log" "not taken over"
    else
        ! nbdinfo --size "$uri" >/dev/null 2>&1 || fail "the lock was broken without a permission"
        grep -m1 'the exclusive lock cannot be taken by client.careless: ' "$log" ||
            fail_with "$log" "no reason"
    fi
    stop
done

say "rados_osd_op_timeout: requests fail with EIO in its time, and a flush fails the disk"
sed -i '/^\[client\]/a rados_osd_op_timeout = 2' "$CEPH_CONF"
start limited rbd=rbd/image rbd-user=writer
"$python" "$here/rbd-limit.py" "$socket" "$osd" || fail_with "$log" "rbd-limit.py failed"
stop
[ "$(grep -c 'a sync failed' "$log")" = 1 ] || fail_with "$log" "not one warning"
