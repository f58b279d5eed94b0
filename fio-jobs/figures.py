#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs aiodisk beside nbdkit's file plugin and qemu-nbd over NBD, on equal images, and prints ratios.

Every server has its own image and is started fresh for each measurement.  The servers take turns: round 1 measures
A B C, round 2 B C A, and never two at once.  A ratio compares two measurements of the same round.  Each measurement
lasts --runtime seconds, after a ramp of a fifth of that.
"""
import argparse
import fnmatch
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from urllib.parse import quote

# One line for each cell.  "map" is nbdinfo --map on a sparse image, everything else is fio's.
Cell = namedtuple("Cell", "rw bs depth connections extra modes", defaults=("", ("page", "direct")))
CELLS = {
    "rr1": Cell("randread", "4k", 1, 1),
    "rr16": Cell("randread", "4k", 16, 1),
    "rr64": Cell("randread", "4k", 64, 1),
    "rr16x4": Cell("randread", "4k", 16, 4),
    "rr1x50": Cell("randread", "4k", 1, 50),
    "rw1": Cell("randwrite", "4k", 1, 1),
    "rw16": Cell("randwrite", "4k", 16, 1),
    "rw64": Cell("randwrite", "4k", 64, 1),
    "rw16x4": Cell("randwrite", "4k", 16, 4),
    "mix16": Cell("randrw", "4k", 16, 1, "rwmixread=70"),
    "sr16": Cell("read", "256k", 16, 1),
    "sw16": Cell("write", "256k", 16, 1),
    "flush4x4": Cell("randwrite", "4k", 4, 4, "fsync=1"),
    "extents": Cell("map", "16k", 1, 1, "", ("page",)),
}
OURS = {
    "aiodisk": [],
    "aiodisk-threads": ["backend=threads"],
    "aiodisk-io_uring": ["backend=io_uring"],
    "aiodisk-libaio": ["backend=libaio"],
    "aiodisk-pool": ["dispatch=pool", "backend=threads"],
}
CACHE = {"page": "cache=default", "direct": "cache=none"}
PEERS = {  # by mode: nbdkit's plugin, or qemu-nbd's options
    "nbdkit-file": {"page": ["file"]},
    "qemu-nbd-threads": {"page": ["--cache=writeback", "--aio=threads"], "direct": ["--cache=none", "--aio=threads"]},
    "qemu-nbd-io_uring": {"page": ["--cache=writeback", "--aio=io_uring"], "direct": ["--cache=none", "--aio=io_uring"]},
    "qemu-nbd-native": {"direct": ["--cache=none", "--aio=native"]},
}
COLUMNS = {  # per request, but for the last two
    "server_cpu_us": "server us", "client_cpu_us": "client us", "server_switches": "server cs", "client_switches": "client cs",
    "p99_us": "p99 us", "rss_mib": "RSS MiB"}
DEFAULTS = {"rounds": 5, "runtime": 5.0, "cells": "*", "size": 1 << 30}
QUICK = {"rounds": 3, "runtime": 0.4, "cells": "page/rr1,page/rr16x4,page/rw16,direct/rr16x4,direct/flush4x4", "size": 128 << 20}
EXTENTS, SPACING = 20000, 16 << 10  # pieces of data in the sparse image
BUFFER, PATIENCE = 4 << 20, 60  # the latter: seconds that a client may take beyond its runtime

class Failed(Exception):
    """A line for the user; compare ends with status 1."""

def say(text):
    print(text, file=sys.stderr, flush=True)

def short(value):
    return f"{value:.{0 if value >= 1000 else 1 if value >= 100 else 2}f}"

def cell_of(key):
    return CELLS[key.split("/")[1]]

def unit_of(cell):
    """How its rate is shown, which is requests, bytes or maps per second."""
    if cell.rw == "map":
        return "ms", lambda rate: 1000 / rate
    return ("k IOPS", lambda rate: rate / 1e3) if cell.bs == "4k" else ("MB/s", lambda rate: rate / 1e6)

def describe(cell):
    if cell.rw == "map":
        return f"nbdinfo --map, {EXTENTS} extents of data, one every 16 KiB"
    return f"{cell.rw} {cell.bs}, depth {cell.depth}, connections {cell.connections}, {cell.extra}".rstrip(", ")

# Ctrl-C, SIGTERM and SIGHUP raise no exception wherever they happen to arrive: they are noticed in pause() only, so that
# no process is started and then forgotten, and cleaning up is not interrupted.
running = []
signalled, signal_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

def catch_signals():
    signal.set_wakeup_fd(signal_pipe, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)

def pause(seconds, *fds):
    """Waits until one of the descriptors is readable."""
    poll = select.poll()
    for fd in (signalled, *fds):
        poll.register(fd, select.POLLIN)
    ready = [fd for fd, _ in poll.poll(seconds * 1000)]
    if signalled in ready:
        raise KeyboardInterrupt
    return ready

class Process:
    apart = {"start_new_session": True}  # Ctrl-C reaches compare alone, which ends the rest in order

    def __init__(self, name, argv, log):
        self.name, self.log = name, log
        if not shutil.which(argv[0]):
            raise Failed(f"{name}: {argv[0]} is not installed")
        with open(log, "wb") as out:
            self.popen = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=os.path.dirname(log),
                                          **self.apart)
        self.fd = os.pidfd_open(self.popen.pid)
        running.append(self)

    def reap(self):
        """Its status and what it used, threads that have ended included."""
        _, status, usage = os.wait4(self.popen.pid, 0)
        self.popen.returncode = os.waitstatus_to_exitcode(status)
        os.close(self.fd)
        running.remove(self)
        return self.popen.returncode, usage

    def failed(self, what):
        with open(self.log, errors="replace") as log:
            tail = "".join(f"\n  {line.rstrip()}" for line in log.readlines()[-20:])
        return Failed(f"{self.name}: {what}; " + (f"its last lines:{tail}" if tail else "it said nothing"))

def kill_all():
    for process in running[:]:
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
            pass  # a thread that has just ended
    return nanoseconds / 1e9, switches

class Server(Process):
    def __init__(self, bench, name, mode, image):
        pid_file, path = f"{bench.tmp}/pid", f"{bench.tmp}/sock"
        for leftover in filter(os.path.lexists, (pid_file, path)):
            os.unlink(leftover)
        port = str(socket.create_server(("127.0.0.1", 0)).getsockname()[1])  # one that is free
        self.uri = f"nbd://127.0.0.1:{port}" if bench.options.tcp else f"nbd+unix:///?socket={quote(path)}"
        if name.startswith("qemu-nbd"):
            where = ["-b", "127.0.0.1", "-p", port] if bench.options.tcp else ["-k", path]
            argv = ["qemu-nbd", "-t", "-e", "64", "--discard=unmap", "-f", "raw", f"--pid-file={pid_file}", *where,
                    *PEERS[name][mode], image]
        else:
            where = ["-i", "127.0.0.1", "-p", port] if bench.options.tcp else ["-U", path]
            what = [bench.options.plugin, *OURS[name], CACHE[mode]] if name in OURS else PEERS[name][mode]
            argv = ["nbdkit", "-f", "-P", pid_file, *where, *what, f"file={image}"]
        super().__init__(f"{name} ({mode})", argv, f"{bench.tmp}/server.log")
        deadline = time.monotonic() + 20
        while not (os.path.exists(pid_file) and os.path.getsize(pid_file)):  # both write it once they listen
            if pause(0.005, self.fd):
                raise self.failed(f"ended with status {self.reap()[0]} instead of serving")
            if time.monotonic() > deadline:
                raise self.failed("does not serve after 20 s")
        self.before = used_so_far(self.popen.pid)

    def stop(self):
        """CPU seconds and context switches since it served, and peak RSS."""
        with open(f"/proc/{self.popen.pid}/status") as f:  # ru_maxrss counts the python which it was before exec
            rss = int(re.search(r"VmHWM:\s*(\d+)", f.read())[1]) / 1024
        os.kill(self.popen.pid, signal.SIGTERM)
        status, usage = self.reap() if pause(20, self.fd) else ("none 20 s after SIGTERM", None)
        if status:
            raise self.failed(f"ended with status {status}")
        return usage.ru_utime + usage.ru_stime - self.before[0], usage.ru_nvcsw + usage.ru_nivcsw - self.before[1], rss

    def client(self, argv, log, seconds):
        """Runs a client of this server to its end, and returns what it used."""
        client = Process(argv[0], argv, log)
        ready = pause(seconds, client.fd, self.fd)
        if self.fd in ready:
            raise self.failed(f"ended in the middle of a measurement, with status {self.reap()[0]}")
        status, usage = client.reap() if ready else (f"none after {seconds:.0f} s", None)
        if status:
            raise Failed(f"{client.failed(f'exit status {status}')}\n{self.failed('was the server')}")
        return usage

def make_images(paths, size):
    """Equal ones, filled with the same random data."""
    files = [open(path, "wb", buffering=0) for path in paths]
    for f in files:
        os.posix_fallocate(f.fileno(), 0, size)
    for offset in range(0, size, BUFFER):
        pause(0)
        data = os.urandom(min(BUFFER, size - offset))
        for f in files:
            f.write(data)
    for f in files:
        os.fsync(f.fileno())
        f.close()

def make_sparse(path):
    with open(path, "wb", buffering=0) as f:
        f.truncate(EXTENTS * SPACING)
        for i in range(EXTENTS):
            os.pwrite(f.fileno(), b"x" * 4096, i * SPACING)
        os.fsync(f.fileno())

def prepare(path, mode):
    """Puts the image into the page cache, or takes it out."""
    with open(path, "rb", buffering=0) as f:
        if mode == "direct":
            return os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        data = bytearray(BUFFER)
        while f.readinto(data):
            pause(0)

def run_fio(bench, server, cell):
    """What the client saw, and how many requests the server had.  The ramp is a job of its own and not ramp_time,
    so that its requests are known: the server's cost is for all."""
    tmp, seconds = bench.tmp, bench.options.runtime
    common = ["ioengine=nbd", f"uri={server.uri}", "thread=1", f"rw={cell.rw}", f"bs={cell.bs}", f"iodepth={cell.depth}",
              f"numjobs={cell.connections}", cell.extra, f"size={bench.options.size}", "time_based=1", "group_reporting=1"]
    with open(f"{tmp}/job.fio", "w") as f:
        print("[global]", *common, "[ramp]", f"runtime={seconds * 200:.0f}ms", "[measure]", "stonewall",
              f"runtime={seconds * 1000:.0f}ms", sep="\n", file=f)
    server.client(["fio", "--output-format=json", f"--output={tmp}/fio.json", f"{tmp}/job.fio"], f"{tmp}/fio.log",
                  seconds * 1.2 + PATIENCE)
    with open(f"{tmp}/fio.json") as f:
        jobs = json.loads("{" + f.read().partition("\n{")[2])["jobs"]  # lines of the engine come first
    requests = [sum(job[way]["total_ios"] for way in ("read", "write", "sync")) for job in jobs]
    if any(job["error"] for job in jobs) or len(jobs) != 2 or not all(requests):
        raise server.failed(f"fio reports errors {[job['error'] for job in jobs]}, requests {requests}")
    job = jobs[1]
    latencies = [job[way][key].get("percentile", {}).get("99.000000", 0)
                 for way, key in (("read", "clat_ns"), ("write", "clat_ns"), ("sync", "lat_ns"))]
    cpu = job["job_runtime"] * 1000 * (job["usr_cpu"] + job["sys_cpu"]) / 100
    rate = sum(job[way]["iops" if cell.bs == "4k" else "bw_bytes"] for way in ("read", "write"))
    return {"rate": rate, "client_cpu_us": cpu / requests[1], "client_switches": job["ctx"] / requests[1],
            "p99_us": max(latencies) / 1000}, sum(requests)

