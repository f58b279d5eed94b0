#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# dir= while somebody who may write into the directory attacks: entries are replaced without a pause
# by files, symbolic links that lead out, FIFOs, directories, sockets and hard links, and whole
# folders are swapped for links, while clients open and read them.  No client ever sees a byte of a
# file outside the directory, nothing hangs, and the server has no more descriptors than before.
# dir-attack.sh SECONDS PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
seconds=$1
shift

mkdir "$dir/exports" "$dir/outside"
start server dir="$dir/exports" "$@"
"$python" - "$dir" "$socket" "$(cat "$pid_file")" "$seconds" <<'P' || fail_with "$log" "see above"
import nbd, os, random, socket, sys, threading, time
from servers import held, wait_until

base, server, pid, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
exports, outside = base + "/exports", base + "/outside"
NAMES = [f"disk{i}" for i in range(6)]
SIZE = 8192
failures, opened, refused, swaps = [], [0], [0], [0]
stop = threading.Event()

with open(outside + "/secret", "wb") as f:
    f.write(b"S" * SIZE)
os.mkdir(outside + "/folder")
for name in NAMES:
    os.link(outside + "/secret", f"{outside}/folder/{name}")


def make(path, rng):
    """Makes something at `path`, which does not exist."""
    kind = rng.randrange(8)
    if kind < 3:
        with open(path, "wb") as f:
            f.write(b"I" * SIZE)
    elif kind == 3:
        os.symlink(outside + "/secret", path)
    elif kind == 4:
        os.symlink("../outside/secret", path)
    elif kind == 5:
        os.mkfifo(path)
    elif kind == 6:
        os.mkdir(path)
    else:
        os.symlink("/proc/self/root" + outside + "/secret", path)


def attack(seed):
    rng = random.Random(seed)
    while not stop.is_set():
        new, target = f"{exports}/.new{seed}", f"{exports}/{rng.choice(NAMES)}"
        make(new, rng)
        try:
            os.rename(new, target)
        except OSError:  # a directory is in the way, or is to replace a file
            try:
                os.rmdir(target)
            except OSError:
                pass
        for path in (new, target) if rng.random() < 0.3 else (new,):
            try:
                os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else \
                    os.unlink(path)
            except OSError:
                pass
        swaps[0] += 1


def client(seed):
    rng = random.Random(seed)
    while not stop.is_set():
        h = nbd.NBD()
        h.set_export_name(rng.choice(NAMES + ["../outside/secret", "disk0/../../outside/secret"]))
        try:
            h.connect_unix(server)
        except nbd.Error:
            refused[0] += 1
            continue
        opened[0] += 1
        try:
            data = h.pread(h.get_size(), 0) if h.get_size() else b""
        except nbd.Error:  # the file was written to a moment ago, and is shorter
            data = b""
        if b"S" in data:
            failures.append("a client has read a file outside the directory")
            stop.set()
        h.shutdown()


make_first = open(f"{exports}/first", "wb")
make_first.write(b"I" * SIZE)
make_first.close()
h = nbd.NBD()
h.set_export_name("first")
h.connect_unix(server)
h.shutdown()
wait_until(lambda: held(pid)[0] == 2, "the first client to be gone")
before = held(pid)
threads = [threading.Thread(target=attack, args=(i,)) for i in range(2)] + \
          [threading.Thread(target=client, args=(100 + i,)) for i in range(8)]
for t in threads:
    t.start()
stop.wait(seconds)
stop.set()
for t in threads:
    t.join(60)
    assert not t.is_alive(), "a client or the attacker hangs"
print(f"{swaps[0]} swaps, {opened[0]} opens, {refused[0]} refusals")
assert not failures, failures[0]
assert opened[0] > 10 and refused[0] > 10, "the clients and the attack did not meet"
wait_until(lambda: held(pid) == before, f"{before} threads and descriptors, as before")
P
stop
