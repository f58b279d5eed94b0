# SPDX-License-Identifier: BSD-3-Clause
"""One failing call at a time in a served disk.  See inject.sh.

usage: inject.py syscalls|allocations DIRECTORY PLUGIN PRELOAD TARGET PART SEED PARAMETERS...

PRELOAD: tests/lib/fail-allocation.so.  TARGET: "file", or a block device that the test may
overwrite.  PART: how many of the faults, chosen at random by the seed; "all"; or "I/N" for every
Nth fault, beginning with the Ith.
"""
import collections
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time

from servers import wait_until
from session import HOLE, Hang, Model, Session, Wrong, initial_content

kind, directory, plugin, preload, target, part, seed, *parameters = sys.argv[1:]
plugin_name = os.path.basename(plugin)
FEWEST = 50  # allocations of any combination; a sample is of the first so many
MOST = 20  # calls of each thread and system call that fail in turn

# What each system call can return on a healthy kernel, by its man page.  A call of the plugin that
# is not listed gets EIO.  Not write(2) and EAGAIN: the kernel gives EAGAIN only for an eventfd that
# is full, and therefore readable, so the loop is awake.  strace leaves the eventfd empty, and the
# loop would sleep for ever.
ERRORS = {
    "access": ["ENOENT"], "clone": ["EAGAIN"], "clone3": ["EAGAIN"], "epoll_create1": ["EMFILE"],
    "epoll_ctl": ["ENOMEM"], "epoll_wait": ["EINTR"], "eventfd2": ["EMFILE"],
    "fadvise64": ["EINVAL"], "fallocate": ["EIO", "ENOSPC", "EOPNOTSUPP", "EINTR"],
    "fcntl": ["ENOLCK"], "fdatasync": ["EIO", "ENOSPC", "EINTR"],
    "io_destroy": ["EINVAL"], "io_getevents": ["EINTR"], "io_setup": ["EAGAIN"],
    "io_submit": ["EAGAIN", "EIO", "ENOMEM"], "io_uring_enter": ["EAGAIN", "EBUSY", "EINTR"],
    "io_uring_register": ["ENOMEM"], "io_uring_setup": ["ENOMEM", "EPERM"],
    "ioctl": ["EIO", "ENOTTY"], "lseek": ["EIO", "EINVAL"], "memfd_create": ["EMFILE"],
    "mmap": ["ENOMEM"], "mprotect": ["ENOMEM"], "openat": ["EMFILE", "EIO"],
    "openat2": ["EMFILE", "EIO"], "preadv": ["EIO", "EINTR"],
    "preadv2": ["EIO", "EOPNOTSUPP", "EAGAIN"], "prlimit64": ["EPERM"],
    "pwritev": ["EIO", "ENOSPC", "EINTR"], "pwritev2": ["EIO", "ENOSPC", "EOPNOTSUPP"],
    "read": ["EINTR"], "sched_setscheduler": ["EPERM"], "sched_getscheduler": ["EPERM"],
    "statx": ["EIO", "EPERM"], "write": ["EINTR"],
}

# glibc makes these calls for itself, and ends the process or ignores the result if one fails.
SKIPPED = {"brk", "execve", "exit", "exit_group", "futex", "gettid", "getpid", "madvise", "munmap",
           "rseq", "rt_sigaction", "rt_sigprocmask", "set_robust_list", "prctl"}

# After these errors of fdatasync(2) the sync was carried out, and failed: no flush may succeed.
LOST = {"EIO", "ENOSPC"}

trace, socket, log, stop, metrics = (
    os.path.join(directory, name) for name in ("trace", "s", "log", "stop", "metrics.prom"))
image = os.path.join(directory, "image") if target == "file" else target
size = (3 << 20) + (777 if target == "file" else 1024)  # bytes; the end is no whole block


def read_text(path):
    with open(path, errors="replace") as f:
        return f.read()


def make_image():
    content = initial_content(size)
    if target == "file" and os.path.exists(image):
        os.unlink(image)
    with open(image, "r+b" if target != "file" else "wb") as f:
        f.write(content[:HOLE.start])
        f.seek(HOLE.stop if target == "file" else HOLE.start)
        f.write(content[f.tell():])


def is_listening():
    """The socket exists some time before nbdkit listens on it.  The flag is SO_ACCEPTCON."""
    return any(line.split()[3] == "00010000" and line.endswith(f" {socket}")
               for line in read_text("/proc/net/unix").splitlines()[1:])


