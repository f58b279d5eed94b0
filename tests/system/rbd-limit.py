# SPDX-License-Identifier: BSD-3-Clause
"""The client of rbd-users.sh while the OSD is frozen, when each request has a limit of 2 s.

rbd-limit.py SOCKET OSD-PID
"""
import errno
import os
import signal
import sys
import time

import nbd

from servers import freeze

socket, osd = sys.argv[1], int(sys.argv[2])


def connect():
    h = nbd.NBD()
    h.connect_unix(socket)
    return h


def fails_in_time(what, call):
    begin = time.monotonic()
    try:
        call()
    except nbd.Error as e:
        took = time.monotonic() - begin
        print(f"{what}: {e.errno} after {took:.1f} s")
        assert e.errnum == errno.EIO and 1 < took < 15, (e, took)
        return
    raise AssertionError(what + ": no error")


h, other = connect(), connect()
h.pwrite(b"a" * 4096, 0, nbd.CMD_FLAG_FUA)
freeze(osd)
try:
    fails_in_time("a read", lambda: h.pread(4096, 0))
    fails_in_time("a FUA write", lambda: h.pwrite(b"b" * 4096, 0, nbd.CMD_FLAG_FUA))
finally:
    os.kill(osd, signal.SIGCONT)
# What a failed flush covered may be lost: no later flush says otherwise.
for client in (h, other, connect()):
    for call in (client.flush, lambda: client.pwrite(b"c", 0, nbd.CMD_FLAG_FUA)):
        try:
            call()
            raise AssertionError("a flush succeeded after a failed flush")
        except nbd.Error as e:
            assert e.errnum == errno.EIO, e
