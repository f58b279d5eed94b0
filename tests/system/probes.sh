#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The USDT probes: the plugin has each one that the README lists, with as many arguments; where the
# kernel permits, the bpftrace scripts see every request of a client.
. "$(dirname "$0")/../lib/functions.sh"
readme=$source_root/plugin/probes/README.md

readelf -n "$plugin" | awk '
    /Provider: aiodisk/ { ours = 1 }
    /Name:/ && ours { name = $2 }
    /Arguments:/ && ours { print name, NF - 1; ours = 0 }' | sort -u >"$dir/built"
[ -s "$dir/built" ] || skip "the plugin was built without <sys/sdt.h>"
sed -n 's/^| `\([a-z_]*\)` .* | \(.*\) |$/\1|\2/p' "$readme" |
    awk -F'|' '{ gsub(/\([^)]*\)/, "", $2); gsub(/: .*/, "", $2); print $1, split($2, a, ", ") }' |
    sort -u >"$dir/listed"
diff "$dir/listed" "$dir/built" || fail "the probes of the README (<) are not those built (>)"

say "bpftrace counts what a client does"
[ "$(id -u)" = 0 ] || skip "the probes are there; running bpftrace needs root"
command -v bpftrace >/dev/null || skip "the probes are there; no bpftrace"
[ -e /sys/bus/event_source/devices/uprobe ] ||
    skip "the probes are there; the kernel has no uprobes"
truncate -s 16M "$dir/disk.img"
start server "$dir/disk.img" cache=none max-threads=1

# traced SCRIPT ARGUMENTS...: runs the script in the background until end_trace.
traced() {
    local script=$source_root/plugin/probes/$1
    shift
    # A mount of its own, because bpftrace wants tracefs to detach the probes.
    unshare -m --propagation private sh -c '
        mountpoint -q /sys/kernel/tracing || mount -t tracefs aiodisk-test /sys/kernel/tracing
        exec "$@"' sh bpftrace -p "$(cat "$pid_file")" "$script" "$@" >"$dir/trace" 2>&1 &
    tracer=$!
    pids+=("$tracer")
    wait_for 60 grep -q "^Attaching" "$dir/trace"
    # Attached: the first request that is seen ends up in a map that is printed at the end, so the
    # client goes on until one is.  bpftrace says nothing when it is ready.
    wait_for 60 attached
}
# attached: the plugin's code has been changed at the probe, from a no-op to a breakpoint.
attached() {
    "$python" - "$(cat "$pid_file")" "$plugin" <<'P'
import re, subprocess, sys
notes = subprocess.run(["readelf", "-n", sys.argv[2]], capture_output=True, text=True).stdout
address = int(re.search(r"Name: request_end\n.*?Location: (0x[0-9a-f]+)", notes, re.S).group(1), 16)
base = None
with open(f"/proc/{sys.argv[1]}/maps") as maps:
    for line in maps:
        if sys.argv[2].split("/")[-1] in line and base is None:
            base = int(line.split("-")[0], 16)
with open(f"/proc/{sys.argv[1]}/mem", "rb") as memory:
    memory.seek(base + address)
    sys.exit(memory.read(1) == b"\x90")
P
}
end_trace() {
    kill -INT "$tracer"
    wait "$tracer" || fail_with "$dir/trace" "bpftrace failed"
}
client() {
    "$python" - "$uri" <<'P'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(100):
    h.pwrite(bytes(4096), 4096 * i)
for i in range(50):
    h.pread(4096, 4096 * i)
h.flush()
h.shutdown()
P
}
# total OPERATION: the sum of the histogram.
total() {
    awk -v "wanted=@us[$1]:" '$0 ~ /^@/ { ours = index($0, wanted) == 1 }
        ours && /^\[/ { split($0, a, /[)\]]/); split(a[2], b, "|"); sum += b[1] }
        END { print sum + 0 }' "$dir/trace"
}
traced latency.bt
client
end_trace
for pair in write:100 read:50 flush:1; do
    [ "$(total "${pair%:*}")" = "${pair#*:}" ] ||
        fail_with "$dir/trace" "not ${pair#*:} requests of ${pair%:*}"
done
traced waits.bt 1
client
end_trace
grep -Eq '^@slow_requests: 1[0-9][0-9]$' "$dir/trace" || fail_with "$dir/trace" "no slow requests"
grep -Eq '^@us\[storage\]: [1-9]' "$dir/trace" || fail_with "$dir/trace" "no time in the storage"
stop