class Server:
    """An nbdkit below `prefix`, a command that runs another one."""

    def __init__(self, prefix=(), environment=None):
        for path in (socket, log, trace, stop, metrics):
            if os.path.exists(path):
                os.unlink(path)
        make_image()
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                [*prefix, "nbdkit", "-f", "-t", "1", "-U", socket, plugin, image,
                 "metrics=" + metrics, *parameters], stderr=out, stdin=subprocess.DEVNULL,
                env=dict(os.environ, **(environment or {})))
        self.pid = self.process.pid
        # Not the pid file: an error of the write of that file is nbdkit's own.
        try:
            wait_until(lambda: self.ended() or is_listening(), "start")
        except AssertionError:
            self.kill()
            raise Hang("start") from None

    def ended(self):
        return self.process.poll() is not None

    def tracer(self):
        return int(re.search(r"TracerPid:\s+(\d+)", read_text(f"/proc/{self.pid}/status"))[1])

    def rest(self, idle):
        """Waits until the server has no more than these descriptors and threads, at most 10 s."""
        try:
            wait_until(lambda: all(a <= b for a, b in zip(self.held(), idle)), "", 10)
        except AssertionError:
            pass

    def end_faults(self):
        """strace goes away, or the library makes no allocation fail; the server runs on.

        A call at which strace is when it goes away can fail with ENOSYS, so the server is to rest.
        """
        self.rest((1 << 20, held_idle[1]))
        with open(stop, "w"):
            pass
        tracer = self.tracer()
        if tracer:
            os.kill(tracer, signal.SIGTERM)
            wait_until(lambda: self.ended() or self.tracer() == 0, "the tracer to end")

    def held(self):
        """Descriptors and threads."""
        return (len(os.listdir(f"/proc/{self.pid}/fd")),
                len(os.listdir(f"/proc/{self.pid}/task")))

    def stop(self):
        self.process.terminate()
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            raise Hang("the end of the server") from None
        if status != 0:
            raise Wrong(f"nbdkit ended with status {status}")

    def kill(self):
        if not self.ended():
            self.process.kill()
            self.process.wait()


held_idle = (1 << 20, 2)  # descriptors and threads of a server whose clients have left


def check_flushes(session):
    """After a failed sync neither a flush nor a FUA request succeeds."""
    sync_failed = "a sync failed" in read_text(log)
    lost = os.path.exists(trace) and any(
        f" {error} " in line for line in read_text(trace).splitlines()
        if "fdatasync(" in line or "fdatasync resumed" in line
        for error in LOST if "INJECTED" in line)
    if lost and not sync_failed:
        raise Wrong("fdatasync failed, and the log does not say so")
    if sync_failed and session.synced[-1]:
        raise Wrong("a flush succeeded after a failed sync")
    return sync_failed


def is_before_plugin():
    """Did the fault hit nbdkit before it opened the plugin?"""
    for line in read_text(trace).splitlines() if os.path.exists(trace) else []:
        if plugin_name in line:
            return False
        if "INJECTED" in line:
            return True
    return False


def one_run(prefix=(), environment=None, descriptors_leak=False):
    """Returns a word that says how the fault ended; raises Wrong or Hang."""
    server = Server(prefix, environment)
    try:
        if server.ended():
            if is_before_plugin():
                return "refused by nbdkit"
            if server.process.returncode != 1 or not read_text(log):
                raise Wrong(f"refused to start with status {server.process.returncode}, "
                            "and no line in the log")
            return "refused"
        model = Model(size)
        session = Session(socket, model)
        session.run()
        if server.ended():
            raise Wrong(f"the server ended with status {server.process.returncode}")
        server.end_faults()
        after = Session(socket, model, seed=2)
        after.run()
        sync_failed = check_flushes(after)
        if after.failures and not sync_failed:
            raise Wrong(f"a request failed when the fault was gone: {after.failures[0]}")
        # The metrics file has a second descriptor while it is replaced.
        server.rest((1 << 20 if descriptors_leak else held_idle[0], held_idle[1]))
        held = server.held()
        if held[1] > held_idle[1] or held[0] > held_idle[0] and not descriptors_leak:
            raise Wrong(f"descriptors and threads are {held}, not {held_idle}")
        server.stop()
        with open(image, "rb") as f:
            model.check(0, f.read(), "the image afterwards")
        if session.failures and "error:" not in read_text(log) and "warning:" not in read_text(log):
            raise Wrong(f"no line in the log for: {session.failures[0]}")
        return "sync failed" if sync_failed else "failed" if session.failures else "served"
    finally:
        server.kill()


