# SPDX-License-Identifier: BSD-3-Clause
"""What `compare` measures and how: cells, servers, images, and the single measurement.

Every measurement starts one server on an image of its own, runs one client on it, and stops the
server.  Two servers never run at the same time.  This module prints progress and errors only;
figures.py makes the table, the JSON and the chart, and rbd.py knows Ceph.
"""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import namedtuple
from urllib.parse import quote

import rbd
from process import Failed, Process, kill_all, pause, say, used_so_far

# One line per cell.  rw "map" means nbdinfo --map on a sparse image; all other cells run fio.
Cell = namedtuple("Cell", "rw bs depth connections extra modes", defaults=("", ("page", "direct")))
EVERY = ("page", "direct", "rbd", "rbd-cached")
CELLS = {
    "rr1": Cell("randread", "4k", 1, 1, "", EVERY),
    "rr16": Cell("randread", "4k", 16, 1, "", EVERY),
    "rr64": Cell("randread", "4k", 64, 1, "", EVERY),
    "rr16x4": Cell("randread", "4k", 16, 4, "", EVERY),
    "rr1x50": Cell("randread", "4k", 1, 50),
    "rw1": Cell("randwrite", "4k", 1, 1, "", EVERY),
    "rw16": Cell("randwrite", "4k", 16, 1, "", EVERY),
    "rw64": Cell("randwrite", "4k", 64, 1, "", EVERY),
    "rw16x4": Cell("randwrite", "4k", 16, 4, "", EVERY),
    "mix16": Cell("randrw", "4k", 16, 1, "rwmixread=70"),
    "sr16": Cell("read", "256k", 16, 1, "", EVERY),
    "sw16": Cell("write", "256k", 16, 1, "", EVERY),
    "flush4x4": Cell("randwrite", "4k", 4, 4, "fsync=1", EVERY),
    "lr1": Cell("randread", "256k", 1, 1),
    "lr16x4": Cell("randread", "256k", 16, 4),
    "lw1": Cell("randwrite", "256k", 1, 1),
    "lw16x4": Cell("randwrite", "256k", 16, 4),
    "Lr1": Cell("randread", "1m", 1, 1),
    "Lr16": Cell("randread", "1m", 16, 1),
    "Lw1": Cell("randwrite", "1m", 1, 1),
    "Lw16": Cell("randwrite", "1m", 16, 1),
    "extents": Cell("map", "16k", 1, 1, "", ("page",)),
}
WORDS = {  # a cell's rw
    "randread": "random read", "randwrite": "random write", "read": "sequential read",
    "write": "sequential write", "randrw": "random 70 % read, 30 % write",
}
OURS = {  # parameters; "-corked" in the name: with libnbdkit-corked.so; "-tN": nbdkit -t N
    "aiodisk": [],
    "aiodisk-corked": [],
    "aiodisk-corked-t1": [],
    "aiodisk-corked-t2": [],
    "aiodisk-corked-t4": [],
    "aiodisk-corked-t8": [],
    "aiodisk-corked-t32": [],
    "aiodisk-corked-t64": [],
    "aiodisk-threads": ["backend=threads"],
    "aiodisk-io_uring": ["backend=io_uring"],
    "aiodisk-libaio": ["backend=libaio"],
    "aiodisk-pool": ["dispatch=pool", "backend=threads"],
}
# What nbdkit itself can do: its null plugin over the same socket.  No peer, for it stores nothing.
CEILING = "nbdkit-null"
CACHE = {"page": "cache=default", "direct": "cache=none", **rbd.MODES}
PEERS = {  # by mode: the plugin of nbdkit, or the options of qemu-nbd
    "nbdkit-file": {"page": ["file"]},
    "qemu-nbd-threads": {"page": ["--cache=writeback", "--aio=threads"],
                         "direct": ["--cache=none", "--aio=threads"]},
    "qemu-nbd-io_uring": {"page": ["--cache=writeback", "--aio=io_uring"],
                          "direct": ["--cache=none", "--aio=io_uring"]},
    "qemu-nbd-native": {"direct": ["--cache=none", "--aio=native"]},
    **rbd.PEERS,
}
EXTENTS = 20000  # of data in the sparse image
SPACING = 16 << 10  # bytes from the start of one extent to the start of the next
BUFFER = 4 << 20  # bytes
PATIENCE = 60  # seconds that a client may take beyond its runtime