def run_maps(bench, server, _cell):
    """One map after another; the first is the ramp.  The slowest stands for the 99th percentile."""
    times, cpu, switches, log = [], 0, 0, f"{bench.tmp}/map.log"
    end = time.monotonic() + bench.options.runtime * 1.2
    while len(times) < 2 or time.monotonic() < end:
        begin = time.monotonic()
        usage = server.client(["nbdinfo", "--map", server.uri], log, PATIENCE)
        times.append(time.monotonic() - begin)
        cpu += usage.ru_utime + usage.ru_stime
        switches += usage.ru_nvcsw + usage.ru_nivcsw
    with open(log) as f:
        entries = len(f.readlines())
    if entries < EXTENTS:
        raise server.failed(f"nbdinfo --map shows {entries} extents of an image with {EXTENTS}")
    return {"rate": (len(times) - 1) / sum(times[1:]), "client_cpu_us": cpu * 1e6 / len(times),
            "client_switches": switches / len(times), "p99_us": max(times[1:]) * 1e6}, len(times)

class Bench:
    def __init__(self, options, tmp):
        self.options, self.tmp, self.measurements = options, tmp, []

    def image(self, name, cell):
        return f"{self.tmp}/sparse" if cell.rw == "map" else f"{self.tmp}/{name}.img"  # nobody writes to sparse

    def measure(self, mode, cell, name):
        image = self.image(name, cell)
        prepare(image, mode)
        server = Server(self, name, mode, image)
        result, requests = (run_maps if cell.rw == "map" else run_fio)(self, server, cell)
        cpu, switches, rss = server.stop()
        with open(image, "rb") as f:
            os.fsync(f.fileno())  # what it has left to write must not slow the next one down
        return {**result, "server_cpu_us": cpu * 1e6 / requests, "server_switches": switches / requests, "rss_mib": rss}

    def usable(self, mode):
        """The servers that can serve in this mode here; a line for each other."""
        found, probe = [], f"{self.tmp}/probe"
        make_images([probe], 1 << 20)
        for name in self.options.ours + [name for name in self.options.peers if mode in PEERS[name]]:
            try:
                server = Server(self, name, mode, probe)
                server.stop()
                found.append(name)
                if os.path.getsize(server.log):
                    say(f"note: {server.failed('serves')}")
            except Failed as e:
                say(f"skipped: {e}")
                kill_all()
        if not set(found) & set(OURS):
            raise Failed(f"--ours: none of {', '.join(self.options.ours)} serves here ({mode})")
        return found

    def run(self):
        cells, rounds = self.options.cells, self.options.rounds
        servers = {mode: self.usable(mode) for mode in CACHE if any(key.startswith(mode) for key in cells)}
        of_cell = {key: servers[key.split("/")[0]] for key in cells}
        images = {self.image(name, cell_of(key)) for key in cells for name in of_cell[key]}
        if shutil.disk_usage(self.tmp).free < len(images) * self.options.size:
            raise Failed(f"--size: {len(images)} images of it find no room in {self.options.dir}; allowed is what fits there")
        count = rounds * sum(map(len, of_cell.values()))
        say(f"{count} measurements, about {count * (self.options.runtime * 1.2 + 0.6) / 60:.0f} min; images in {self.tmp}")
        make_images([path for path in images if path.endswith(".img")], self.options.size)
        if f"{self.tmp}/sparse" in images:
            make_sparse(f"{self.tmp}/sparse")
        for key in cells:
            unit, shown = unit_of(cell_of(key))
            for turn in range(rounds):
                first = turn % len(of_cell[key])
                for name in of_cell[key][first:] + of_cell[key][:first]:
                    result = self.measure(key.split("/")[0], cell_of(key), name)
                    self.measurements.append({"cell": key, "round": turn + 1, "server": name, **result})
                    say(f"{key} round {turn + 1}/{rounds} {name}: {short(shown(result['rate']))} {unit}")

