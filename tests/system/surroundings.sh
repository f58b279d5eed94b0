#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What the server takes from its surroundings and gives to them: the signals of nbdkit's --run, and
# a machine without /proc.
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
