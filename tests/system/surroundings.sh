#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What the server takes from its surroundings and gives to them: the signals of nbdkit's --run, the
# user of nbdkit -u, and a machine without /proc.
. "$(dirname "$0")/../lib/functions.sh"
cd "$dir"
truncate -s 1M disk.img

# ignores_sigxfsz FILE: the "SigIgn" line of a /proc/PID/status in FILE has the bit of SIGXFSZ.
ignores_sigxfsz() {
    (((0x$(sed -n 's/^SigIgn:[[:space:]]*//p' "$1") >> ($(kill -l XFSZ) - 1)) & 1))
}

say "the server ignores SIGXFSZ, and the command of --run does not inherit that"
# shellcheck disable=SC2016 # nbdkit sets $uri
nbdkit -U - -P server.pid "$plugin" disk.img --run 'nbdinfo --size "$uri" >size &&
    cat "/proc/$(cat server.pid)/status" >server && cat /proc/self/status >command'
ignores_sigxfsz server || fail_with server "the server would be killed by SIGXFSZ"
! ignores_sigxfsz command || fail_with command "the command of --run ignores SIGXFSZ"

need_root "mounts and other users"

# refused_for_nobody PATTERN ARGUMENTS...: nbdkit -u nobody does not start, in the foreground and in
# the background: the status is 1, no process remains, and one line names the user and PATTERN.
refused_for_nobody() {
    local pattern=$1 mode status
    shift
    say "nbdkit -u nobody refuses $*"
    for mode in --foreground --exportname=; do # the second is the default
        status=0
        rm -f nobody/{pid,sock}
        timeout 20 nbdkit $mode -u nobody -U nobody/sock -P nobody/pid ./plugin.so "$@" 2>err ||
            status=$?
        [ $status = 1 ] || fail_with err "$mode: status $status"
        [ "$(grep -c . err)" = 1 ] && grep -q "by user $(id -u nobody), group.*: $pattern" err ||
            fail_with err "$mode: not one line that matches '$pattern'"
        [ $mode = --foreground ] || [ ! -e nobody/pid ] || fail "a server was started"
    done
    # nbdkit itself keeps the socket open until the command of --run has ended.
    # shellcheck disable=SC2016 # nbdkit sets $uri
    timeout 20 nbdkit -u nobody -U - ./plugin.so "$@" -e disk.img \
        --run 'timeout 15 nbdcopy "$uri" null: 2>client; echo $? >status' 2>err || true
    [ "$(cat status)" = 1 ] && grep -q "no export named" client && grep -q "$pattern" err ||
        fail_with err "--run: the client ended with status $(cat status)"
}
# No server in the background may remain.
# shellcheck disable=SC2046 # one word for each process
before_cleanup() { kill $(cat "$dir"/nobody/*pid) 2>/dev/null; }

chmod 755 "$dir"
cp "$plugin" plugin.so
mkdir -m 777 nobody
mkdir -m 700 closed
mkdir -m 744 names
mkdir -m 755 images
touch closed/disk.img names/disk.img images/disk.img
(umask 077 && truncate -s 1M own.img)
refused_for_nobody 'Permission denied (it has mode 0600, owner 0, group 0)' own.img
refused_for_nobody 'Permission denied (a directory of this path' closed/disk.img
refused_for_nobody 'Permission denied (it has mode 0700' dir=closed
refused_for_nobody 'Permission denied (it has mode 0744' dir=names
refused_for_nobody 'Permission denied (it has mode 0744' dirfd=7 7<names
refused_for_nobody 'Permission denied (it has mode 0700' closed

say "nbdkit -u nobody serves what nobody may read: read-only"
for source in disk.img dir=images; do
    # shellcheck disable=SC2016 # nbdkit sets $uri
    nbdkit -u nobody -U - ./plugin.so "$source" -e disk.img --run 'nbdinfo --json "$uri" >info' \
        2>err || fail_with err "-u nobody, $source"
    [ "$(jq '.exports[0].is_read_only' info)" = true ] || fail_with info "$source is not read-only"
    name=nobody/${source%=*}
    nbdkit -u nobody -U "$name.sock" -P "$name.pid" ./plugin.so "$source" ||
        fail "-u nobody, in the background, $source"
    wait_for 20 test -s "$name.pid"
    nbdinfo --size "nbd+unix:///disk.img?socket=$name.sock" >size || fail "no client can connect"
done
say "nbdkit -u nobody serves a descriptor that root has opened"
# shellcheck disable=SC2016 # nbdkit sets $uri
nbdkit -u nobody -U - ./plugin.so fd=7 --run 'nbdinfo --size "$uri" >size' 7<>own.img 2>err ||
    fail_with err "-u nobody, fd=7"

# without_proc ARGUMENTS...: runs nbdkit in a mount namespace that has no /proc.
without_proc() {
    # shellcheck disable=SC2016 # the inner shell has $@
    timeout 20 unshare --mount --propagation private \
        bash -c 'umount -l /proc && exec nbdkit "$@"' without-proc -f -U - "$plugin" "$@" 2>err
}

# says_why: err is one line, which names /proc.
says_why() {
    [ "$(grep -c . err)" = 1 ] && grep -q 'mount /proc' err ||
        fail_with err "not one line that names /proc"
}

# AddressSanitizer itself needs /proc.
[ -z "${AIODISK_PRELOAD:-}" ] || exit 0
mkdir folder
ln disk.img folder/disk.img
for source in disk.img dir=folder; do
    say "$source without /proc is refused at the start"
    ! without_proc "$source" --run true || fail "$source was served without /proc"
    says_why
done

# shellcheck disable=SC2016 # nbdkit sets $uri
write_and_read='qemu-io -f raw -c "write -P 7 1k 4k" -c flush -c "read -P 7 1k 4k" "$uri" >out'
say "an inherited descriptor is served without /proc"
without_proc fd=7 --run "$write_and_read" 7<>disk.img || fail_with err "fd= without /proc"
say "the same with cache=none: by the page cache, with a warning"
without_proc fd=7 cache=none --run "$write_and_read" 7<>disk.img ||
    fail_with err "fd= and cache=none without /proc"
says_why
