#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Searches every state of the models in this folder.  Each scenario that must hold is searched to
# the end; each variant with a defect on purpose must have a counterexample of the named kind.
#
# run.sh [MODEL...]     pool, bottom-half, waiter, flush; all of them by default
#
# A search that stops for lack of memory or depth is a failure: it proves nothing.  README.md says
# what the scenarios and the variants are.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
for program in spin gcc; do
    command -v $program >/dev/null || { echo "skipped: $program is not installed"; exit 77; }
done
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/aiodisk-model.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap 'exit 143' TERM INT
cd "$dir"

memory_mib=2000 # the most that one search may use
depth=100000    # the most steps of one execution

# search MODEL MACRO...: runs a search; its output is in the file `out`.  gcc does not optimise,
# because that takes longer than most of the searches.
search() {
    local model=$1
    shift
    rm -f pan* out
    spin -a "${@/#/-D}" "$here/$model.pml" >out 2>&1 || { cat out; exit 1; }
    ! grep -i 'error' out || exit 1
    gcc -w -DSAFETY -DMEMLIM=$memory_mib -o pan pan.c
    ./pan -n -m$depth >out 2>&1 || true
}

failed=0
report() { printf '%-12s %-28s %9s states: %s\n' "$1" "$2" "$(states)" "$3"; }
states() { sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' out; }
complain() {
    report "$1" "$2" "FAILED: $3"
    cat out
    failed=1
}

# holds MODEL NAME MACRO...: no execution of the scenario breaks a promise.
holds() {
    local model=$1 name=$2
    search "$model" "${@:3}"
    if grep -qE '^pan:|not completed|max search depth|out of memory|resource limit' <(
        grep -vE '^pan: (elapsed|rate)' out); then
        complain "$model" "$name" "a counterexample, or a search that did not end"
    elif ! grep -q 'errors: 0' out; then
        complain "$model" "$name" "no result"
    else
        report "$model" "$name" "all searched"
    fi
}

# breaks MODEL NAME KIND MACRO...: the variant has a counterexample, whose line has the text KIND.
breaks() {
    local model=$1 name=$2 kind=$3
    search "$model" "${@:4}"
    if grep -qF "$kind" <(grep '^pan:1:' out); then
        report "$model" "$name" "counterexample, as it must have: $kind"
    else
        complain "$model" "$name" "no counterexample of the kind: $kind"
    fi
}

stuck='invalid end state'

check_pool() {
    local mixed=(TASKS=4 CALLERS=5 SLOW=12) early=(FREE_EARLY TASKS=2)
    local failing=(TASKS=3 CALLERS=5 FAILURES=255) needs=(NEEDS_FIRST=0 NEEDS_SECOND=1)
    holds pool growth TASKS=3 MAX=3
    holds pool lanes "${mixed[@]}"
    holds pool lanes-helping "${mixed[@]}" HELPING=1
    holds pool one-slot TASKS=3 CALLERS=3 SLOW=2 MAX=1 EXPIRIES=1 HELPING=1
    holds pool expiry TASKS=3 CALLERS=1 EXPIRIES=2 MIN=1
    holds pool cancel TASKS=3 CALLERS=1 SLOW=2 CANCELS=1
    holds pool cancel-twice TASKS=2 CALLERS=1 CANCELS=2 EXPIRIES=1
    holds pool cancel-helping TASKS=3 CALLERS=3 SLOW=2 CANCELS=2 HELPING=1
    holds pool bounds TASKS=3 CALLERS=1 WORKERS=2 BOUNDS_1=0,1 BOUNDS_2=1,2
    holds pool bounds-grow TASKS=3 CALLERS=1 SLOW=4 MAX=1 WORKERS=3 BOUNDS_1=0,3 BOUNDS_2=0,1
    holds pool no-threads "${failing[@]}"
    holds pool no-threads-helping "${failing[@]}" HELPING=1
    holds pool no-threads-retry "${failing[@]}" RETRIES=2
    holds pool some-threads TASKS=3 CALLERS=1 FAILURES=1 EXPIRIES=1
    holds pool some-threads-retry TASKS=3 CALLERS=1 FAILURES=2 RETRIES=2
    holds pool chain-fails TASKS=3 MAX=3 FAILURES=1
    holds pool a-needs-b TASKS=3 "${needs[@]}"
    holds pool a-needs-b-no-threads TASKS=3 CALLERS=6 "${needs[@]}" FAILURES=2
    holds pool free-drains FREE_EARLY TASKS=3 CALLERS=1 EXPIRIES=1
    holds pool free-cancels FREE_EARLY TASKS=3 CALLERS=1 FREE_CANCELS EXPIRIES=1
    holds pool free-while-failing "${early[@]}" CALLERS=1 FAILURES=2 RETRIES=2 EXPIRIES=1
    holds pool free-and-cancel "${early[@]}" CALLERS=1 CANCELS=1 EXPIRIES=1
    holds pool free-and-bounds "${early[@]}" BOUNDS_1=0,1 BOUNDS_2=0,2

    breaks pool seed-failure "$stuck" TASKS=2 FAILURES=1 SEED_FAILURE
    breaks pool signal-before-state "$stuck" TASKS=2 SIGNAL_BEFORE_STATE
    breaks pool callers-wait-for-workers 'queue[0]' TASKS=2 CALLERS=2 FAILURES=1 \
        CALLERS_WAIT_FOR_WORKERS
    breaks pool retry-not-asked 'spawn_blocked' TASKS=2 FAILURES=1 NO_RETRY
    breaks pool cancel-loses-token 'tokens+hands' TASKS=2 CANCELS=1 CANCEL_LOSES_TOKEN
    breaks pool take-forgets-token 'tokens+hands' TASKS=3 MAX=3 TAKE_FORGETS_TOKEN
    breaks pool leave-without-look 'idle+starting' TASKS=3 EXPIRIES=1 FAILURES=1 \
        LEAVE_WITHOUT_LOOK
    breaks pool bounds-without-grant 'found' TASKS=2 MAX=1 WORKERS=2 BOUNDS_1=0,2 BOUNDS_2=0,2 \
        BOUNDS_WITHOUT_GRANT
    breaks pool join-first 'exited' TASKS=3 EXPIRIES=2 JOIN_FIRST
    breaks pool no-wake-of-next "$stuck" TASKS=2 NO_WAKE_OF_NEXT
    breaks pool reclaim-by-retry "$stuck" "${early[@]}" FAILURES=1 RETRIES=1 \
        RECLAIM_WHILE_STOPPING
    breaks pool reclaim-by-bounds "$stuck" "${early[@]}" BOUNDS_1=0,1 BOUNDS_2=0,2 \
        RECLAIM_WHILE_STOPPING
}

check_bottom-half() {
    holds bottom-half two-tasks TASKS=2
    holds bottom-half three-tasks TASKS=3 ONE_CALL
    for variant in SIGNAL_BEFORE_STATE NOTIFY_BEFORE_PUSH NO_SECOND_LOOK NO_LOOK_AFTER_CANCEL \
        NO_SCHEDULE_BEFORE_CALLBACKS CLEAR_AFTER_CALLBACK; do
        breaks bottom-half "$(name_of $variant)" "$stuck" TASKS=2 $variant
    done
}

check_waiter() {
    holds waiter pool-run
    holds waiter loop-call LOOP_CALL
    holds waiter flush FLUSH
    for variant in FLAG_AND_SIGNAL PUSH_BEFORE_RESULT STATE_AFTER_WAKE TOUCH_AFTER_UNLOCK \
        "LOOP_CALL FLAGS_AFTER_CALLBACK" "FLUSH SIGNAL_AFTER_UNLOCK"; do
        # shellcheck disable=SC2086 # several macros
        breaks waiter "$(name_of "$variant")" frame== $variant
    done
    breaks waiter wake-before-state result== WAKE_BEFORE_STATE
    breaks waiter flush-no-signal "$stuck" FLUSH NO_SIGNAL
}

check_flush() {
    local fua=(FUAS=2 FLUSHES=1 DESCRIPTORS=2)
    holds flush one-descriptor FLUSHES=3
    holds flush two-descriptors FLUSHES=3 DESCRIPTORS=2
    holds flush sync-not-carried-out FLUSHES=3 SKIPS=1
    holds flush two-losses FLUSHES=2 DESCRIPTORS=2 LOSSES=2
    holds flush fua "${fua[@]}"
    holds flush fua-refused "${fua[@]}" REFUSALS=2
    for variant in JOIN_RUNNING SHARED_DESCRIPTOR RECORD_AFTER_RELEASE NO_HEALTH_CHECK; do
        breaks flush "$(name_of $variant)" durable $variant
    done
    breaks flush no-witness durable "${fua[@]}" NO_WITNESS
    breaks flush lease-last _nr_pr "${fua[@]}" REFUSALS=2 LEASE_LAST
}

# name_of MACROS: the name of a variant.
name_of() { tr 'A-Z_ ' 'a-z--' <<<"$1"; }

[ $# -gt 0 ] || set -- pool bottom-half waiter flush
for model in "$@"; do
    declare -F "check_$model" >/dev/null || { echo "run.sh: there is no model $model" >&2; exit 1; }
    "check_$model"
done
exit $failed