def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}

def summarise(key, measurements):
    """Of one cell: the best peer, and the medians of each server; for ours the ratio, taken round by round."""
    rows, servers = [row for row in measurements if row["cell"] == key], {}
    rates = {name: [row["rate"] for row in rows if row["server"] == name] for name in (row["server"] for row in rows)}
    for name in rates:
        servers[name] = {"rate": spread(rates[name])}
        for column in COLUMNS:
            servers[name][column] = statistics.median(row[column] for row in rows if row["server"] == name)
    best = max((name for name in servers if name in PEERS), default=None, key=lambda name: servers[name]["rate"]["median"])
    for name in servers:
        if best and name in OURS:
            servers[name]["ratio"] = spread([ours / peer for ours, peer in zip(rates[name], rates[best])])
    return {"what": describe(cell_of(key)), "best_peer": best, "servers": servers}

def print_cell(key, summary):
    unit, shown = unit_of(cell_of(key))
    print(f"\n{key}: {summary['what']}")
    print(f"  {'server':18}{unit:>8}{'(min-max)':>18}{'ratio (min-max)':>18}", *(f"{title:>9}" for title in COLUMNS.values()))
    for name, row in summary["servers"].items():
        middle, low, high = shown(row["rate"]["median"]), *sorted((shown(row["rate"]["min"]), shown(row["rate"]["max"])))
        mark = "best peer" if name == summary["best_peer"] else ""
        ratio = "{median:.2f} ({min:.2f}-{max:.2f})".format(**row["ratio"]) if "ratio" in row else mark
        print(f"  {name:18}{short(middle):>8}{f'({short(low)}-{short(high)})':>18}{ratio:>18}",
              *(f"{short(row[column]):>9}" for column in COLUMNS))

