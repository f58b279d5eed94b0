#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A client that connects again sees the size that the disk has then, and can use all of it: whether
# the disk is named by file=, dir=, dirfd= or fd=, whether it is a file or a block device, and
# whether another client kept the image open meanwhile.
#
# reconnect.sh file|loop
. "$(dirname "$0")/../lib/functions.sh"
need_root "loop devices and other users"
kind=$1
cd "$dir"

cat >reconnect.py <<'P'
import os, subprocess, sys
import nbd

uri, backing, device, readonly = sys.argv[1:]  # device: the loop device of the file, or empty
KiB, MiB = 1 << 10, 1 << 20
sizes = [2 * MiB, 3 * MiB, MiB, 5 * MiB, 4 * KiB, 2 * MiB]
if not device:
    sizes += [MiB + 1, 3 * MiB + 777, 511, 0, 2 * MiB]


def resize(size):
    os.truncate(backing, size)
    if device:
        subprocess.run(["losetup", "-c", device], check=True)
        # The device's page cache may still have bytes that the file has lost.
        subprocess.run(["blockdev", "--flushbufs", device], check=True)


def connect():
    h = nbd.NBD()
    h.set_full_info(True)  # asks for the description
    h.connect_uri(uri)
    return h


def described(name):
    h, found = nbd.NBD(), {}
    h.set_opt_mode(True)
    h.connect_uri(uri)
    h.opt_list(lambda name, description: found.__setitem__(name, description))
    h.opt_abort()
    return found.get(name, "")


def use(h, size, what):
    assert h.get_size() == size, f"{what}: a new client sees {h.get_size()} bytes, not {size}"
    description = h.get_export_description()
    assert f" {size} bytes" in description, f"{what}: the description is {description}"
    for at in {0, max(size - 5000, 0), max(size - 512, 0), max(size - 1, 0)}:
        count = min(5000, size - at)
        if count == 0:
            continue
        if not readonly:
            data = os.urandom(count)
            h.pwrite(data, at)
        with open(device or backing, "rb") as f:
            want = os.pread(f.fileno(), count, at)
        assert readonly or want == data, f"{what}: {count} bytes at {at} were not written"
        assert h.pread(count, at) == want, f"{what}: {count} bytes at {at}"
    # What is written back to a loop device later would make its file grow again.
    h.flush()
    assert os.path.getsize(backing) == size, f"{what}: the size has changed"


for held in False, True:
    resize(sizes[-1])
    holder = connect() if held else None
    for size in sizes:
        resize(size)
        h = connect()
        what = f"{size} bytes, " + ("the image is open" if held else "nobody was connected")
        use(h, size, what)
        name = h.get_export_name()
        if name and not device:
            assert f" {size} bytes" in described(name), f"{what}: the list says {described(name)}"
        h.shutdown()
    if held:
        assert holder.get_size() == sizes[-1]
        assert holder.pread(4096, 0) == connect().pread(4096, 0)
        holder.shutdown()
P

# reconnects NAME ARGUMENTS...: a server with these ARGUMENTS has the disk under this export name.
reconnects() {
    local export=$1 cache readonly=""
    shift
    [ "$1" != -r ] || readonly=-r
    for cache in default none; do
        say "$* cache=$cache"
        start server "$@" cache=$cache
        "$python" reconnect.py "nbd+unix:///$export?socket=$socket" "$dir/disk.img" "$device" \
            "$readonly" || fail_with "$log" "reconnect.py failed"
        stop
    done
}

truncate -s 2M disk.img
mkdir exports links
if [ "$kind" = loop ]; then
    make_loop "$dir/disk.img"
    mknod exports/disk b "$(stat -c 0x%t "$loop")" "$(stat -c 0x%T "$loop")"
    ln -s "$loop" links/disk
    device=$loop target=$loop
else
    ln disk.img exports/disk
    ln -s "$dir/disk.img" links/disk
    device="" target=disk.img
fi
exec 7<>"$target" 8<exports
reconnects "" "$target"
reconnects "" -r "$target"
reconnects disk dir=exports
reconnects disk dirfd=8
reconnects disk dir=links symlinks=anywhere
reconnects "" fd=7
for backend in $(working_backends); do
    [ "$backend" = threads ] || reconnects "" "$target" "backend=$backend"
done
[ "$kind" = file ] || exit 0

# The server cannot open the file itself and uses duplicates of the descriptor.
say "fd=, for a user without rights on the file"
truncate -s 2M disk.img
chmod 600 disk.img
chmod 755 "$dir"
cp "$plugin" plugin.so
mkdir -m 777 nobody
setpriv --reuid=nobody --clear-groups nbdkit -f -v -U nobody/sock -P nobody/pid ./plugin.so fd=7 \
    2>nobody.log &
pids+=($!)
wait_for 20 test -s nobody/pid
"$python" reconnect.py "nbd+unix:///?socket=$dir/nobody/sock" "$dir/disk.img" "" "" ||
    fail_with nobody.log "reconnect.py failed"
