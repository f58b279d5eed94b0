#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The client of dir.sh.

usage: dir.py SOCKET PID LOG DIRECTORY [many]
"""
import errno
import os
import signal
import stat
import sys
import threading
import time

import nbd

from servers import wait_until

socket, pid, log, directory = sys.argv[1:5]
AT_ONCE = 5  # seconds: an operation that takes longer hangs, even on a busy machine
MANY = 100


def read_log():
    with open(log, errors="replace") as f:
        return f.read()


def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(socket)
    return h


def listed():
    found = {}
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_unix(socket)
    h.opt_list(lambda name, description: found.__setitem__(name, description))
    h.opt_abort()
    return found


def expected():
    """Returns the expected exports of the directory: name -> description."""
    found = {}
    for name in os.listdir(directory):
        if name.startswith("link-"):
            continue
        st = os.stat(os.path.join(directory, name))
        if stat.S_ISREG(st.st_mode):
            found[name] = f"file, {st.st_size} bytes"
        elif stat.S_ISBLK(st.st_mode):
            found[name] = "block device"
    return found


def is_refused(name, why):
    """The server refuses the name within AT_ONCE, and logs one line with the reason."""
    before, start = read_log().count("error: "), time.monotonic()
    try:
        connect(name)
        sys.exit(f"'{name}' is served")
    except nbd.Error:
        pass
    took = time.monotonic() - start
    assert took < AT_ONCE, f"'{name}' was refused after {took:.1f} s"
    lines = [line for line in read_log().splitlines() if "error: " in line][before:]
    assert len(lines) == 1 and why in lines[0], f"'{name}': expected one line with '{why}': {lines}"


def descriptors_of(path):
    """Returns how many descriptors the server has open on the file."""
    st, count = os.stat(path), 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            other = os.stat(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        count += (st.st_dev, st.st_ino) == (other.st_dev, other.st_ino)
    return count


def check_list():
    want = expected()
    assert listed() == want, f"listed:\n{listed()}\nexpected:\n{want}"
    for name, what in want.items():
        h = connect(name)
        path = os.path.join(directory, name)
        if what.startswith("file"):
            assert h.get_size() == os.stat(path).st_size, name
        else:
            assert h.get_size() == 5 << 20, name
        if h.get_size() > 0:
            # Each export is the file of its own name.
            h.pwrite(name.encode()[:100], 100)
            h.flush()
            with open(path, "rb") as f:
                f.seek(100)
                assert f.read(len(name.encode()[:100])) == name.encode()[:100], name
        h.shutdown()
    # A link to a file in the directory is served as that file.  symlinks.sh has the other modes.
    h = connect("link")
    assert h.pread(5, 100) == b"plain"
    h.shutdown()
    print(f"{len(want)} exports")


def check_refusals():
    outside = "only what lies in the directory itself"
    for name in ("../exports.other/secret", "../exports/plain", "folder/inner", "./plain",
                 "/etc/passwd", "/" + directory + "/plain", "..", ".", "/", "plain/"):
        is_refused(name, outside)
    for name, why in {
            "": "named no export", "missing": "No such file", "n" * 256: "too long",
            "link-out": "leads out", "link-absolute": "leads out", "link-winding": "leads out",
            "link-dangling": "No such file", "link-loop": "symbolic links",
            "link-fifo": "is a FIFO", "link-magic": "", "fifo": "is a FIFO",
            "socket": "is a socket", "null": "is a character device",
            "folder": "is a directory"}.items():
        is_refused(name, why)
    # A client cannot write lines of its own into the log, nor send commands to a terminal.
    is_refused("x\nforged\x1b[31m\x9b\\é", r"no export 'x\nforged\x1b[31m\xc2\x9b\\é': No such")
    print("every name that is no export is refused")


def check_coming_and_going():
    path = os.path.join(directory, "comes")
    is_refused("comes", "No such file")
    with open(path, "wb") as f:
        f.write(b"1" * 4096)
    assert listed()["comes"] == "file, 4096 bytes"
    first = connect("comes")
    os.unlink(path)
    assert "comes" not in listed()
    is_refused("comes", "No such file")
    first.pwrite(b"2" * 100, 0)
    first.flush()
    assert first.pread(4096, 0) == b"2" * 100 + b"1" * 3996, "the client lost its removed file"
    # A new file of the same name is another disk; the first client keeps the old file.
    with open(path, "wb") as f:
        f.write(b"3" * 512)
    second = connect("comes")
    assert (second.get_size(), second.pread(512, 0)) == (512, b"3" * 512)
    second.pwrite(b"4" * 512, 0)
    assert first.pread(512, 0) == b"2" * 100 + b"1" * 412
    first.shutdown()
    # A file that is renamed over the old one is another disk.
    with open(path + ".new", "wb") as f:
        f.write(b"5" * 1024)
    os.rename(path + ".new", path)
    third = connect("comes")
    assert third.pread(1024, 0) == b"5" * 1024 and second.pread(512, 0) == b"4" * 512
    # The file grows: a new client sees the new size.
    os.truncate(path, 2048)
    fourth = connect("comes")
    assert fourth.get_size() == 2048
    for h in (second, third, fourth):
        h.shutdown()
    wait_until(lambda: descriptors_of(path) == 0, "the image to be closed after its last client")
    os.unlink(path)
    print("files appear and disappear")


def check_restless():
    """Names appear, change type and disappear while clients list and connect; no client hangs."""
    stop, errors = threading.Event(), []

    def change(number):
        path = os.path.join(directory, f"restless {number}")
        while not stop.is_set():
            with open(path, "wb") as f:
                f.truncate(8192)
            os.rename(path, path + " moved")
            os.mkfifo(path)
            os.unlink(path)
            os.unlink(path + " moved")

    def use(number):
        served = 0
        try:
            end = time.monotonic() + AT_ONCE * 4
            while served < 20:
                assert time.monotonic() < end, f"restless {number}: served {served} times only"
                listed()
                try:
                    h = connect(f"restless {number}")
                except nbd.Error as error:
                    assert error.errnum == errno.ENOENT, error  # NBD's answer for an unknown name
                    continue
                # The size is 0 between the creation of the file and its truncate.
                assert h.get_size() in (0, 8192), h.get_size()
                if h.get_size():
                    assert h.pread(512, 4096) == bytes(512)
                served += 1
                h.shutdown()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=change, args=(n,)) for n in range(2)]
    users = [threading.Thread(target=use, args=(n,)) for n in range(2)]
    for thread in threads + users:
        thread.start()
    for thread in users:
        thread.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    print("names change while clients connect")


def check_two_names():
    """Two hard links are one disk: no lock conflict, and no partial write of either is lost."""
    first, second = connect("first"), connect("second")
    path = os.path.join(directory, "first")
    pairs = [(first, b"a"), (second, b"b")]
    results = []
    # Each 100 bytes are written through the other name than the 100 bytes before.
    for at in range(0, 100000, 200):
        for i, (h, byte) in enumerate(pairs):
            buf = nbd.Buffer.from_bytearray(bytearray(byte * 100))
            h.aio_pwrite(buf, at + 100 * i, lambda error: results.append(error.value) or 1)
    while len(results) < 1000:
        for h, _ in pairs:
            h.poll(1)
    assert not any(results), results
    want = (b"a" * 100 + b"b" * 100) * 500
    assert first.pread(100000, 0) == want and second.pread(100000, 0) == want, \
        "a read through one name misses writes through the other"
    # multi-conn: a flush through one name covers the writes through the other.
    assert first.can_multi_conn() and second.can_multi_conn()
    first.flush()
    with open(path, "rb") as f:
        assert f.read(100000) == want
    second.zero(50000, 0)
    assert first.pread(50000, 0) == bytes(50000)
    first.shutdown()
    assert second.pread(100, 60000) == b"a" * 100
    second.shutdown()
    wait_until(lambda: descriptors_of(path) == 0,
               "the image to be closed after the last client of both names")
    print("two names are one disk")


def check_many():
    want = {f"export {i}": f"file, {65536 + i} bytes" for i in range(1000)}
    assert listed() == want, "the list is not the expected 1,000 exports"
    names = list(want)[::1000 // MANY]
    handles, lock = {}, threading.Lock()

    def connect_each(some):
        for name in some:
            h = connect(name)
            with lock:
                handles[name] = h

    threads = [threading.Thread(target=connect_each, args=(names[i::4],), daemon=True)
               for i in range(4)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 30
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    assert len(handles) == MANY, \
        f"only {len(handles)} of {MANY} clients were served within 30 s: {read_log()[-500:]}"
    results = []
    for name, h in handles.items():
        buf = nbd.Buffer.from_bytearray(bytearray(name.encode().ljust(512)))
        h.aio_pwrite(buf, 60000, lambda error: results.append(error.value) or 1,
                     nbd.CMD_FLAG_FUA)
    while len(results) < MANY:
        for h in handles.values():
            h.poll(0)
    assert not any(results), results
    for name, h in handles.items():
        assert h.pread(512, 60000) == name.encode().ljust(512), name
        with open(os.path.join(directory, name), "rb") as f:
            f.seek(60000)
            assert f.read(512) == name.encode().ljust(512), name
    assert listed() == want
    for h in handles.values():
        h.shutdown()
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) < 40,
               "the images to be closed after their clients")
    print(f"{MANY} clients at once")


signal.alarm(60)  # ends this client if it hangs
if sys.argv[5:] == ["many"]:
    check_many()
else:
    check_list()
    check_refusals()
    check_coming_and_going()
    check_restless()
    check_two_names()
    wait_until(lambda: descriptors_of(os.path.join(directory, "disk")) == 0,
               "the disk to be closed")