def write_json(path, options, cells, measurements):
    with open("/proc/cpuinfo") as f:
        cpu = re.search(r"model name\s*: (.*)", f.read())
    versions = {name: subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
                for name in ("nbdkit", "qemu-nbd", "fio") if shutil.which(name)}
    report = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "kernel": os.uname().release, "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu[1] if cpu else os.uname().machine, "versions": versions, "command": shlex.join(sys.argv),
        "plugin": options.plugin, "transport": "tcp" if options.tcp else "unix", "rounds": options.rounds,
        "runtime": options.runtime, "size": options.size, "cells": cells, "measurements": measurements}
    with open(path, "w") as f:
        print(json.dumps(report, indent=1), file=f)

def draw(path, options, cells):
    """Bars of our ratios to the best peer, with their spread."""
    names = [name for name in options.ours if any("ratio" in cell["servers"].get(name, {}) for cell in cells.values())]
    if not names or not shutil.which("gnuplot"):
        return say("no chart: " + ("gnuplot is not installed" if names else "there is no ratio to draw"))
    lines = []
    for key, cell in cells.items():
        ratios = (cell["servers"].get(name, {}).get("ratio", dict.fromkeys(("median", "min", "max"), "?")) for name in names)
        lines.append(" ".join([f'"{key} ({cell["best_peer"]})"', *("{median} {min} {max}".format(**r) for r in ratios)]))
    bars = (f"$data using {3 * i + 2}:{3 * i + 3}:{3 * i + 4}:xtic(1) title '{name}'" for i, name in enumerate(names))
    script = f"""set terminal pngcairo noenhanced size {max(800, 200 + 40 * len(cells) * (len(names) + 1))},600
set output '{path.replace("'", "''")}'
set title 'aiodisk beside its best peer over {options.how}: median, range of {options.rounds} rounds'
set ylabel 'rate / rate of the best peer'; set yrange [0:*]; set grid ytics; set key outside top right
set xlabel 'cell (best peer)'; set xtics rotate by 35 right; set datafile missing '?'
set style data histograms; set style histogram errorbars gap 1 lw 2; set style fill solid 0.5
$data << EOD
{chr(10).join(lines)}
EOD
plot {", ".join(bars)}, 1 with lines lc black title 'best peer'
"""
    done = subprocess.run(["gnuplot"], input=script, text=True, capture_output=True, check=False)
    say(f"no chart: gnuplot: {done.stderr}" if done.returncode else f"wrote {path}")

