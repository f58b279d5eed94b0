#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# aiodisk@.service and aiodisk@.socket: systemd accepts them, `systemd-analyze security` rates them
# below 2.0, and a systemd of the test's own runs them.  That systemd runs in namespaces, beside
# whatever manages this machine, and sets up the real sandbox: the server works there with files,
# block devices, directories and TLS, and what the sandbox forbids fails.
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/tests/lib/systemd.sh"
prepare_units

say "systemd-analyze verify"
systemd-analyze verify --man=no "units/aiodisk@.service" "units/aiodisk@.socket" >verify 2>&1 ||
    fail_with verify "systemd-analyze verify"
[ ! -s verify ] || fail_with verify "systemd-analyze verify prints messages"

say "systemd-analyze security"
systemd-analyze security --offline=true --threshold=19 "units/aiodisk@.service" >security 2>&1 ||
    fail_with security "the exposure is not below 2.0"
tail -1 security

# --- Socket activation, without a manager ---

# The arguments of ExecStart, with the plugin of the build in the place of aiodisk.
command=$(sed -n '/^ExecStart=/,/[^\\]$/p' "units/aiodisk@.service" | tr -d '\\\n' |
    sed "s|^ExecStart=||; s|%i|disk|g; s| aiodisk | $plugin |; s|/run/aiodisk|$dir/run|")
[[ $command == *" \$ARGUMENTS" ]] || fail "ExecStart does not end with the arguments: $command"
say "systemd-socket-activate"
head -c 1M /dev/urandom >source
cp source disk.img
read -r -a words <<<"${command% *}"
systemd-socket-activate -l "$dir/activated.sock" -E LD_PRELOAD="$AIODISK_CORKED" \
    "${words[@]}" file="$dir/disk.img" 2>activate.log &
pids+=($!)
wait_for 20 test -S activated.sock
nbdcopy "nbd+unix:///?socket=$dir/activated.sock" copy || fail_with activate.log "nbdcopy"
cmp copy source || fail "the copy differs"
wait_for 5 grep -qs '^aiodisk_requests_total{export="",op="read",server="disk"}' run/disk.prom
kill "${pids[-1]}"
wait "${pids[-1]}" || fail_with activate.log "nbdkit ended with status $?"
grep -qx 'aiodisk_up{server="disk"} 0' run/disk.prom || fail_with run/disk.prom "no end is noted"
rm run/disk.prom

# --- A systemd ---

say "a systemd of the test's own; systemd-sysusers makes the user"
start_systemd
inside id aiodisk

# fails NAME PATTERN: the server ends at once, with such a line in the log, and no client is served.
# systemd starts it again for each client that waits, but not for ever.
fails() {
    : >journal
    up "$1"
    ! timeout 30 nbdinfo "$uri" >out 2>&1 || fail_with out "a client is served: $1"
    [ "$(state "$1" Result)" != success ] || fail "the server is said to be well: $1"
    grep -q -- "$2" journal || fail_with journal "no line with: $2"
    inside systemctl stop "aiodisk@$1.socket" "aiodisk@$1.service"
    inside systemctl reset-failed "aiodisk@$1.socket" "aiodisk@$1.service"
}
# copies URI: data go in and come out.
copies() {
    nbdcopy --flush source "$1" || fail_with journal "nbdcopy to $1"
    nbdcopy "$1" copy || fail_with journal "nbdcopy from $1"
    cmp -n "$(stat -c %s source)" source copy || fail "the copy differs: $1"
}
image() { service_image "$1" 1M; }

say "a file: the first client starts the server"
image "my disk.img"
config disk 'file="/var/lib/aiodisk/my disk.img" cache=none'
up disk
[ "$(state disk ActiveState)" = inactive ] || fail "the server runs before a client comes"
[ "$(stat -c '%a %g' "$socket")" = "660 $(inside id -g aiodisk)" ] ||
    fail "the socket has other permissions: $(stat "$socket")"
copies "$uri"
cmp source "lib/aiodisk/my disk.img" || fail "the image differs"
[ "$(state disk ActiveState)" = active ] || fail_with journal "the server does not run"

say "the sandbox: user, capabilities, privileges, seccomp, devices, network, filesystem"
pid=$(server_pid)
status=$(cat "/proc/$pid/status")
for line in "NoNewPrivs:1" "Seccomp:2" "Groups:$(inside id -g aiodisk)"; do
    grep -qx "$line" <<<"$(tr -d '[:blank:]' <<<"$status")" || fail "no $line: $status"
done
[ "$(grep -c '^Cap...:.0000000000000000$' <<<"$status")" = 5 ] || fail "capabilities: $status"
[ "$(stat -c %u "/proc/$pid")" = "$user" ] || fail "another user"
grep -q libnbdkit-corked "/proc/$pid/maps" || fail "libnbdkit-corked.so is not there"
for space in net mnt user ipc uts; do
    [ "$(readlink "/proc/$pid/ns/$space")" != "$(readlink "/proc/$manager/ns/$space")" ] ||
        fail "the server shares the namespace $space"
done
[ "$(awk '/^Max open files/ { print $4 == $5 }' "/proc/$pid/limits")" = 1 ] ||
    fail "the plugin could not raise its limit of descriptors"
