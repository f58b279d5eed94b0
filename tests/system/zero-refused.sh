#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Storage that answers each fallocate(2) with EINVAL or EBUSY costs a few calls and flushes in all,
# and not some for each zero.  Such an answer may concern one range or one moment, so it is not
# remembered for good: storage that works later is used, and one refusal of a method that has worked
# changes nothing for the next request.  strace makes the answers.
. "$(dirname "$0")/../lib/functions.sh"
command -v strace >/dev/null || skip "strace is not installed"

cat >"$dir/zeros.py" <<'P'
import nbd, sys
uri, count = sys.argv[1], int(sys.argv[2])
h = nbd.NBD()
h.connect_uri(uri)
data = b"d" * 4096 * (2 * count + 1)
h.pwrite(data, 0)
for i in range(count):
    at = (2 * i + 1) * 4096
    h.zero(4096, at)
    data = data[:at] + bytes(4096) + data[at + 4096:]
assert h.pread(len(data), 0) == data
h.trim(4096, 0)
h.flush()
h.shutdown()
P

# zeros KIND ERROR WHEN: 100 zeros of one page while fallocate(2) fails; WHEN is strace's (strace
# counts the calls of each thread, so nbdkit has one thread).
zeros() {
    make_target "$1" 8M
    nbdkit=(strace -f -qq -o "$dir/trace" -e trace=fallocate,fdatasync
        -e "inject=fallocate:error=$2:when=$3" nbdkit -t 1)
    start "zeros" "$target"
    "$python" "$dir/zeros.py" "$uri" 100
    stop
}
calls() { grep -cE "$1" "$dir/trace" || true; }

for kind in file loop; do
    for error in EINVAL EBUSY; do
        say "$kind, always $error"
        zeros $kind $error 1+
        [ "$(calls 'PUNCH_HOLE.*INJECTED')" -ge 3 ] ||
            fail_with "$dir/trace" "the method was given up after $(calls PUNCH_HOLE) refusals"
        [ "$(calls fallocate)" -le 24 ] ||
            fail_with "$dir/trace" "$(calls fallocate) calls of fallocate for 100 zeros"
        [ "$(calls fdatasync)" -le 12 ] ||
            fail_with "$dir/trace" "$(calls fdatasync) flushes for 100 zeros"

        say "$kind, $error to the first 4 calls"
        zeros $kind $error 1..4
        [ "$(calls 'PUNCH_HOLE.* = 0')" -ge 90 ] ||
            fail_with "$dir/trace" "only $(calls 'PUNCH_HOLE.* = 0') of 100 zeros were punched"

        say "$kind, $error to the 50th call"
        zeros $kind $error 50
        [ "$(calls 'PUNCH_HOLE.* = 0')" -ge 99 ] ||
            fail_with "$dir/trace" "only $(calls 'PUNCH_HOLE.* = 0') of 100 zeros were punched"
    done
done