def number(pattern, least, allowed):
    """The type of an option: a number with K, M and G where the pattern has them."""
    def parse(text):
        match = re.fullmatch(pattern, text)
        value = float(match[1]) * {"M": 1 << 20, "G": 1 << 30}.get(text[-1], 1) if match else 0
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is refused; allowed is {allowed}")
        return value if "." in pattern else int(value)
    return parse

def names_of(table):
    def parse(text):
        for unknown in set(text.split(",")) - set(table):
            raise argparse.ArgumentTypeError(f"{unknown!r} is unknown; allowed are {', '.join(table)}")
        return [name for name in table if name in text.split(",")]
    return parse

def cells_of(text):
    every = [f"{mode}/{name}" for mode in CACHE for name, cell in CELLS.items() if mode in cell.modes]
    chosen = set()
    for pattern in text.split(","):
        found = [key for key in every if any(fnmatch.fnmatchcase(word, pattern) for word in (key, key.split("/")[1]))]
        if not found:
            raise argparse.ArgumentTypeError(f"no cell is called {pattern!r}; allowed are page/ or direct/ and a glob over "
                                             f"{', '.join(CELLS)}")
        chosen.update(found)
    return [key for key in every if key in chosen]

class Parser(argparse.ArgumentParser):
    def error(self, message):
        say("compare: " + message.removeprefix("argument ") + ("" if "allowed" in message else "; --help lists what is allowed"))
        sys.exit(1)

