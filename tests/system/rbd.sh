#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Ceph RBD images on a real cluster: data, flush and FUA, zero, trim and extents, snapshots, sizes,
# one writer, rbd-pool=, and one clear line for each thing that is missing.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/ceph.sh"
nbdkit --dump-plugin "$plugin" | grep -q '^aiodisk_rbd=yes' || skip "the plugin has no Ceph"
start_ceph

# script NAME ARGUMENTS...: runs a part of rbd.py against the selected server.
script() { "$python" "$here/rbd.py" "$socket" "$@" || fail_with "$log" "rbd.py $1 failed"; }
# client_refused PATTERN EXPORT: a client is refused, and the server says why in a line that
# matches.
client_refused() {
    if nbdinfo --size "nbd+unix:///${2:-}?socket=$socket" >/dev/null 2>&1; then
        fail "a client got in: $1"
    fi
    grep -q -- "$1" "$log" || fail_with "$log" "no line matches '$1'"
    grep -- "$1" "$log" | tail -1
}

say "what is missing costs one line, before a client connects"
refused 'rbd rbd/nope: no image of this name' rbd=rbd/nope
refused 'rbd nope/x: no pool nope' rbd=nope/x
refused 'rbd rbd/space/x: no namespace of this name' rbd=rbd/space/x
refused 'rbd-pool=a/b/c: the form is POOL' rbd-pool=a/b/c
for name in x x/ /x a/b/c/d a//b a/b@; do
    refused 'the form is POOL/\[NAMESPACE/\]IMAGE\[@SNAPSHOT\]' rbd=$name
done
refused 'rbd-timeout=0: not a number of seconds' rbd=rbd/x rbd-timeout=0
refused 'rbd-user: needs rbd=' rbd-user=x disk.img
refused 'only one of' rbd=rbd/x rbd-pool=rbd
refused "$dir/nope.conf cannot be read" rbd=rbd/x rbd-conf="$dir/nope.conf"
sed "s/^auth_client_required.*/auth_client_required = cephx/
    s,^keyring = .*,keyring = $dir/nokey," "$CEPH_CONF" >"$dir/nokey.conf"
refused "no key for client.guest: keyring=$dir/nokey, with $dir/nokey.conf" \
    rbd=rbd/x rbd-conf="$dir/nokey.conf" rbd-user=guest
sed 's/^mon_host.*/mon_host = v2:127.0.0.1:1/' "$CEPH_CONF" >"$dir/nomon.conf"
begin=$EPOCHREALTIME
refused "no monitor answered in 2 s: mon_host=v2:127.0.0.1:1 in $dir/nomon.conf" \
    rbd=rbd/x rbd-conf="$dir/nomon.conf" rbd-timeout=2
[ "$(milliseconds_since "$begin")" -lt 8000 ] || fail "it took $(milliseconds_since "$begin") ms"

rbd create rbd/image --size 64M
start server rbd=rbd/image -D aiodisk.stats=1
say "what a client learns, and data that go in and out"
script facts
head -c 64M /dev/urandom >"$dir/in"
nbdcopy --flush "$dir/in" "$uri"
nbdcopy "$uri" "$dir/out"
cmp "$dir/in" "$dir/out"
rbd export --no-progress rbd/image - | cmp - "$dir/in"

say "zero, trim and extents"
script zero
say "a snapshot is served as it was, read-only"
rbd snap create rbd/image@first --no-progress
server_pid=$pid
start snapshot rbd=rbd/image@first
script snapshot "$dir/out.now"
stop
select_server server "$server_pid"
script random 3

say "no flush and no FUA write ends while the OSD is frozen, and all end when it goes on"
script frozen "$osd" "$dir/frozen" &
client=$!
wait_for 20 test -e "$dir/frozen"
say "the export of a file on the same machine goes on meanwhile"
truncate -s 1M "$dir/disk.img"
start file "$dir/disk.img"
qemu-io -f raw -c 'write 0 4k' -c flush "$uri" >/dev/null
stop
thaw_osd
wait $client
select_server server "$server_pid"

say "a second writer is refused, and told of the first"
hold_client "$uri"
start second rbd=rbd/image
client_refused 'client\.[0-9]* at 127.0.0.1:[0-9/]* has the exclusive lock'
stop
say "so is a writer beside one that would give the lock away"
select_server server "$server_pid"
release_client
stop
rbd create rbd/polite --size 8M
start polite rbd=rbd/polite locking=off
polite_pid=$pid polite_uri=$uri
hold_client "$uri"
qemu-io -f raw -c 'write 0 4k' "$uri" >/dev/null
start second rbd=rbd/polite
client_refused 'client\.[0-9]* at 127.0.0.1:[0-9/]* has the exclusive lock'
qemu-io -f raw -c 'write 0 4k' -c flush "$polite_uri" >/dev/null ||
    fail "the first writer was disturbed"
