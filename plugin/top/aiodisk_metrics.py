# SPDX-License-Identifier: BSD-3-Clause
"""What aiodisk-top knows of a server: reads its metrics file and calculates rates and percentiles.

prometheus_client parses the files.  All rates and percentiles are differences between two updates
of a file, divided by the time between these updates that the server itself noted
(aiodisk_updated_seconds).  So it does not matter when the file is read.  The module only reads
files; it never connects to a server, and never prints.  One thread uses it.
"""
import math
import os
import stat
import time

STALE_SECONDS = 5       # a server writes its file each second
MAX_FILE_BYTES = 256 << 20
PREFIX = "aiodisk_"
OPS = ("read", "write", "flush")

DURATION = "request_duration_seconds_bucket"
QUEUE_WAIT = "queue_wait_seconds_bucket"
# The metrics that the view uses; other lines of a file are not parsed.
COUNTERS = ("requests_total", "request_errors_total", "transferred_bytes_total",
            DURATION, QUEUE_WAIT, "thread_create_failures_total")
GAUGES = ("up", "updated_seconds", "connections", "requests_in_flight", "oldest_request_seconds",
          "disk_failed", "pool_threads", "pool_queue_length", "bounce_bytes", "start_time_seconds")
NEEDED = tuple(PREFIX + name + end for name in COUNTERS + GAUGES for end in ("{", " "))
OF_THE_VIEW = tuple(f'op="{op}"' for op in OPS)


class FileError(Exception):
    """A metrics file that cannot be used; the text says why."""


class ForeignFile(FileError):
    """A file without metrics of aiodisk."""


def format_time(seconds):
    """At most 5 characters: 850us, 1.2ms, 12ms, 1.5s, 3600s, 12h."""
    if seconds is None:
        return "-"
    for unit, size in (("us", 1e-6), ("ms", 1e-3), ("s", 1)):
        value = seconds / size
        if unit != "us" and value < 9.95:
            return f"{value:.1f}{unit}"
        if value < 999.5 or unit == "s" and value < 9999.5:
            return f"{value:.0f}{unit}"
    return f"{seconds / 3600:.0f}h"


# --- Files ---

def read_text(path):
    """The text of a regular file."""
    try:
        # O_NONBLOCK: to open a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FileError("not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise FileError(f"has more than {MAX_FILE_BYTES >> 20} MiB")
            return file.read().decode("utf-8")
    except OSError as error:
        raise FileError(error.strerror) from error
    except UnicodeDecodeError as error:
        raise FileError("is not UTF-8 text") from error


def parse(text, cache):
    """The series of a file by its lines: (export, key, value).  A key is the name, the labels but
    export, le and server, and the bucket's bound.  Lines that the cache of the previous update has
    are not parsed again: with 500 exports most lines do not change within a second."""
    from prometheus_client.parser import text_fd_to_metric_families
    lines = [line for line in text.split("\n") if line.startswith(NEEDED) and not
             (line.startswith(PREFIX + DURATION) and not any(op in line for op in OF_THE_VIEW))]
    fresh = [line for line in lines if line not in cache]
    series = []
    try:
        for family in text_fd_to_metric_families(fresh):
            for name, labels, value in (sample[:3] for sample in family.samples):
                export, bound = labels.pop("export", None), labels.pop("le", None)
                labels.pop("server", None)      # metrics-server=NAME; the same in all lines
                key = (name.removeprefix(PREFIX), tuple(sorted(labels.items())),
                       None if bound is None else float(bound))
                series.append((export, key, value))
    except (ValueError, IndexError, KeyError) as error:
        raise FileError(f"is not in Prometheus's text format: {error}") from error
    if len(series) != len(fresh):
        raise FileError("is not in Prometheus's text format")
    new = dict(zip(fresh, series))
    return {line: new.get(line) or cache[line] for line in lines}


