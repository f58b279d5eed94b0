#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The unit tests, or the conformance suite, hold in whatever order the threads come to their steps:
# the sources are built so that threads yield and sleep at random between their steps.
#
# schedules.sh units|conformance SECONDS [SEED [TEST]]
# Runs the tests in turn, each with a new seed, until the time is over; or, with a SEED, once.
# A failure prints the command that runs the same test with the same seed.
set -euo pipefail
: "${AIODISK_SCHEDULED:?is not set: run the test through meson test}"
here=$(cd "$(dirname "$0")" && pwd)
what=$1 seconds=$2 first_seed=${3:-} only=${4:-}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/aiodisk-test.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap 'exit 143' TERM INT

# The tests, and the seconds that one run may take: a test that hangs is the usual failure.
case $what in
units)
    tests=(loop pool-growth pool-stranded pool-cancel pool-free pool-lanes bounce backend-async
        backend pool-time)
    limit=120
    ;;
conformance)
    [ "$(id -u)" = 0 ] || { echo "skipped: needs root, for loop devices and mounts"; exit 77; }
    tests=()
    for kind in ext4 loop512 xfs loop4k tmpfs; do
        for backend in $AIODISK_BACKENDS; do
            for cache in none default; do tests+=("$backend $cache auto $kind"); done
        done
        tests+=("threads none pool $kind" "threads default pool $kind")
    done
    limit=240
    ;;
*)
    echo "schedules.sh: $what: unknown; allowed are units and conformance" >&2
    exit 1
    ;;
esac

# run TEST SEED: runs one test.
run() {
    case $what in
    units) timeout -k 10 $limit "$AIODISK_SCHEDULED/scheduled-$1" ;;
    # shellcheck disable=SC2086 # several arguments
    conformance) timeout -k 30 $limit bash "$here/../conformance/conformance.sh" $1 1 "$2" ;;
    esac
}

ran=0 index=0
# The conformance suite begins at a random place: a short run has time for a few tests only.
[ $what = units ] || index=$((SRANDOM % ${#tests[@]}))
while [ $ran = 0 ] || [ $SECONDS -lt "$seconds" ]; do
    seed=${first_seed:-$SRANDOM} test=${only:-${tests[index++ % ${#tests[@]}]}}
    status=0
    AIODISK_SCHEDULE_SEED=$seed run "$test" "$seed" >"$dir/out" 2>&1 || status=$?
    if [ $status != 0 ]; then
        tail -n 100 "$dir/out" >&2
        echo "FAILED: $test ended with status $status (124: it hung), seed $seed" >&2
        echo "again: schedules.sh $what 0 $seed '$test'" >&2
        exit 1
    fi
    ran=$((ran + 1))
    echo "$((SECONDS))s $test, seed $seed: passed"
    [ -z "$first_seed" ] || break
done
echo "$ran runs passed"
