#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A server that runs out of descriptors while it opens an image refuses the client, and leaves no
# descriptor behind.  A failure of the open with O_DIRECT for that reason is an error: it does not
# mean that the filesystem has no O_DIRECT, so the page cache is not used instead.
. "$(dirname "$0")/../lib/functions.sh"
cat >"$dir/few.py" <<'P'
import nbd, os, resource, sys
from servers import Server, wait_until

directory, plugin, source, *parameters = sys.argv[1:]
MOST = 40  # free descriptors with which the image can be opened in any case
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
inherited = [int(source[3:])] if source.startswith("fd=") else []
server = Server(directory, "-v", plugin, source, *parameters, pass_fds=inherited)
pid = server.process.pid
refused = {}


def descriptors():
    return {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}


def links():
    return {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in descriptors()}


def leave_free(count):
    """Lowers the limit until only so many descriptors can be opened; or restores the limit."""
    used, number = descriptors(), 0
    while count > 0 or number in used:
        count -= number not in used
        number += 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (number, limit[1]))


def connect(count):
    """Connects, and asks for the export when so many descriptors are free."""
    seen = len(server.read_log())
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_unix(server.socket)
    leave_free(count)
    try:
        h.opt_go()
        h.pwrite(b"x" * 1000, 300)
        h.flush()
        served = True
        h.shutdown()
    except nbd.Error:
        served = False
        h.opt_abort()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    log = server.read_log()[seen:]
    what = f"{count} free descriptors: "
    if served:
        assert ", O_DIRECT, " in log, what + "the page cache is used:\n" + log
    else:
        reasons = [line for line in log.splitlines() if " error: " in line]
        assert reasons and "Too many open files" in reasons[0], what + "no reason:\n" + log
        refused[count] = reasons[0]
    assert "cache=none is not possible" not in log, what + log
    try:
        wait_until(lambda: descriptors() == before, what + "the descriptors to be closed", 10)
    except AssertionError:
        sys.exit(f"{what}descriptors {before} became {links()}")
    return served


# One client comes and goes before the count: nbdkit may still have its pid file open until then.
server.connect().shutdown()
wait_until(lambda: len(os.listdir(f"/proc/{pid}/task")) == 2, "the first client to be gone")
before = descriptors()
resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit[1], limit[1]))
assert connect(MOST), "the image cannot be opened at all:\n" + server.read_log()
served = [connect(count) for count in range(MOST)]
assert served[-1] and not served[0]
# 0: the path; 1: for writing; 2: with O_DIRECT; then the descriptors for flushes and the threads.
# With fd= there is no path.
direct = 1 if inherited else 2
assert "cannot be measured: Too many open files" in refused[direct], refused
print(f"refused with up to {max(refused)} free descriptors")
server.stop()
P

truncate -s 1M "$dir/image"
exec 7<>"$dir/image"
for source in "$dir/image" fd=7; do
    for backend in threads io_uring libaio; do
        say "$source, backend=$backend"
        "$python" "$dir/few.py" "$dir" "$plugin" "$source" backend=$backend cache=none ||
            fail_with "$dir/server.log" "$source, backend=$backend"
    done
done
