#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# An image in the lower layer of an overlayfs.  The first open for writing copies the file up, which
# gives it another birth time, and on some kernels another device and inode number.  All clients
# must nevertheless share one image: a second image would find the locks of the first, "in use by
# another program".
. "$(dirname "$0")/../lib/functions.sh"
need_root mounts

# overlay UPPER LOWER: mounts an overlayfs with these two folders on $over.
over=$dir/over
overlay() {
    mkdir -p "$1/upper" "$1/work" "$over"
    mount -t overlay aiodisk-test "$over" 2>"$dir/err" \
        -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" ||
        skip "overlayfs does not work here: $(cat "$dir/err")"
}
mounts+=("$over")
file_key() { stat -Lc '%d %i %w' "$over/image"; }

cat >"$dir/clients.py" <<'P'
import nbd, sys, threading
uri, count = sys.argv[1], 4
start = threading.Barrier(count)
handles = [nbd.NBD() for _ in range(count)]
errors = []
def connect(h):
    start.wait()
    try:
        h.connect_uri(uri)
    except nbd.Error as error:
        errors.append(error)
threads = [threading.Thread(target=connect, args=[h]) for h in handles]
for t in threads:
    t.start()
for t in threads:
    t.join()
assert not errors, errors[0]
late = nbd.NBD()
late.connect_uri(uri)
handles.append(late)
for i, h in enumerate(handles):
    assert not h.is_read_only()
    h.pwrite(bytes([i + 1]) * 1000, i * 1000 + 17)
    h.flush()
for h in handles:
    assert h.pread(17, 0) == b"l" * 17, "the data of the lower layer"
    for i in range(len(handles)):
        assert h.pread(1000, i * 1000 + 17) == bytes([i + 1]) * 1000
for h in handles:
    h.shutdown()
P

make_fs ext4 64M
mkdir "$dir/lower" "$dir/upper" "$mnt/lower"
for lower in "$dir/lower" "$mnt/lower"; do
    for cache in default none; do
        for source in file dir; do
            say "$source=, cache=$cache, lower layer $([ "$lower" = "$dir/lower" ] &&
                echo "on the same filesystem" || echo "on another filesystem")"
            rm -rf "$dir/upper"
            head -c 8M /dev/zero | tr '\0' l >"$lower/image"
            overlay "$dir/upper" "$lower"
            before=$(file_key)
            if [ $source = file ]; then
                start overlay file="$over/image" cache=$cache
            else
                start overlay dir="$over" cache=$cache
                uri="nbd+unix:///image?socket=$socket"
            fi
            "$python" "$dir/clients.py" "$uri" || fail_with "$log" "the clients failed"
            [ -e "$dir/upper/upper/image" ] || fail "the file was not copied up"
            ! grep -v l "$lower/image" | grep -q . || fail "the lower layer has changed"
            stop
            [ "$(file_key)" != "$before" ] ||
                fail "the copy has the key of the original, so this test proves nothing"
            wait_for 5 umount "$over"
        done
    done
done