stop
select_server polite "$polite_pid"
release_client
stop

say "without the exclusive lock as a feature too, unless locking=off"
rbd create rbd/simple --size 8M --image-feature layering
start simple rbd=rbd/simple
simple_pid=$pid
hold_client "$uri"
start second rbd=rbd/simple
client_refused 'has the image open too, and the image has no exclusive lock'
stop
start second rbd=rbd/simple locking=on
client_refused 'the image has no exclusive lock'
stop
start second rbd=rbd/simple locking=off
nbdinfo --size "$uri" >/dev/null || fail_with "$log" "locking=off was refused"
stop
select_server simple "$simple_pid"
release_client
stop

say "the lock of a killed server is taken over, and flushed data are there"
start server rbd=rbd/image
script flushed write
kill -9 "$pid"
wait "$pid" || true
start server rbd=rbd/image
script flushed read

say "a client that connects again sees a new size; the end of a smaller image is an error"
hold_client "$uri"
rbd resize rbd/image --size 96M --no-progress
[ "$(nbdinfo --size "$uri")" = $((96 << 20)) ] || fail "the size is $(nbdinfo --size "$uri")"
script shrink "$(command -v rbd)"
release_client
stop

say "a server that the cluster has put on the blocklist has failed, also for later clients"
start lost rbd=rbd/image
script blocklisted
stop
[ "$(grep -c 'a sync failed' "$log")" = 1 ] || fail_with "$log" "not one warning"

say "rbd-pool=: every image is an export"
start pool rbd-pool=rbd
nbdinfo --list --json "$uri" | jq -r '.exports[]."export-name"' | sort >"$dir/list"
printf '%s\n' image polite simple | cmp - "$dir/list" || fail_with "$dir/list" "other exports"
[ "$(nbdinfo --size "nbd+unix:///polite?socket=$socket")" = $((8 << 20)) ] || fail "other size"
nbdinfo --json "nbd+unix:///image@first?socket=$socket" |
    jq -e '.exports[0].is_read_only and .exports[0]."export-size" == 67108864' >/dev/null ||
    fail "the snapshot"
client_refused 'rbd rbd/nope: no image of this name' nope
client_refused 'the client named no export' ''
stop

say "a namespace, a server in the background, and a frozen image that slow-request= names"
rbd namespace create rbd/space
rbd create rbd/space/small --size 4M --object-size 64K
nbdkit -U "$dir/daemon.sock" -P "$dir/daemon.pid" "$plugin" rbd=rbd/space/small
pids+=("$(cat "$dir/daemon.pid")")
socket=$dir/daemon.sock log=$dir/daemon.log
script random 2
kill "$(cat "$dir/daemon.pid")"
wait_for 20 ended "$(cat "$dir/daemon.pid")"
start slow rbd=rbd/space/small slow-request=0.5
script read_frozen "$osd" &
client=$!
wait_for 20 grep -q 'slow request: read of 4096 bytes at 0 .*waiting for the storage' "$log"
thaw_osd
wait $client
stop

say "./serve rbd:POOL/IMAGE: 64 threads; it ends in its time although the cluster is frozen"
AIODISK_GRACE=2 "$source_root/serve" rbd:rbd/space/small --socket "$dir/serve.sock" \
    >"$dir/serve.out" 2>&1 &
serve=$!
pids+=("$serve")
wait_for 60 grep -q 'Ctrl-C stops the server' "$dir/serve.out"
socket=$dir/serve.sock log=$dir/serve.out
[ "$(nbdinfo --size "nbd+unix:///?socket=$socket")" = $((4 << 20)) ] || fail "other size"
script read_frozen "$osd" "$dir/reading" 2>/dev/null &
wait_for 20 test -e "$dir/reading"
server_pid=$(pgrep -P "$serve" -x nbdkit)
pids+=("$server_pid")
threads=(/proc/"$server_pid"/task/*)
[ ${#threads[@]} -gt 64 ] || fail "${#threads[@]} threads, so less than 64 requests at once"
begin=$EPOCHREALTIME
kill "$serve"
wait "$serve" || true
[ "$(milliseconds_since "$begin")" -lt 10000 ] || fail "it took $(milliseconds_since "$begin") ms"
grep -q 'ending nbdkit' "$dir/serve.out" || fail_with "$dir/serve.out" "nbdkit was not ended"
thaw_osd
