#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Which lines and branches of pool/, backends/ and plugin/disk/ do the tests run?  Builds the
# sources with counters, runs the tests, prints a table of the files, and fails if an uncovered line
# has no reason in reasons.txt, or if less is covered than the minimum below.
#
# coverage.sh BUILD                  all tests, with fresh counters (an hour on 2 cores)
# coverage.sh BUILD SUITE|TEST...    these tests only; what they cover is added to the counters
# coverage.sh BUILD --report         no test: the table, and BUILD/uncovered.txt
#
# The failing side of an assert is not counted: a test that takes it has found a defect.  A server
# that is killed leaves no counters.  Tests that measure, that check the source or the compiler's
# flags, or that take hours are left out.
set -euo pipefail

min_lines=99 min_branches=95
suites=(pool backend system slow conformance)
long=('stale long' rbd-users rbd-changed rbd-frozen)
for name in threads io_uring libaio; do long+=("each-call long $name" "each-call loop $name"); done
left_out=(compare hardening tidy corked-fuzz)

build=$1
shift
cd "$(dirname "$0")/../.."

# Counters are updated by atomic operations, for many threads add to one counter.
[ -f "$build/build.ninja" ] || meson setup "$build" -Db_coverage=true -Dtests=enabled \
    -Dc_args=-fprofile-update=atomic >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
ninja -C "$build" >"$build/build.log" 2>&1 || { tail -40 "$build/build.log"; exit 1; }

# A server that runs as another user adds to the counters too, and complains nowhere if it cannot.
export GCOV_ERROR_FILE=/dev/null

names_of() {
    meson test -C "$build" --no-rebuild --list --setup long --suite "$1" 2>/dev/null |
        sed 's|.* / ||'
}

# run NAMES...: runs the tests; a test that fails is named, and counts all the same.
run() {
    find "$build" -name '*.gcda' -exec chmod a+rw {} +
    meson test -C "$build" --no-rebuild --setup long --num-processes 2 "$@" 2>&1 |
        grep -E '^ *[0-9]+/[0-9]+ ' || true
}

names=()
case ${1:-} in
--report) ;;
'')
    find "$build" -name '*.gcda' -delete
    nbdkit --dump-plugin "$build/plugin/nbdkit-aiodisk-plugin.so" >/dev/null # makes the files
    for suite in "${suites[@]}"; do
        mapfile -t -O ${#names[@]} names < <(names_of "$suite")
    done
    names+=("${long[@]}")
    ;;
*)
    for word; do
        if [[ " ${suites[*]} " = *" $word "* ]]; then
            mapfile -t -O ${#names[@]} names < <(names_of "$word")
        else
            names+=("$word")
        fi
    done
    ;;
esac
chosen=()
for name in "${names[@]}"; do
    [[ " ${left_out[*]} " = *" $name "* ]] || chosen+=("$name")
done
[ ${#chosen[@]} = 0 ] || run "${chosen[@]}"

exec /usr/bin/python3 tests/coverage/report.py "$build" $min_lines $min_branches