class Snapshot:
    """What one update of a file says.  Series without the label export belong to export None."""

    def __init__(self, series):
        self.counters = {}      # export -> {key: value}
        self.gauges = {}        # the same
        for export, key, value in series:
            group = self.counters if key[0] in COUNTERS else self.gauges
            if not math.isnan(value):
                group.setdefault(export, {})[key] = value
        self.exports = (self.counters.keys() | self.gauges.keys()) - {None}
        self.updated = self.gauge(None, "updated_seconds")
        self.started = self.gauge(None, "start_time_seconds")
        self.up = self.gauge(None, "up") != 0
        if self.updated is None:
            raise ForeignFile("not a metrics file of aiodisk: has no aiodisk_updated_seconds")

    def gauge(self, export, name):
        return self.gauges.get(export, {}).get((name, (), None))

    def total(self, name, **labels):
        """The sum of a gauge over its series, which may have the label export or not."""
        key = name, tuple(sorted(labels.items())), None
        return sum(series.get(key, 0) for series in self.gauges.values())


# --- Calculation ---

def quantile(buckets, q):
    """The q-quantile of {upper bound: cumulative count}, interpolated within the bucket as
    Prometheus's histogram_quantile does.  None without samples.  A sample in the last bucket, which
    has no finite bound, counts as the largest finite bound."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if total <= 0:
        return None
    lower = below = 0
    for bound in bounds:
        if buckets[bound] >= q * total and buckets[bound] > below:
            if math.isinf(bound):
                break
            return lower + (bound - lower) * (q * total - below) / (buckets[bound] - below)
        if not math.isinf(bound):
            lower, below = bound, max(below, buckets[bound])
    return lower


def differences(old, new):
    """What the counters of one export have counted since their old values, without the counters and
    histograms that have counted nothing.  A counter that has become smaller has started again from
    0; so has a histogram of which a bucket did."""
    changed = {key[:2] for key, value in new.items() if value != old.get(key, 0)}
    again = {key[:2] for key, value in new.items() if value < old.get(key, 0)}
    return {key: value - (0 if key[:2] in again else old.get(key, 0))
            for key, value in new.items() if key[:2] in changed}


def figures(gauge, counters, delta, interval):
    """What the view shows of one export; the names are those of the JSON output.  delta is None if
    no interval is known."""
    histograms = {}     # (name, labels) -> {bound: difference}
    for (name, labels, bound), value in (delta or {}).items():
        if bound is not None:
            histograms.setdefault((name, labels), {})[bound] = value

    def rate(name, op):
        return None if delta is None else delta.get((name, (("op", op),), None), 0) / interval

    def percentile(q, op):
        return quantile(histograms.get((DURATION, (("op", op),)), {}), q)

    def queue_wait(q):
        lanes = {}
        for (name, _), buckets in histograms.items():
            if name == QUEUE_WAIT:
                for bound, value in buckets.items():
                    lanes[bound] = lanes.get(bound, 0) + value
        return quantile(lanes, q)

    def errors(of):
        return sum(value for key, value in of.items() if key[0] == "request_errors_total")

    return {
        "connections": gauge("connections"),
        "reads_per_second": rate("requests_total", "read"),
        "writes_per_second": rate("requests_total", "write"),
        "read_bytes_per_second": rate("transferred_bytes_total", "read"),
        "write_bytes_per_second": rate("transferred_bytes_total", "write"),
        "read_p50_seconds": percentile(0.5, "read"),
        "read_p99_seconds": percentile(0.99, "read"),
        "write_p50_seconds": percentile(0.5, "write"),
        "write_p99_seconds": percentile(0.99, "write"),
        "flush_p99_seconds": percentile(0.99, "flush"),
        "queue_wait_p99_seconds": queue_wait(0.99),
        "requests_in_flight": gauge("requests_in_flight"),
        "oldest_request_seconds": gauge("oldest_request_seconds"),
        "errors": errors(counters),
        "errors_per_second": None if delta is None else errors(delta) / interval,
        "disk_failed": bool(gauge("disk_failed")),
    }


NOTHING = Snapshot([(None, ("updated_seconds", (), None), 0)])


class Server:
    """One metrics file and what is known from its last two updates."""

    def __init__(self, path):
        self.path = path
        self.cache = {}         # line -> sample, of the last update
        self.last = None        # the last Snapshot
        self.known = {}         # export -> last values of its counters, also if it is gone
        self.interval = None    # seconds between the last two updates, once there were two
        self.deltas = {}        # export -> {key: difference}
        self.error = None       # the FileError of the last attempt to read the file

    def refresh(self):
        """Reads the file.  Without an update the differences stay as they are."""
        try:
            self.cache = parse(read_text(self.path), self.cache)
            new = Snapshot(self.cache.values())
        except FileError as error:
            self.error = error
            return
        self.error = None
        old, self.last = self.last, new
        if old and (old.updated, old.started) == (new.updated, new.started):
            return
        if old and old.started != new.started:
            # The server was restarted: its counters started at 0 when it started.
            self.known = {}
            self.interval = new.updated - (new.started or old.updated)
        elif old:
            self.interval = new.updated - old.updated
        if old:
            self.deltas = {export: differences(self.known.get(export, {}), counters)
                           for export, counters in new.counters.items()}
        self.known.update(new.counters)

    def has_interval(self):
        return self.interval is not None and self.interval > 0

    def age(self):
        """Seconds since the last update; not negative, even if the clock was set back."""
        return max(0.0, time.time() - self.last.updated) if self.last else None

    def state(self):
        """running, ended (the server said so), or gone (no update, or no readable file)."""
        if self.error or not self.last:
            return "gone"
        if not self.last.up:
            return "ended"
        return "gone" if self.age() > STALE_SECONDS else "running"

    def problem(self):
        """Why the state is not running, or None."""
        state = self.state()
        if state == "running":
            return None
        if self.error:
            return f"{self.error}: server gone"
        if state == "ended":
            return f"server gone: it ended {format_time(self.age())} ago"
        return f"server gone: no update for {format_time(self.age())}"

    def exports(self):
        """The exports with their figures, which are unknown (None) if the server is gone."""
        if not self.last:
            return {}
        live = self.state() == "running"
        return {export: figures(
            (lambda name, export=export: self.last.gauge(export, name)) if live else
            (lambda name: None),
            self.last.counters.get(export, {}),
            self.deltas.get(export, {}) if live and self.has_interval() else None,
            self.interval) for export in self.last.exports}

    def pool(self):
        """The sums over the pools of all images; zeros if the server is gone."""
        running = self.last and self.state() == "running"
        one = self.last if running else NOTHING
        return {
            "threads_busy": one.total("pool_threads", state="busy"),
            "threads_idle": one.total("pool_threads", state="idle"),
            "queued_fast": one.total("pool_queue_length", lane="fast"),
            "queued_slow": one.total("pool_queue_length", lane="slow"),
            "bounce_bytes": one.total("bounce_bytes"),
            "thread_create_failures":
                one.counters.get(None, {}).get(("thread_create_failures_total", (), None), 0),
        }

    def as_json(self):
        return {"file": self.path, "state": self.state(), "problem": self.problem(),
                "age_seconds": self.age(),
                "interval_seconds": self.interval if self.has_interval() else None,
                "pool": self.pool(),
                "exports": [{"export": export, **values}
                            for export, values in sorted(self.exports().items())]}


class Servers:
    """The servers that the arguments name.  A directory stands for all its *.prom files, also for
    those that come later."""

    def __init__(self, paths):
        self.paths = paths
        self.by_path = {}
        self.refresh()
        for path in paths:
            if path in self.by_path and self.by_path[path].error:
                raise FileError(f"{path}: {self.by_path[path].error}")
        if not self.list():
            raise FileError(f"{', '.join(paths)}: no metrics file (*.prom) of aiodisk is there; "
                            "a server with metrics=FILE writes one")

    def refresh(self):
        found = []
        for path in self.paths:
            if os.path.isdir(path):
                try:
                    found += sorted(entry.path for entry in os.scandir(path)
                                    if entry.name.endswith(".prom"))
                except OSError as error:
                    if not self.by_path:
                        raise FileError(f"{path}: {error.strerror}") from error
            else:
                found.append(path)
        self.by_path = {path: self.by_path.get(path) or Server(path) for path in found}
        for server in self.by_path.values():
            server.refresh()

    def list(self):
        """All but the files in a directory that are not aiodisk's."""
        return [server for path, server in self.by_path.items()
                if path in self.paths or not isinstance(server.error, ForeignFile)]

    def wait_for_interval(self, delay):
        """Waits for at least delay seconds, until each server that runs was updated."""
        limit = time.monotonic() + delay + STALE_SECONDS + 1
        time.sleep(delay)
        while True:
            self.refresh()
            waiting = [s for s in self.list() if s.state() == "running" and not s.has_interval()]
            if not waiting or time.monotonic() > limit:
                return
            time.sleep(0.1)