wait_for 5 grep -qs '^aiodisk_up{server="disk"} 1' run/aiodisk/disk.prom
[ "$(stat -c %a run/aiodisk/disk.prom)" = 644 ] || fail "not everyone may read the metrics"
"$python" - "$uri" "$pid" <<'P' || fail "the plugin could not choose SCHED_BATCH"
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(4096, 0)
assert os.SCHED_BATCH in {os.sched_getscheduler(int(task))
                          for task in os.listdir(f"/proc/{sys.argv[2]}/task")}
P
# What the server's process may reach is tried in its namespaces, as its user.
within() { nsenter -t "$pid" -m -r -n setpriv --reuid="$user" --clear-groups "$@" 2>&1; }
mkdir -p lib/other
within test -w /var/lib/aiodisk || fail "the images cannot be written to"
for path in /var/lib/other /etc /usr /var/tmp/aiodisk-test.x /home/x; do
    ! within touch "$path/x" >/dev/null || fail "a file can be made in $path"
done
networks=$(nsenter -t "$pid" -n cat /proc/net/dev | grep -vc '|\| lo:') || true
[ "$networks" = 0 ] || fail "there is a network"

say "a client that makes nbdkit abort: the server is restarted; a stop is not a failure"
hold_client "$uri"
kill -ABRT "$pid"
restarted() { [ "$(state disk NRestarts)" = 1 ] && [ "$(state disk ActiveState)" = active ]; }
wait_for 20 restarted
release_client
copies "$uri"
down disk
[ "$(state disk ActiveState)" = inactive ] && [ "$(state disk NRestarts)" = 0 ] ||
    fail "$(state disk ActiveState)"
grep -qx 'aiodisk_up{server="disk"} 0' run/aiodisk/disk.prom || fail "the metrics did not stay"
[ ! -e "$socket" ] || fail "the socket stayed"

say "a block device, with the group that may use it, and without"
truncate -s 1M loop.img
make_loop "$dir/loop.img"
# A node of the test's own, as udev would make it.
device=/var/lib/aiodisk/device
mknod -m 660 lib/aiodisk/device b $(stat -c '0x%t 0x%T' "$loop")
chgrp disk lib/aiodisk/device
config loop "file=$device cache=none"
fails loop "$device: .*Permission denied"
dropin loop SupplementaryGroups=disk
up loop
copies "$uri"
nsenter -t "$(server_pid)" -m -r test -b "$loop" || fail "the server sees no devices in /dev"
qemu-io -f raw -c 'write -z 0 64k' -c 'discard 64k 64k' -c 'read -P 0 0 64k' "$uri" >out 2>&1 ||
    fail_with out "qemu-io"
down loop
dropin loop SupplementaryGroups=disk DeviceAllow= "DeviceAllow=$loop rw"
up loop
copies "$uri"
down loop
dropin loop SupplementaryGroups=disk DeviceAllow=
fails loop "$device: .*Operation not permitted"

say "the sample of the arguments"
image disk.img
inside cp /run/files/example.conf /etc/aiodisk/example.conf
up example
copies "$uri"
cmp source lib/aiodisk/disk.img || fail "the sample serves another image"
down example

say "two servers at once; a directory; libaio; read-only; an image where nothing may be written"
mkdir lib/aiodisk/images
image images/one
image two
config one 'dir=/var/lib/aiodisk/images backend=libaio cache=none'
config two '/var/lib/aiodisk/two -r'
up one
copies "nbd+unix:///one?socket=$socket"
up two
! nbdcopy source "$uri" >out 2>&1 || fail "-r is ignored"
nbdcopy "$uri" copy
down one
nbdinfo --size "$uri" >/dev/null || fail "the second server ended with the first"
down two
truncate -s 1M lib/other/image
chown "$user" lib/other/image
config other 'file=/var/lib/other/image'
up other
[ "$(nbdinfo --json "$uri" | jq '.exports[0].is_read_only')" = true ] || fail "it is writable"
grep -q "served read-only: Read-only file system" journal || fail_with journal "no reason"
down other
dropin other ReadWritePaths=/var/lib/other
up other
copies "$uri"
down other

say "io_uring is denied, and permitted by a drop-in"
image ring.img
config ring 'file=/var/lib/aiodisk/ring.img backend=io_uring cache=none'
fails ring "io_uring.*Operation not permitted"
if nbdkit --dump-plugin "$plugin" | grep -q '^aiodisk_backends=.*io_uring'; then
    dropin ring "SystemCallFilter=io_uring_setup io_uring_enter io_uring_register"
    up ring
    copies "$uri"
    down ring
fi

say "TLS with keys, on a unix socket and TCP"
image tls.img
printf 'user:%s\n' "$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')" >keys
inside install -g aiodisk -m 640 "$dir/keys" /etc/aiodisk/keys.psk
config tls 'file=/var/lib/aiodisk/tls.img --tls=require --tls-psk=/etc/aiodisk/keys.psk'
port=$("$python" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
mkdir "units/aiodisk@tls.socket.d"
printf '[Socket]\nListenStream=127.0.0.1:%s\n' "$port" >"units/aiodisk@tls.socket.d/test.conf"
inside systemctl daemon-reload
up tls
copies "nbds+unix://user@/?socket=$socket&tls-psk-file=$dir/keys"
copies "nbds://user@127.0.0.1:$port/?tls-psk-file=$dir/keys"
! nbdinfo "$uri" >out 2>&1 || fail "a client without TLS is served"
down tls

say "without a file of arguments the server does not start"
! inside systemctl start aiodisk@missing.service 2>out || fail "it starts"
[ "$(state missing Result)" = resources ] || fail_with out "another reason: $(state missing Result)"
