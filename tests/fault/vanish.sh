#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The storage below one of two exports vanishes: the FUSE server behind its file is killed, and each
# call gets ENOTCONN.  The client gets EIO for every request, each with a line in the log, and a new
# client is refused; the other export is served as before.  When the clients have left, the server
# has the descriptors and threads of before.  When the storage is back, reads and writes are served
# again, what had been flushed is there, and a flush tells the truth.
# vanish.sh PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
need_root "a FUSE mount"
[ -e /dev/fuse ] || skip "no /dev/fuse"

mkdir "$dir/exports"
truncate -s 8M "$dir/exports/good" "$dir/backing.img"
: >"$dir/exports/lost"
nbdkit -f -U "$dir/backing.sock" -P "$dir/backing.pid" file "$dir/backing.img" &
pids+=($!)
wait_for 20 test -s "$dir/backing.pid"
mounts+=("$dir/exports/lost" "$dir/exports/lost") # the vanished one, and the one after it

cat >"$dir/vanish.py" <<'P'
import errno, nbd, os, subprocess, sys
from servers import Server, held, wait_until

directory, plugin, *parameters = sys.argv[1:]
lost_path = directory + "/exports/lost"
MiB = 1 << 20


def mount():
    fuse = subprocess.Popen(["nbdfuse", lost_path, "--unix", directory + "/backing.sock"],
                            stdin=subprocess.DEVNULL)
    wait_until(lambda: os.path.ismount(lost_path) and os.path.getsize(lost_path) > 0, "nbdfuse")
    return fuse


def fails(call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == errno.EIO, f"{call.__name__}: {error}"
        return
    raise AssertionError(f"{call.__name__} succeeded")


def refused(name):
    try:
        server.connect(name)
    except nbd.Error:
        return
    raise AssertionError("a client was accepted")


def use(h, byte):
    h.pwrite(byte * 5000, 4 * MiB + 300)
    h.flush()
    assert h.pread(5000, 4 * MiB + 300) == byte * 5000


fuse = mount()
server = Server(directory, "-t", "4", plugin, "dir=" + directory + "/exports", *parameters)
h = server.connect("good")
use(h, b"g")
h.shutdown()
pid = server.process.pid
wait_until(lambda: held(pid)[0] == 2, "the first client to be gone")
before = held(pid)

good, lost = server.connect("good"), server.connect("lost")
use(lost, b"1")
fuse.kill()
fuse.wait()
fails(lost.pread, 4096, 6 * MiB)
fails(lost.pwrite, b"2" * 5000, 4 * MiB + 300)
fails(lost.pwrite, b"2" * 5000, 4 * MiB + 300, nbd.CMD_FLAG_FUA)
fails(lost.zero, 65536, 4 * MiB)
fails(lost.zero, 65536, 4 * MiB, nbd.CMD_FLAG_NO_HOLE)
fails(lost.flush)
fails(lost.flush)
refused("lost")
use(good, b"h")
text = server.read_log()
for operation in "read of 4096", "write of 5000", "zero of 65536", "flush of":
    assert any(operation in line and "Transport endpoint is not connected" in line
               for line in text.splitlines()), f"no line about {operation}:\n{text}"
lost.shutdown()
good.shutdown()
wait_until(lambda: held(pid) == before, f"{before} threads and descriptors, not {held(pid)}")

subprocess.run(["umount", "-l", lost_path], check=True)
fuse = mount()
lost = server.connect("lost")
assert lost.pread(5000, 4 * MiB + 300) == b"1" * 5000, "flushed bytes are gone"
lost.pwrite(b"3" * 5000, 4 * MiB + 300)
assert lost.pread(5000, 4 * MiB + 300) == b"3" * 5000
# Whether it is the disk that has failed is a matter of its device number and inode.
if "a sync failed" in server.read_log():
    try:
        lost.flush()
        flushed = True
    except nbd.Error:
        flushed = False
else:
    lost.flush()
    flushed = True
print(f"   back again; the disk {'is another one' if flushed else 'counts as failed'}")
lost.shutdown()
wait_until(lambda: held(pid) == before, f"{before} threads and descriptors, not {held(pid)}")
server.stop()
with open(directory + "/backing.img", "rb") as f:
    f.seek(4 * MiB + 300)
    assert not flushed or f.read(5000) == b"3" * 5000, "a flushed write is not there"
subprocess.run(["umount", lost_path], check=True)
fuse.wait()
P
say "$*"
"$python" "$dir/vanish.py" "$dir" "$plugin" "$@" || fail_with "$dir/server.log" "see above"
