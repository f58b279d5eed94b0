#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The metrics in a real Prometheus, which scrapes node_exporter, which reads the metrics files of
# two servers.  The image of one server takes 20 ms for each read and 70 ms for each write, and the
# p99 that Prometheus calculates is fio's, within one bucket.
# prometheus.sh PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
need_root "a FUSE mount"
[ -e /dev/fuse ] || skip "no /dev/fuse"

free_port() {
    "$python" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}
mkdir "$dir/text" "$dir/db"
truncate -s 16M "$dir/fast.img"
: >"$dir/slow.img"
mounts+=("$dir/slow.img")
nbdfuse "$dir/slow.img" --command nbdkit -s --filter=delay memory 64M rdelay=20ms wdelay=70ms \
    2>"$dir/nbdfuse.log" &
pids+=($!)
wait_for 20 test -s "$dir/slow.img"

start fast "$dir/fast.img" metrics="$dir/text/fast.prom" metrics-server=fast
fast=$pid
start slow "$dir/slow.img" metrics="$dir/text/slow.prom" metrics-server=slow "$@"

exporter=$(free_port)
prometheus-node-exporter --collector.disable-defaults --collector.textfile \
    --collector.textfile.directory="$dir/text" --web.listen-address="127.0.0.1:$exporter" \
    2>"$dir/exporter.log" &
pids+=($!)
database=$(free_port)
cat >"$dir/prometheus.yml" <<Y
global: {scrape_interval: 1s}
scrape_configs: [{job_name: node, static_configs: [{targets: ['127.0.0.1:$exporter']}]}]
Y
prometheus --config.file="$dir/prometheus.yml" --storage.tsdb.path="$dir/db" \
    --web.listen-address="127.0.0.1:$database" 2>"$dir/prometheus.log" &
pids+=($!)

# query EXPRESSION: prints the value that Prometheus calculates, or nothing.
query() {
    "$python" - "$database" "$1" <<'P'
import json, sys, urllib.parse, urllib.request
url = f"http://127.0.0.1:{sys.argv[1]}/api/v1/query?" + urllib.parse.urlencode({"query": sys.argv[2]})
try:
    with urllib.request.urlopen(url, timeout=5) as answer:
        for sample in json.load(answer)["data"]["result"]:
            print(sample["value"][1])
except OSError:
    pass
P
}
is() { [ "$(query "$1")" = "$2" ]; }

say "$*: both servers are seen, and no sample of one hides one of the other"
wait_for 60 is 'count(aiodisk_up == 1)' 2
is 'node_textfile_scrape_error' 0 || fail_with "$dir/exporter.log" "node_exporter refuses a file"

say "$*: p99 of reads and writes"
fio --name=slow --ioengine=nbd --uri="$uri" --rw=randrw --bs=4k --iodepth=4 --size=64M \
    --number_ios=300 --output-format=json --output="$dir/fio.json"
total='sum(aiodisk_requests_total{server="slow",op=~"read|write"})'
wait_for 20 is "$total" 300
for op in read write; do
    p99=$(query "histogram_quantile(0.99,
        sum by (le) (aiodisk_request_duration_seconds_bucket{server=\"slow\",op=\"$op\"}))")
    "$python" - "$op" "$p99" "$dir/fio.json" <<'P' || fail "see above"
import json, math, sys
op, p99, path = sys.argv[1], float(sys.argv[2]), sys.argv[3]
with open(path) as f:
    fio = json.load(f)["jobs"][0][op]["clat_ns"]["percentile"]["99.000000"] / 1e9
print(f"{op}: Prometheus {p99:.4f} s, fio {fio:.4f} s")
bucket = lambda t: math.ceil(math.log2(t / 1e-5))
sys.exit(abs(bucket(p99) - bucket(fio)) > 1)
P
done
stop
select_server fast "$fast"
stop
wait_for 20 is 'count(aiodisk_up == 0)' 2
