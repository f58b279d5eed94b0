#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# One server lives through many clients and a long time: after thousands of connects, after many
# connections at once and after clients that were killed it has the threads, descriptors and memory
# of before; under mixed load these and the 99th percentiles do not grow.  Controls with a library
# that leaks with each connection must be rejected.
#
# endurance.sh CONNECTS AT-ONCE KILLED SECONDS PARAMETERS...
#
# SECONDS is for the mixed load; with 0 there is none.  SAMPLES names a directory that keeps the
# samples and, if gnuplot is there, the picture.
export AIODISK_CORKED=${AIODISK_LEAK:?is not set: run the test through meson test} # is preloaded
. "$(dirname "$0")/../lib/functions.sh"
connects=$1 at_once=$2 killed=$3 seconds=$4
shift 4
keep=${SAMPLES:-$dir/samples}
mkdir -p "$keep"
hard=$(ulimit -Hn)
[ "$hard" = unlimited ] || [ "$hard" -ge $((at_once * 2 + 200)) ] ||
    skip "at most $hard descriptors are allowed"

# clients KIND COUNTS... PARAMETERS...
clients() {
    local kind=$1
    shift
    mkdir "$dir/$kind"
    "$python" "$here/clients.py" "$dir/$kind" "$plugin" "$1" "$2" "$3" "$keep/$kind.csv" "${@:4}"
}
# leaks WHAT PATTERN COMMAND...: the command ends with status 3 and says what leaks.
leaks() {
    local what=$1 pattern=$2 status=0
    say "control: each connection leaks $what"
    "${@:3}" >"$dir/out" || status=$?
    cat "$dir/out"
    [ $status = 3 ] && grep -q "leak: .*$pattern" "$dir/out" ||
        fail "the leak was not noticed (status $status)"
}

say "clients one after another, at once, and killed"
clients clients "$connects" "$at_once" "$killed" "$@" ||
    fail_with "$dir/clients/server.log" "clients.py failed with status $?"
export PATIENCE=2
export LEAK=memory
leaks "4 KiB" "the memory grew" clients memory 300 0 0 "$@"
LEAK=descriptor
leaks "a descriptor" "descriptors" clients descriptor 40 0 0 "$@"
[ "$seconds" != 0 ] || exit 0

# mixed KIND SECONDS PARAMETERS...
mixed() {
    local kind=$1
    mkdir "$dir/$kind"
    "$python" "$here/mixed.py" "$dir/$kind" "$plugin" "$2" "$keep/$kind.csv" "${@:3}" || return
    "$python" "$here/judge.py" "$keep/$kind.csv" ${picture:+"$picture"}
}
picture=''
LEAK=thread
leaks "a thread" "threads at rest" mixed thread 60 "$@"
unset LEAK
say "$seconds s of mixed load"
! command -v gnuplot >/dev/null || picture=$keep/mixed.png
mixed mixed "$seconds" "$@" || fail_with "$dir/mixed/server.log" "status $?"
# 1,000 bytes for each connect are noticed: some 3,000 to 5,000 come between the two quarters.
[ "$seconds" -lt 3600 ] ||
    leaks "1,000 bytes (added to the samples)" "memory at rest" \
        "$python" "$here/judge.py" --leak 1000 "$keep/mixed.csv"