def calls_of_plugin():
    """Traces one run.  {system call: ordinals within a thread of the calls of the plugin}."""
    one_run(["strace", "-I2", "-D", "-f", "-k", "-qq", "-o", trace])
    ordinals, counts, ours = collections.defaultdict(set), collections.Counter(), \
        collections.Counter()
    current = None
    for line in read_text(trace).splitlines():
        entered = re.match(r"(\d+) +(\w+)\(", line)
        resumed = re.match(r"(\d+) +<\.\.\. (\w+) resumed", line)
        if entered:
            counts[entered.groups()] += 1
        if entered or resumed:
            current = (entered or resumed).groups()
        elif line.startswith(" > ") and plugin_name in line and current:
            ours[current] += 1
            if ours[current] <= MOST:
                ordinals[current[1]].add(counts[current])
            current = None
    return ordinals


def faults_of_syscalls():
    for call, ordinals in sorted(calls_of_plugin().items()):
        for error in ERRORS.get(call, ["EIO"]) if call not in SKIPPED else []:
            for ordinal in sorted(ordinals):
                yield (call, error, f"{ordinal}")
            # From one call on, all fail; but no kernel interrupts a call for ever.
            if error != "EINTR":
                yield (call, error, f"{min(ordinals)}+")
            # io_uring_enter(2) may refuse new requests for ever, for lack of memory.  It does not
            # refuse for ever to hand over what a ring has completed.  strace cannot tell these
            # calls apart, so the only endless failure is that from the first call on, when the ring
            # has no request yet: the backend must not be used then.
            if error != "EINTR" and call != "io_uring_enter":
                yield (call, error, f"{max(ordinals)}+")


def fail_syscall(call, error, when):
    how = one_run(["strace", "-I2", "-D", "-f", "-qq", "-o", trace, "-e", f"trace={call},openat",
                   "-e", f"inject={call}:error={error}:when={when}"],
                  descriptors_leak=call == "close")
    if error == "EINTR" and "failed" in how:
        raise Wrong("EINTR reached the client")
    return how


def fail_allocation(when):
    marker = os.path.join(directory, "allocation")
    if os.path.exists(marker):
        os.unlink(marker)
    how = one_run(environment={"LD_PRELOAD": preload, "FAIL_ALLOCATION": when,
                               "FAIL_ALLOCATION_OF": plugin_name, "FAIL_ALLOCATION_FILE": marker,
                               "FAIL_ALLOCATION_STOP": stop})
    return how if os.path.exists(marker) else "not reached"


def faults_of_allocations():
    """One allocation fails; or all from one on."""
    for plus in "", "+":
        when = 1
        while True:
            yield (f"{when}{plus}",)
            if "not reached" in outcomes[-1:]:
                break
            when += 1


def chosen(faults):
    if part == "all":
        return faults
    if "/" in part:
        first, step = map(int, part.split("/"))
        return itertools.islice(faults, first - 1, None, step)
    # How many allocations there are is known only when one is not reached.
    faults = list(itertools.islice(faults, FEWEST if kind == "allocations" else None))
    return random.Random(seed).sample(faults, min(int(part), len(faults)))


outcomes = []
start = time.monotonic()
one_run()  # without a fault: how long it takes, and what the server holds
server = Server()
Session(socket, Model(size)).run()
server.rest(held_idle)
held_idle = server.held()
server.stop()
assert held_idle[1] <= 2, held_idle
one_run()
fail = fail_syscall if kind == "syscalls" else fail_allocation
bad = 0
for fault in chosen(faults_of_syscalls() if kind == "syscalls" else faults_of_allocations()):
    try:
        outcomes.append(fail(*fault))
        if os.environ.get("VERBOSE"):
            print(fault, outcomes[-1], flush=True)
    except (Wrong, Hang, AssertionError) as e:
        bad += 1
        outcomes.append("WRONG")
        print(f"{' '.join(fault)}: {type(e).__name__}: {e}", flush=True)
        print("   " + "\n   ".join(read_text(log).splitlines()[-6:]), flush=True)
summary = ", ".join(f"{n} {how}" for how, n in collections.Counter(outcomes).most_common())
print(f"{kind}: {len(outcomes)} faults in {time.monotonic() - start:.0f} s: {summary}")
sys.exit(1 if bad else 0)
