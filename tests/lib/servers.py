# SPDX-License-Identifier: BSD-3-Clause
"""The common part of the Python clients: an nbdkit server, polling, and self-describing blocks.

tests/lib/functions.sh puts this folder into PYTHONPATH.
"""
import os
import pty
import select
import signal
import struct
import subprocess
import time

import nbd


def wait_until(condition, what, seconds=30):
    """Repeats condition() until the result is true; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the time limit expired while waiting for " + what
        time.sleep(0.002)


def freeze(pid):
    """Stops a process.  On a busy machine its threads go on for some time after the signal."""
    def is_stopped():
        states = []
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat") as f:
                states.append(f.read().rsplit(")", 1)[1].split()[0])
        return set(states) == {"T"}

    os.kill(pid, signal.SIGSTOP)
    wait_until(is_stopped, "the process to stop")


def held(pid):
    """The number of threads and of descriptors of a process.

    The kernel's own threads for io_uring come and go as the kernel likes, and do not count.
    """
    threads = 0
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{tid}/comm", encoding="ascii") as comm:
                threads += not comm.read().startswith("iou-")
        except (FileNotFoundError, ProcessLookupError):
            pass
    return threads, len(os.listdir(f"/proc/{pid}/fd"))


def serve_in_terminal(command, *arguments):
    """Starts ./serve in a terminal of its own and waits until it serves.

    Returns the process id, the other side of the terminal, and what was printed.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command, [command, *arguments])
    output = b""
    while b"Ctrl-C stops" not in output:
        output += os.read(terminal, 4096)
    return pid, terminal, output


class Server:
    """An nbdkit in the foreground, with its socket, pid file and log in `directory`."""

    def __init__(self, directory, *arguments, pass_fds=()):
        self.socket = os.path.join(directory, "server.sock")
        self.pidfile = os.path.join(directory, "server.pid")
        self.log = os.path.join(directory, "server.log")
        for path in (self.socket, self.pidfile):
            if os.path.exists(path):
                os.unlink(path)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["nbdkit", "--exit-with-parent", "-f", "-U", self.socket, "-P", self.pidfile,
                 *arguments], stderr=log, pass_fds=pass_fds)
        wait_until(lambda: self.ended() or self.is_ready(), "nbdkit to start")
        assert not self.ended(), "nbdkit did not start: " + self.read_log()

    def is_ready(self):
        return os.path.exists(self.pidfile) and os.path.getsize(self.pidfile) > 0

    def ended(self):
        return self.process.poll() is not None

    def read_log(self):
        # A file of its own: the server's open file would share the position.
        with open(self.log) as log:
            return log.read()

    def connect(self, export=""):
        h = nbd.NBD()
        h.set_export_name(export)
        h.connect_unix(self.socket)
        return h

    def kill(self):
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL, "nbdkit had ended before it was killed"

    def stop(self):
        """Ends the server, checks its exit status and returns its log."""
        self.process.terminate()
        status = self.process.wait(30)
        assert status == 0, f"nbdkit ended with status {status}: {self.read_log()}"
        return self.read_log()


def poll_all(handles, timeout):
    """Waits up to `timeout` ms for an event on any of the handles, then lets each make progress."""
    poller = select.poll()
    for h in handles:
        writing = h.aio_get_direction() & nbd.AIO_DIRECTION_WRITE
        poller.register(h.aio_get_fd(), select.POLLIN | (select.POLLOUT if writing else 0))
    poller.poll(timeout)
    for h in handles:
        h.poll(0)


def wait_for_death(handles, seconds):
    """Waits until the connection of each handle has ended; fails after so many seconds."""
    end = time.monotonic() + seconds
    for h in handles:
        while not (h.aio_is_dead() or h.aio_is_closed()):
            assert time.monotonic() < end, "the client hangs"
            try:
                h.poll(1000)
            except nbd.Error:
                pass


def block_content(slot, version, size):
    """A block in which each 16 bytes name the slot and the version; version 0 is all zeros."""
    return struct.pack("QQ", slot, version) * (size // 16) if version else bytes(size)


def check_block(found, slot, asked, acknowledged, what):
    """Each sector of `found` is of the acknowledged version, or of the version in flight."""
    old, new = (block_content(slot, version, 512) for version in (acknowledged, asked))
    for at in range(0, len(found), 512):
        sector = found[at:at + 512]
        assert sector in (old, new), \
            f"{what}, slot {slot}, byte {at}: {sector[:16].hex()}; " \
            f"acknowledged version {acknowledged}, requested version {asked}"
