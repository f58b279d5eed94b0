# SPDX-License-Identifier: BSD-3-Clause
"""The processes that `compare` starts, its signals, and its one kind of error.

compare and its other modules run in one thread.  Every process that is started here is in the list
`running` until reap() has seen its end, and kill_all() ends what is left there.
"""
import os
import re
import select
import shutil
import signal
import subprocess
import sys


class Failed(Exception):
    """An error in one line for the user.  compare then ends with status 1."""


def say(text):
    print(text, file=sys.stderr, flush=True)


# SIGINT, SIGTERM and SIGHUP raise no exception where they arrive.  Only pause() notices them, so no
# process is started and then forgotten, and no clean-up is interrupted.
running = []
signalled, signal_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def catch_signals():
    signal.set_wakeup_fd(signal_pipe, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pause(seconds, *fds):
    """Waits until a descriptor is readable.  Returns the readable ones, or [] after a time-out."""
    poll = select.poll()
    for fd in (signalled, *fds):
        poll.register(fd, select.POLLIN)
    ready = [fd for fd, _ in poll.poll(seconds * 1000)]
    if signalled in ready:
        raise KeyboardInterrupt
    return ready


class Process:
    # Popen's options.  By default each process has a session of its own, so Ctrl-C reaches only
    # compare, which then ends the other processes in order.
    apart = {"start_new_session": True}

    def __init__(self, name, argv, log, env=None, stdin=subprocess.DEVNULL):
        self.name, self.log = name, log
        if not shutil.which(argv[0]):
            raise Failed(f"{name}: {argv[0]} is not installed")
        with open(log, "wb") as out:
            self.popen = subprocess.Popen(argv, stdin=stdin, stdout=out, stderr=out,
                                          cwd=os.path.dirname(log), env=env, **self.apart)
        self.fd = os.pidfd_open(self.popen.pid)
        running.append(self)

    def reap(self):
        """Returns the exit status and the resource usage, ended threads included."""
        _, status, usage = os.wait4(self.popen.pid, 0)
        self.popen.returncode = os.waitstatus_to_exitcode(status)
        os.close(self.fd)
        running.remove(self)
        return self.popen.returncode, usage

    def failed(self, what):
        with open(self.log, errors="replace") as log:
            tail = "".join(f"\n  {line.rstrip()}" for line in log.readlines()[-20:])
        tail = f"its last lines:{tail}" if tail else "it printed nothing"
        return Failed(f"{self.name}: {what}; {tail}")


def kill_all(but=None):
    for process in running[:]:
        if process is not but:
            os.kill(process.popen.pid, signal.SIGKILL)
            process.reap()


def used_so_far(pid):
    """CPU seconds and context switches of a process that has just started."""
    nanoseconds = switches = 0
    for task in os.scandir(f"/proc/{pid}/task"):
        try:
            with open(f"{task.path}/schedstat") as schedstat, open(f"{task.path}/status") as status:
                nanoseconds += int(schedstat.read().split()[0])
                switches += sum(map(int, re.findall(r"ctxt_switches:\s*(\d+)", status.read())))
        except (FileNotFoundError, ProcessLookupError):
            pass  # the thread has ended since scandir
    return nanoseconds / 1e9, switches
