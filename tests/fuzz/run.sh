#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A fuzz target runs over the corpus in the repository, then over new inputs for some seconds, and
# finds nothing.  An input that fails is printed, and belongs into the corpus afterwards.
#
# run.sh TARGET NAME SECONDS [DIRECTORY]
# NAME is a folder of corpus/.  New inputs stay in DIRECTORY if one is given; with them
# `TARGET -merge=1 tests/fuzz/corpus/NAME DIRECTORY` extends the corpus.
set -euo pipefail
target=$1 name=$2 seconds=$3
corpus=$(cd "$(dirname "$0")" && pwd)/corpus/$name
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/aiodisk-fuzz.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap 'exit 143' TERM INT
export TMPDIR=$dir # of the target, which may be killed
new=${4:-$dir/new}
mkdir -p "$new" "$dir/found"

options=(-artifact_prefix="$dir/found/" -timeout=30 -rss_limit_mb=2048 -print_final_stats=1)
options+=(-entropic_scale_per_exec_time=1) # inputs that run fast get more mutations
[ ! -f "$(dirname "$0")/$name.dict" ] || options+=(-dict="$(dirname "$0")/$name.dict")
# Every input of the corpus, also those that a search for new ones would leave out.
status=0
"$target" "${options[@]}" "$corpus"/* >"$dir/log" 2>&1 || status=$?
if [ $status = 0 ]; then
    "$target" "${options[@]}" -max_total_time="$seconds" -max_len=1024 "$new" "$corpus" \
        >"$dir/log" 2>&1 || status=$?
fi
if [ $status != 0 ]; then
    tail -n 100 "$dir/log" >&2
    for file in "$dir"/found/*; do
        [ ! -f "$file" ] || { echo "-- ${file##*/}, base64:" && base64 "$file"; } >&2
    done
    echo "FAILED: $name" >&2
    exit 1
fi
grep -E '^Done|executed_units' "$dir/log"
