#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# metrics=FILE: the totals are those of fio, the file is valid and replaced as a whole each second,
# and nothing that is wrong with the file costs a request.
# metrics.sh PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
need_root "mounts"
file=$dir/m/aiodisk.prom
mkdir "$dir/m"
truncate -s 64M "$dir/disk.img"

# written_again FILE: the file has been replaced since the last call.
inode=
written_again() {
    local now
    now=$(stat -c %i.%Y.%Z "$1" 2>/dev/null) || return 1
    [ "$now" != "$inode" ] || return 1
    inode=$now
}
check() { "$python" "$source_root/tests/system/metrics.py" "$@"; }

say "$*: the totals are fio's, with and without errors"
start server "$dir/disk.img" metrics="$file" "$@"
fio --name=mixed --ioengine=nbd --uri="$uri" --rw=randrw --bsrange=1k-64k --iodepth=8 \
    --size=64M --io_size=48M --fsync=16 --output-format=json --output="$dir/mixed.json"
fio --name=trim --ioengine=nbd --uri="$uri" --rw=randtrim --bs=64k --iodepth=8 --size=16M \
    --output-format=json --output="$dir/trim.json"
stop
promtool check metrics <"$file" || fail_with "$file" "promtool"
check totals "$file" "$dir/mixed.json" "$dir/trim.json" || fail_with "$file" "see above"

say "$*: a failed request is counted by the error that the client saw"
start server "$dir/disk.img" metrics="$file" "$@"
"$python" - "$uri" "$dir/disk.img" <<'P'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(bytes(4096), 0)
os.truncate(sys.argv[2], 1 << 20)
for error, request in (("EIO", lambda: h.pread(4096, 32 << 20)),
                       ("ENOSPC", lambda: h.pwrite(bytes(4096), 32 << 20))):
    for _ in range(3):
        try:
            request()
        except nbd.Error as e:
            assert e.errno == error, e
        else:
            raise SystemExit(f"no {error}")
h.shutdown()
P
stop
check samples "$file" 'request_errors_total{op="read",errno="EIO"}=3' \
    'request_errors_total{op="write",errno="ENOSPC"}=3' 'requests_total{op="write"}=4' \
    'requests_total{op="read"}=3' 'transferred_bytes_total{op="write"}=4096' 'up=0' ||
    fail_with "$file" "see above"
truncate -s 64M "$dir/disk.img"

say "$*: names are escaped, also those that are not UTF-8; no name is made up by a client"
mkdir "$dir/exports"
names=('plain' 'quote"d' $'new\nline' 'back\slash' 'größe' $'bad\xffbyte' '{a="b"}')
for name in "${names[@]}"; do truncate -s 1M "$dir/exports/$name"; done
start server dir="$dir/exports" metrics="$file" metrics-server=alpha "$@"
for name in "${names[@]}"; do
    encoded=$(printf %s "$name" | od -An -v -tx1 | tr -d '\n' | tr ' ' %)
    nbdinfo --size "nbd+unix:///$encoded?socket=$socket"
done
! nbdinfo --size "nbd+unix:///nothing?socket=$socket" 2>/dev/null || fail "an export that is none"
stop
promtool check metrics <"$file" || fail_with "$file" "promtool"
check names "$file" 'plain' 'quote"d' $'new\nline' 'back\slash' 'größe' 'bad\xffbyte' '{a="b"}' ||
    fail_with "$file" "see above"

say "$*: a second server on the same file is refused, until the first one has ended or was killed"
start server "$dir/disk.img" metrics="$file" "$@"
wait_for 10 written_again "$file"
refused "metrics=.*: another server writes this file" "$dir/disk.img" metrics="$file" "$@"
wait_for 10 written_again "$file" # and the first one goes on
kill -9 "$(cat "$pid_file")"
wait "$pid" 2>/dev/null || true
start server "$dir/disk.img" metrics="$file" "$@"
wait_for 10 written_again "$file"
stop
refused "metrics=.*: not a regular file" "$dir/disk.img" metrics="$dir/m" "$@"
refused "metrics-server=a: needs metrics=FILE" "$dir/disk.img" metrics-server=a "$@"
refused "metrics=: the name is empty" "$dir/disk.img" metrics= "$@"

# costs_one_line WHY: requests are served, and the log has one line.
costs_one_line() {
    wait_for 10 grep -q "metrics=.*: not written: $1" "$log"
    "$python" -c 'import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pwrite(bytes(4096), 0); h.flush(); h.shutdown()' "$uri"
    sleep 2.5 # two more attempts
    [ "$(grep -c "not written" "$log")" = 1 ] || fail_with "$log" "more than one line"
}
say "$*: a directory that is missing, and appears"
start server "$dir/disk.img" metrics="$dir/later/aiodisk.prom" "$@"
costs_one_line "No such file or directory"
mkdir "$dir/later"
wait_for 10 test -s "$dir/later/aiodisk.prom"
stop

say "$*: a directory that is full, and is emptied"
make_fs tmpfs 64k
head -c 60k /dev/zero >"$mnt/fill"
start server "$dir/disk.img" metrics="$mnt/aiodisk.prom" "$@"
fill() { while head -c 4096 /dev/zero >>"$mnt/fill" 2>/dev/null; do :; done; }
fill
wait_for 10 grep -q "not written: No space left on device" "$log"
rm "$mnt/fill"
inode=
wait_for 10 written_again "$mnt/aiodisk.prom"
stop
[ ! -e "$mnt/aiodisk.prom.tmp" ] || fail "the unfinished file was left behind"
