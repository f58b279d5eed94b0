# SPDX-License-Identifier: BSD-3-Clause
"""The clients of hostile.sh: garbage and half-valid NBD, beside a good client.

hostile.py DIRECTORY PLUGIN TARGET SECONDS SEED [PARAMETER...]

The first half of the disk is the hostile clients'; the good client writes to the second half, and
reads there what it has written.  Hostile requests are kept out of the second half unless the server
must refuse them, for a hostile client that may write may destroy any data.
"""
import os
import random
import signal
import socket
import struct
import sys
import threading
import time

import nbd

from servers import Server, wait_until

directory, plugin, target, seconds, seed = sys.argv[1:6]
parameters = sys.argv[6:]
SIZE = os.path.getsize(target)
HALF = SIZE // 2
CLIENTS = 6
IHAVEOPT = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
OFFSET_FIELD, HEADER = 16, 28  # bytes of a request before its offset, and in its header
rnd = random.Random(int(seed))


def connect(server):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(server.socket)
    return s


def receive(s, length):
    data = b""
    while len(data) < length:
        more = s.recv(length - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def option(number, data=b""):
    return struct.pack(">QII", IHAVEOPT, number, len(data)) + data


def handshake(s):
    """Until the server waits for requests: fixed newstyle, without zeroes, NBD_OPT_EXPORT_NAME."""
    receive(s, 18)
    s.sendall(struct.pack(">I", 3) + option(1))
    receive(s, 10)


def garbage(server):
    with connect(server) as s:
        s.sendall(rnd.randbytes(rnd.randrange(1, 4096)))


def broken_option(server):
    """Options of random number and length, cut anywhere."""
    with connect(server) as s:
        receive(s, 18)
        s.sendall(struct.pack(">I", rnd.choice([0, 1, 3, rnd.getrandbits(32)])))
        for _ in range(rnd.randrange(1, 8)):
            data = rnd.randbytes(rnd.choice([0, 1, 4, 100]))
            message = option(rnd.choice([1, 2, 3, 5, 6, 7, 8, 9, 10, rnd.getrandbits(32)]), data)
            if rnd.random() < 0.3:
                message = message[:12] + rnd.randbytes(4) + message[16:]
            s.sendall(message[:rnd.randrange(1, len(message) + 1)])


def cut_handshake(server):
    with connect(server) as s:
        message = struct.pack(">I", 3) + option(1, b"name") + rnd.randbytes(28)
        s.sendall(message[:rnd.randrange(len(message))])


def request(kind, flags, offset, length):
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, rnd.getrandbits(64), offset, length)


def random_request():
    """Mostly valid.  A write carries its data, or less."""
    kind = rnd.choice([0, 0, 1, 1, 3, 4, 5, 6, 7, rnd.randrange(65536)])
    flags = rnd.choice([0, 0, 0, 1, 2, 4, 8, 16, rnd.getrandbits(16)])
    length = rnd.choice([0, 1, 511, 512, 4096, 65537, rnd.randrange(1 << 20)])
    offset = rnd.randrange(HALF - min(length, HALF - 1))
    way = rnd.random()
    if way < 0.15:  # beyond the end: refused
        offset, length = rnd.choice([(SIZE, length or 1), (rnd.getrandbits(64) | 1 << 63, length),
                                     (SIZE - 1, 1 << 31), ((1 << 64) - 1, 4096)])
    elif way < 0.2 and kind != 1:  # a read that is too long is refused; others end at the size
        length = rnd.choice([(1 << 32) - 1, 1 << 31, (64 << 20) + 1])
        offset = SIZE - 1
    data = rnd.randbytes(min(length, 1 << 17)) if kind == 1 else b""
    return request(kind, flags, offset, length) + data


