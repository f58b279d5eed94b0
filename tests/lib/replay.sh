# SPDX-License-Identifier: BSD-3-Clause
# For log-replay.sh and fs-replay.sh: the controls, and many logs that take the ways to carry
# requests in turn.  The test sets $seed and defines
#
#   replay SEED PARAMETERS...: the load of this seed on a server with these parameters; succeeds if
#   nothing is lost.  The result of the check is in $dir/found, figures of the load in $dir/load.
all_ways none default

# caught LIE PARAMETERS...: of at most 5 logs of a server with this lie, one loses data.
caught() {
    local lie=$1 i
    shift
    for i in {1..5}; do
        if ! AIODISK_LIE=$lie replay $((seed + 1000 + i)) cache=none "$@"; then
            grep -q '^lost: slot' "$dir/found" || fail_with "$dir/found" "the check failed"
            say "caught in log $i: a server that lies about $lie: $(cut -c 1-70 "$dir/found")"
            return
        fi
    done
    fail "seed $seed: a server that lies about $lie loses nothing, so this test proves nothing"
}

# replay_all COUNT COMMAND MESSAGE: runs COMMAND, replay or another one like it, COUNT times.
replay_all() {
    local i way
    for ((i = 0; i < $1; i++)); do
        way=${ways[i % ${#ways[@]}]}
        # shellcheck disable=SC2086 # a way is several words
        $2 $((seed + i)) $way || fail_with "$dir/found" "$3: seed $((seed + i)), $way"
        cat "$dir/found" >>"$dir/load"
    done
}

# sum_up COUNT: prints the sums of the figures of so many logs.
sum_up() {
    awk -v logs="$1" -v seed="$seed" -F '[= ]' '
        { for (i = 1; i < NF; i += 2) sum[$i] += $(i + 1) }
        END { printf "%d logs from seed %d:", logs, seed
              for (name in sum) printf " %d %s", sum[name], name
              print "; nothing is lost" }' "$dir/load"
}
