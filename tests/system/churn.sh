#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Clients that come and go leave nothing behind: after many opens and closes of many images the
# server has the threads, descriptors and memory that it had after the first round of them.
#
# churn.sh OPENS ROUNDS PARAMETERS...
#
# The first round, the warm-up, brings everything to its size that the server keeps: malloc's
# arenas, cached stacks and bounce buffers at rest.
. "$(dirname "$0")/../lib/functions.sh"
opens=$1 rounds=$2
shift 2
# This is the usual limit; images that were not closed would use it up.
ulimit -n 1024
mkdir "$dir/exports"
for i in {0..99}; do truncate -s 1M "$dir/exports/$i"; done

cat >"$dir/churn.py" <<'P'
import nbd, random, sys, threading
from servers import Server, held, wait_until

CLIENTS, EXPORTS = 8, 100
# KiB.  malloc fills its arenas a little more with each round: 0.5 MiB more were seen after 6 rounds
# of 1000 opens, also with nbdkit's file plugin, and no more after 30 rounds.  A struct image (640
# bytes) that each open loses exceeds this limit after 2000 opens.
GROWTH = 768
directory, opens, rounds, plugin, *parameters = sys.argv[1:]
opens, rounds = int(opens), int(rounds)
server = Server(directory, "-t", "4", plugin, "dir=" + directory + "/exports", *parameters)
pid = server.process.pid
failures = []


def memory():
    """Returns the KiB of memory that no file backs."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))


def use(rng, number):
    """Opens an export, once or twice, and uses the image; each client has a part of its own."""
    name = str(rng.randrange(EXPORTS))
    offset = number * 100000 + rng.randrange(1000)
    data = rng.randbytes(rng.choice([100, 4096, 50000]))
    handles = [server.connect(name) for _ in range(rng.choice([1, 1, 2]))]
    handles[0].pwrite(data, offset)
    assert handles[-1].pread(len(data), offset) == data, "other data"
    rng.choice([lambda: None, handles[-1].flush, lambda: handles[0].cache(65536, 0),
                lambda: handles[0].zero(5000, offset), lambda: handles[0].trim(65536, offset)])()
    for h in handles:
        # Without shutdown the client vanishes, as it does when it is killed.
        if rng.random() < 0.8:
            h.shutdown()
    return len(handles)


def client(number, seed):
    rng = random.Random(seed)
    todo = opens / CLIENTS
    try:
        while todo > 0 and not failures:
            todo -= use(rng, number)
    except (nbd.Error, AssertionError) as failure:
        failures.append(failure)


def one_round(number):
    threads = [threading.Thread(target=client, args=[i, number * CLIENTS + i])
               for i in range(CLIENTS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures[0]
    wait_until(lambda: held(pid) == idle,
               f"round {number}: the {idle} threads and descriptors of a server without clients")


server.connect("0").shutdown()
wait_until(lambda: held(pid)[0] == 2, "the first client to be gone")
idle = held(pid)
one_round(0)
warm = memory()
print(f"{opens} opens: {idle[0]} threads, {idle[1]} descriptors, {warm} KiB")
for number in range(1, rounds + 1):
    one_round(number)
    print(f"round {number}: {memory()} KiB")
assert memory() <= warm + GROWTH, f"the memory grew from {warm} to {memory()} KiB"
server.stop()
P
"$python" "$dir/churn.py" "$dir" "$opens" "$rounds" "$plugin" "$@" ||
    fail_with "$dir/server.log" "churn.py failed"
