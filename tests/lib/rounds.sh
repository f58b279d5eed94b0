# SPDX-License-Identifier: BSD-3-Clause
# For tests of many rounds, each a random load of a seed and a power failure: the controls, rounds
# that take the ways to carry requests in turn, and the sum.  The test sets $seed.
#
# A round is a command that gets a seed and nbdkit's parameters, and succeeds if nothing is lost.
# The result of its check is in $dir/found.  Figures of the load (name=count) are in $dir/load, or
# in $dir/found when it succeeds.
all_ways none default

# caught ROUND TRIES LIE PARAMETERS...: of at most so many rounds with this lie, one loses data.
caught() {
    local round=$1 tries=$2 lie=$3 i
    shift 3
    for ((i = 1; i <= tries; i++)); do
        if ! AIODISK_LIE=$lie "$round" $((seed + 100000 + i)) "$@"; then
            grep -q '^lost: slot' "$dir/found" || fail_with "$dir/found" "the check failed"
            say "caught in round $i: a server that lies about $lie: $(cut -c 1-70 "$dir/found")"
            return
        fi
    done
    fail "seed $seed: a server that lies about $lie loses nothing, so this test proves nothing"
}

# run_rounds COUNT ROUND MESSAGE: so many rounds lose nothing.
run_rounds() {
    local i way
    for ((i = 0; i < $1; i++)); do
        way=${ways[i % ${#ways[@]}]}
        # shellcheck disable=SC2086 # a way is several words
        "$2" $((seed + i)) $way || fail_with "$dir/found" "$3: seed $((seed + i)), $way"
        cat "$dir/found" >>"$dir/load"
    done
}

# sum_up COUNT WHAT: prints the sums of the figures of so many rounds.
sum_up() {
    awk -v rounds="$1 $2" -v seed="$seed" -F '[= ]' '
        { for (i = 1; i < NF; i += 2) sum[$i] += $(i + 1) }
        END { printf "%s from seed %d:", rounds, seed
              for (name in sum) printf " %d %s", sum[name], name
              print "; nothing is lost" }' "$dir/load"
}