def short(value):
    return f"{value:.{0 if value >= 1000 else 1 if value >= 100 else 2}f}"


def cell_of(key):
    return CELLS[key.split("/")[1]]


def unit_of(cell):
    """The unit in which the cell's rate is shown, and the function that converts the rate to it.

    A rate counts requests (4 KiB cells), bytes (other fio cells) or maps per second.
    """
    if cell.rw == "map":
        return "ms", lambda rate: 1000 / rate
    if cell.bs == "4k":
        return "k IOPS", lambda rate: rate / 1e3
    return "MB/s", lambda rate: rate / 1e6


def describe(cell):
    if cell.rw == "map":
        return f"nbdinfo --map, {EXTENTS:,} extents"
    flush = " and flush" if cell.extra == "fsync=1" else ""
    size = cell.bs.replace("k", " KiB").replace("m", " MiB")
    parts = [f"{WORDS[cell.rw]} {size}{flush}", f"depth {cell.depth}"]
    if cell.connections > 1:
        parts.append(f"{cell.connections} connections")
    return ", ".join(parts)


def corked_library(plugin):
    """The path of libnbdkit-corked.so, which lies beside the plugin."""
    folder = os.path.dirname(plugin)
    if not folder:  # the installed plugin
        config = subprocess.run(["nbdkit", "--dump-config"], capture_output=True, text=True,
                                check=True).stdout
        folder = re.search("^plugindir=(.*)", config, re.MULTILINE)[1]
    library = f"{folder}/libnbdkit-corked.so"
    if not os.path.isfile(library):
        raise Failed(f"aiodisk-corked: {library} is not a file")
    if re.search(r"[\s:$]", library):
        raise Failed(f"aiodisk-corked: LD_PRELOAD cannot name {library!r}")
    return library


class Server(Process):
    def __init__(self, bench, name, mode, image):
        pid_file, path = f"{bench.tmp}/pid", f"{bench.tmp}/sock"
        for leftover in filter(os.path.lexists, (pid_file, path)):
            os.unlink(leftover)
        tcp = bench.options.tcp
        port = str(socket.create_server(("127.0.0.1", 0)).getsockname()[1])  # a port that is free
        self.uri = f"nbd://127.0.0.1:{port}" if tcp else f"nbd+unix:///?socket={quote(path)}"
        if name.startswith("qemu-nbd"):
            where = ["-b", "127.0.0.1", "-p", port] if tcp else ["-k", path]
            disk = image
            if mode in rbd.MODES:
                disk = rbd.qemu_name(image, bench.cluster.settings[mode])
            argv = ["qemu-nbd", "-t", "-e", "64", "--discard=unmap", "-f", "raw",
                    f"--pid-file={pid_file}", *where, *PEERS[name][mode], disk]
        else:
            where = ["-i", "127.0.0.1", "-p", port] if tcp else ["-U", path]
            disk = f"{'rbd' if mode in rbd.MODES else 'file'}={image}"
            what = (["null", str(bench.options.size)] if name == CEILING
                    else [*PEERS[name][mode], disk] if name in PEERS
                    else [bench.options.plugin, *OURS[name], CACHE[mode], disk])
            threads = re.search(r"-t(\d+)$", name)
            threads = ["-t", threads[1]] if threads else []
            argv = ["nbdkit", "-f", "-P", pid_file, *threads, *where, *what]
        env = bench.cluster.environment(mode) if mode in rbd.MODES else {**os.environ}
        if "-corked" in name:
            env["LD_PRELOAD"] = corked_library(bench.options.plugin)
        self.engine = ["ioengine=nbd", f"uri={self.uri}"]
        super().__init__(f"{name} ({mode})", argv, f"{bench.tmp}/server.log", env)
        deadline = time.monotonic() + 20
        # nbdkit and qemu-nbd write the pid file after they have begun to listen.
        while not (os.path.exists(pid_file) and os.path.getsize(pid_file)):
            if pause(0.005, self.fd):
                raise self.failed(f"ended with status {self.reap()[0]} instead of serving")
            if time.monotonic() > deadline:
                raise self.failed("does not serve after 20 s")
        self.before = used_so_far(self.popen.pid)

    @staticmethod
    def connections(cell):
        """The depth of each of the client's jobs, and the number of its jobs."""
        return cell.depth, cell.connections

    def stop(self):
        """Returns CPU seconds and context switches since it began to serve, and peak RSS in MiB."""
        # Not ru_maxrss, which also counts the Python process that the server was before exec.
        with open(f"/proc/{self.popen.pid}/status") as f:
            rss = int(re.search(r"VmHWM:\s*(\d+)", f.read())[1]) / 1024
        for _ in range(20):
            # Again each second: qemu-nbd forgets a signal that comes before its main loop.
            os.kill(self.popen.pid, signal.SIGTERM)
            if pause(1, self.fd):
                break
        else:
            raise self.failed("has not ended 20 s after SIGTERM")
        status, usage = self.reap()
        if status:
            raise self.failed(f"ended with status {status}")
        return (usage.ru_utime + usage.ru_stime - self.before[0],
                usage.ru_nvcsw + usage.ru_nivcsw - self.before[1], rss)

    def client(self, argv, log, seconds):
        """Runs a client of this server to its end, and returns the client's resource usage."""
        client = Process(argv[0], argv, log)
        ready = pause(seconds, client.fd, self.fd)
        if self.fd in ready:
            raise self.failed(f"ended in the middle of a measurement, with status {self.reap()[0]}")
        status, usage = client.reap() if ready else (f"none after {seconds:.0f} s", None)
        if status:
            raise Failed(f"{client.failed(f'exit status {status}')}\n"
                         f"{self.failed('was the server')}")
        return usage


