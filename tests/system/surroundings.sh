#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What the server takes from its surroundings and gives to them: the signals of nbdkit's --run.
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