def parse_options():
    parser = Parser(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="print the cells and the servers, and end")
    add("--quick", action="store_true", help="about a minute: a few cells, short rounds, small images")
    add("--rounds", type=number("([0-9]{1,4})", 1, "a whole number from 1 to 9999"), metavar="N", help="default 5")
    add("--runtime", type=number(r"([0-9]{1,4}(\.[0-9]+)?)", 0.1, "0.1 to 9999 seconds"), metavar="S", help="default 5")
    add("--cells", type=cells_of, metavar="GLOB,...", help="such as page/rr1,direct/*; default all")
    add("--tcp", action="store_true", help="over TCP on 127.0.0.1 instead of a unix socket")
    add("--one-session", action="store_true", help="server and client in one session: the scheduler sees one group of tasks")
    add("--ours", type=names_of(OURS), default=["aiodisk"], metavar="NAME,...", help="default aiodisk; see --list")
    add("--peers", type=names_of(PEERS), default=list(PEERS), metavar="NAME,...", help="default all; see --list")
    add("--size", type=number("([0-9]{1,6})[MG]", 16 << 20, "16M or more, such as 64M or 1G"), help="of each image; default 1G")
    add("--dir", default="/var/tmp", help="where the images are made, and removed; default /var/tmp")
    add("--plugin", metavar="PATH", help="nbdkit-aiodisk-plugin.so; default the one in build, in build-check, or installed")
    add("--output", default="./compare", metavar="PREFIX", help="of the files .json and .png; default ./compare")
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else DEFAULTS).items():
        if getattr(options, name) is None:
            setattr(options, name, cells_of(value) if name == "cells" else value)
    return options

def check_options(options):
    """What depends on this machine."""
    Process.apart = {"process_group": 0} if options.one_session else Process.apart
    options.how = ("TCP" if options.tcp else "unix sockets") + ", all in one session" * options.one_session
    options.dir = os.path.abspath(options.dir)
    folder = os.path.dirname(os.path.abspath(options.output))
    for name, path in ("--dir", options.dir), ("--output", folder):
        if not os.path.isdir(path) or not os.access(path, os.W_OK):
            raise Failed(f"{name}: {path!r} is refused; allowed is a directory that can be written to")
    if len(quote(options.dir)) > 70:
        raise Failed(f"--dir: {options.dir!r} is too long for a socket's path; allowed are 70 characters")
    if options.plugin and not os.path.isfile(options.plugin):
        raise Failed(f"--plugin: {options.plugin!r} is no file; allowed is the path of nbdkit-aiodisk-plugin.so")
    repository = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    built = [f"{repository}/{build}/plugin/nbdkit-aiodisk-plugin.so" for build in ("build", "build-check")]
    options.plugin = next((os.path.abspath(path) for path in [options.plugin or "", *built] if os.path.isfile(path)), "aiodisk")
    for program in ["fio"] + ["nbdinfo"] * ("page/extents" in options.cells):
        if not shutil.which(program):
            raise Failed(f"{program} is not installed")

def compare(options):
    check_options(options)
    tmp = tempfile.mkdtemp(prefix="aiodisk-compare.", dir=options.dir)
    bench = Bench(options, tmp)
    try:
        bench.run()
    finally:
        kill_all()
        shutil.rmtree(tmp)
    cells = {key: summarise(key, bench.measurements) for key in options.cells}
    write_json(f"{options.output}.json", options, cells, bench.measurements)
    for key, summary in cells.items():
        print_cell(key, summary)
    print("\nus: CPU microseconds per request; cs: context switches per request; ratio: to the best peer, in the same round;",
          f"all over {options.how}")
    say(f"wrote {options.output}.json")
    draw(f"{options.output}.png", options, cells)

def main():
    options = parse_options()
    if options.list:
        for key in options.cells:
            print(f"{key:16} {describe(cell_of(key))}")
        print("ours:", *OURS, "\npeers:", *PEERS)
        return 0
    catch_signals()
    try:
        compare(options)
        return 0
    except KeyboardInterrupt:
        return say("compare: interrupted") or 130
    except (Failed, OSError) as e:
        return say(f"compare: {e}") or 1

sys.exit(main())