def make_images(paths, size):
    """Makes equal images, all filled with the same random data."""
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
    """Reads the image into the page cache (page), or drops it from there (direct)."""
    with open(path, "rb", buffering=0) as f:
        if mode == "direct":
            return os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        data = bytearray(BUFFER)
        while f.readinto(data):
            pause(0)


def run_fio(bench, server, cell):
    """Returns what the client saw, and how many requests the server answered.

    The ramp is a job of its own and not fio's ramp_time: the server's CPU time includes the ramp,
    and fio does not count the requests of ramp_time.
    """
    tmp, seconds = bench.tmp, bench.options.runtime
    depth, jobs = server.connections(cell)
    common = [*server.engine, "thread=1", f"rw={cell.rw}", f"bs={cell.bs}", f"iodepth={depth}",
              f"numjobs={jobs}", cell.extra,
              f"size={bench.options.size}", "time_based=1", "group_reporting=1"]
    with open(f"{tmp}/job.fio", "w") as f:
        print("[global]", *common, "[ramp]", f"runtime={seconds * 200:.0f}ms",
              "[measure]", "stonewall", f"runtime={seconds * 1000:.0f}ms", sep="\n", file=f)
    server.client(["fio", "--output-format=json", f"--output={tmp}/fio.json", f"{tmp}/job.fio"],
                  f"{tmp}/fio.log", seconds * 1.2 + PATIENCE)
    with open(f"{tmp}/fio.json") as f:
        # Lines of the nbd engine come before the JSON.
        jobs = json.loads("{" + ("\n" + f.read()).partition("\n{")[2])["jobs"]
    requests = [sum(job[way]["total_ios"] for way in ("read", "write", "sync")) for job in jobs]
    errors = [job["error"] for job in jobs]
    if any(errors) or len(jobs) != 2 or not all(requests):
        raise server.failed(f"fio reports errors {errors}, requests {requests}")
    job = jobs[1]
    latencies = [job[way][key].get("percentile", {}).get("99.000000", 0)
                 for way, key in (("read", "clat_ns"), ("write", "clat_ns"), ("sync", "lat_ns"))]
    cpu = job["job_runtime"] * 1000 * (job["usr_cpu"] + job["sys_cpu"]) / 100
    rate = sum(job[way]["iops" if cell.bs == "4k" else "bw_bytes"] for way in ("read", "write"))
    seen = {"rate": rate, "client_cpu_us": cpu / requests[1],
            "client_switches": job["ctx"] / requests[1], "p99_us": max(latencies) / 1000}
    return seen, sum(requests)


