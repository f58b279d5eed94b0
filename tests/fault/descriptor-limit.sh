#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A server that reaches RLIMIT_NOFILE goes on.  Exports of dir= are opened until one is refused for
# want of descriptors: the clients before it read, write and flush as before, a further connection
# to an open export is served, and when the clients have left, the refused export can be opened.
# Then connections to one export take every descriptor that is left.  Afterwards the server has the
# descriptors of before.
# descriptor-limit.sh PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
mkdir "$dir/exports"
for i in {0..199}; do truncate -s 1M "$dir/exports/$i"; done

cat >"$dir/limit.py" <<'P'
import nbd, os, resource, sys
from servers import Server, held, wait_until

LIMIT, EXPORTS, MOST = 256, 200, 400  # descriptors; exports; connections that are tried
directory, plugin, *parameters = sys.argv[1:]
server = Server(directory, "-t", "1", plugin, "dir=" + directory + "/exports", *parameters)
pid = server.process.pid


def use(h, number):
    data = os.urandom(3000)
    h.pwrite(data, 1000 + number * 10)
    assert h.pread(3000, 1000 + number * 10) == data
    h.flush()


def leave(handles):
    for h in handles:
        h.shutdown()
    wait_until(lambda: held(pid) == before, f"{before} threads and descriptors, not {held(pid)}")


def connect(name):
    """Returns the handle, or None if the server did not accept the client within a second."""
    h = nbd.NBD()
    h.set_export_name(str(name))
    try:
        h.aio_connect_unix(server.socket)
        while h.aio_is_connecting():
            if h.poll(1000) == 0:
                return None
    except nbd.Error:
        return None
    return h if h.aio_is_ready() else None


first = server.connect("0")
use(first, 0)
first.shutdown()
wait_until(lambda: held(pid)[0] == 2, "the first client to be gone")
before = held(pid)
# The server has raised its soft limit to the hard one.
resource.prlimit(pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
for round in range(3):
    handles = []
    for name in range(EXPORTS):
        h = connect(name)
        if not h:
            break
        handles.append(h)
    refused = len(handles)
    assert 5 < refused < EXPORTS, f"{refused} exports were opened"
    for i, h in enumerate(handles):
        use(h, i)
    assert "Too many open files" in server.read_log(), server.read_log()
    again = connect(0)
    assert again, "no further connection to an open export"
    use(again, 0)
    leave(handles + [again])
    h = connect(refused)
    assert h, "the refused export cannot be opened after the clients have left"
    use(h, 0)
    leave([h])
    print(f"   round {round}: {refused} exports open, the next refused, and opened later")

handles = []
while len(handles) < MOST:
    h = connect(0)
    if not h:
        break
    handles.append(h)
print(f"   {len(handles)} connections to one export; {held(pid)[1]} descriptors of {LIMIT}")
assert len(handles) < MOST and held(pid)[1] >= LIMIT - 8
for i, h in enumerate(handles):
    use(h, i % 100)
leave(handles)
h = server.connect("1")
use(h, 1)
leave([h])
server.stop()
P
say "$*"
"$python" "$dir/limit.py" "$dir" "$plugin" "$@" || fail_with "$dir/server.log" "see above"