def requests(server):
    """A valid handshake, then requests; the client leaves with requests in flight, or in one."""
    with connect(server) as s:
        handshake(s)
        for _ in range(rnd.randrange(1, 30)):
            message = random_request()
            if rnd.random() < 0.1:
                cut = rnd.randrange(len(message))
                s.sendall(message[:cut])
                # Random bytes in place of the last part of a header could make a valid trim of the
                # good client's data.
                if not OFFSET_FIELD < cut < HEADER and rnd.random() < 0.5:
                    s.sendall(rnd.randbytes(100))
                break
            s.sendall(message)
            if rnd.random() < 0.5:
                s.setblocking(False)
                try:
                    s.recv(1 << 16)
                except BlockingIOError:
                    pass
                s.settimeout(10)
        if rnd.random() < 0.3:
            s.shutdown(socket.SHUT_WR)


def crowd(server):
    """Connections that say nothing."""
    held = [connect(server) for _ in range(rnd.randrange(1, 30))]
    for s in held:
        s.close()


def hostile(server, end, counts):
    ways = [garbage, broken_option, cut_handshake, requests, requests, requests, crowd]
    while time.monotonic() < end and not server.ended():
        way = rnd.choice(ways)
        try:
            way(server)
        except OSError:
            pass  # the server has closed the connection, as it may
        counts[way.__name__] = counts.get(way.__name__, 0) + 1


def is_nbdkits_own_abort(server):
    """nbdkit up to 1.32.5 aborts if a client leaves with parallel requests on a connection."""
    log = server.read_log()
    return server.process.returncode == -signal.SIGABRT and "sock >= 0" in log and \
        "connections.c" in log and "Sanitizer" not in log


def write(server, h, content, offset, data):
    """Writes; if the server ends meanwhile, each byte is the old one or the new one."""
    part = slice(offset - HALF, offset - HALF + len(data))
    found = data
    try:
        h.pwrite(data, offset)
    except nbd.Error:
        wait_until(server.ended, "the end of a server that refuses a good client", 10)
        with open(target, "rb") as file:
            file.seek(offset)
            found = file.read(len(data))
        assert all(byte in pair for byte, *pair in zip(found, content[part], data)), \
            f"neither the old nor the new data at {offset}"
        raise
    finally:
        content[part] = found


def check_good_client(server, content):
    """A good client: writes, reads back, and reads what earlier good clients have written."""
    h = server.connect()
    offset = HALF + rnd.randrange(HALF - 70000)
    data = rnd.randbytes(rnd.choice([1, 512, 4095, 65537]))
    write(server, h, content, offset, data)
    start = rnd.randrange(HALF - 100000)
    assert h.pread(100000, HALF + start) == content[start:start + 100000], \
        f"the good client read wrong data at {HALF + start}"
    h.shutdown()


def one_server(end, content, counts):
    """Returns whether the server died of nbdkit's own abort."""
    server = Server(directory, plugin, target, *parameters)
    threads = [threading.Thread(target=hostile, args=(server, end, counts))
               for _ in range(CLIENTS)]
    good = 0
    try:
        for t in threads:
            t.start()
        while time.monotonic() < end:
            try:
                check_good_client(server, content)
                good += 1
            except nbd.Error:
                # Only a server that is about to end may refuse a good client.
                wait_until(server.ended, "the end of a server that refuses a good client", 10)
                break
    finally:
        for t in threads:
            t.join()
        counts["good"] = counts.get("good", 0) + good
    try:
        if not server.ended():
            check_good_client(server, content)
            server.process.terminate()
    except nbd.Error:
        pass  # the server is about to end, or the wait below fails
    aborted = server.process.wait(30) != 0
    assert not aborted or is_nbdkits_own_abort(server), \
        f"nbdkit ended with status {server.process.returncode}"
    log = server.read_log()
    assert "Sanitizer" not in log and "runtime error" not in log, "a sanitizer found an error"
    return aborted


def main():
    end = time.monotonic() + float(seconds)
    content = bytearray(SIZE - HALF)
    counts, aborts = {}, 0
    while time.monotonic() < end:
        aborts += one_server(end, content, counts)
    assert counts["good"] > 0 and counts["requests"] > 0
    print(f"seed {seed}: {counts}; nbdkit's own abort: {aborts} times")


main()