def run_maps(bench, server, _cell):
    """Runs one map after another; the first is the ramp.  p99_us is the slowest map's time."""
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
        self.cluster = None  # for the modes of rbd.py

    def image(self, mode, name, cell):
        if mode in rbd.MODES:
            return f"{rbd.POOL}/{rbd.IMAGE}"
        # Maps only read, so all servers share the sparse image.
        return f"{self.tmp}/sparse" if cell.rw == "map" else f"{self.tmp}/{name}.img"

    def server(self, name, mode, image):
        return rbd.Engine(self, mode) if name == rbd.ENGINE else Server(self, name, mode, image)

    def measure(self, mode, cell, name):
        image = self.image(mode, name, cell)
        if mode not in rbd.MODES:
            prepare(image, mode)
        server = self.server(name, mode, image)
        result, requests = (run_maps if cell.rw == "map" else run_fio)(self, server, cell)
        cpu, switches, rss = server.stop()
        if mode not in rbd.MODES:
            with open(image, "rb") as f:
                os.fsync(f.fileno())  # its writeback must not slow down the next measurement
        return {**result, "server_cpu_us": cpu * 1e6 / requests,
                "server_switches": switches / requests, "rss_mib": rss}

    def usable(self, mode):
        """Returns the servers that can serve in this mode here; prints why others cannot."""
        found, probe = [], self.image(mode, "probe", CELLS["rr1"])
        if mode not in rbd.MODES:
            make_images([probe], 1 << 20)
        for name in (self.options.ours + [p for p in self.options.peers if mode in PEERS[p]]
                     + [CEILING] * self.options.ceiling):
            try:
                server = self.server(name, mode, probe)
                server.stop()
                found.append(name)
                if server.log and os.path.getsize(server.log):
                    say(f"note: {server.failed('serves')}")
            except Failed as e:
                say(f"skipped: {e}")
                kill_all(but=self.cluster)
        if not set(found) & set(OURS):
            raise Failed(f"--ours: none of {', '.join(self.options.ours)} serves here ({mode})")
        return found

    def run(self):
        cells, rounds = self.options.cells, self.options.rounds
        modes = [mode for mode in CACHE if any(key.startswith(f"{mode}/") for key in cells)]
        if set(modes) & set(rbd.MODES):
            self.cluster = rbd.Cluster(self.tmp, self.options.size)
        servers = {mode: self.usable(mode) for mode in modes}
        of_cell = {key: [name for name in servers[key.split("/")[0]]
                         if name != CEILING or cell_of(key).rw != "map"] for key in cells}
        images = {self.image(key.split("/")[0], name, cell_of(key))
                  for key in cells for name in of_cell[key]}
        if shutil.disk_usage(self.tmp).free < len(images) * self.options.size:
            raise Failed(f"--size: {self.options.dir} has no room for {len(images)} images of this "
                         "size; allowed is what fits there")
        count = rounds * sum(map(len, of_cell.values()))
        minutes = count * (self.options.runtime * 1.2 + 0.6) / 60
        say(f"{count} measurements, about {minutes:.0f} min; images in {self.tmp}")
        make_images([path for path in images if path.endswith(".img")], self.options.size)
        if f"{self.tmp}/sparse" in images:
            make_sparse(f"{self.tmp}/sparse")
        for key in cells:
            unit, shown = unit_of(cell_of(key))
            for turn in range(rounds):
                first = turn % len(of_cell[key])
                for name in of_cell[key][first:] + of_cell[key][:first]:
                    result = self.measure(key.split("/")[0], cell_of(key), name)
                    self.measurements.append(
                        {"cell": key, "round": turn + 1, "server": name, **result})
                    say(f"{key} round {turn + 1}/{rounds} {name}: "
                        f"{short(shown(result['rate']))} {unit}")
