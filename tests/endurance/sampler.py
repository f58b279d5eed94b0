# SPDX-License-Identifier: BSD-3-Clause
"""Samples of a server: threads, descriptors, memory, processor time, and the 99th percentile of the
durations of its requests since the sample before.

The durations come from the metrics file of the server; the rest comes from /proc.
"""
import csv
import os
import re
import sys
import time

sys.path.append(os.path.dirname(__file__) + "/../../plugin/top")
import aiodisk_metrics
from servers import held

FIELDS = ["seconds", "phase", "connects", "threads", "descriptors", "anon_kib", "pss_kib",
          "requests", "p99_read_ms", "p99_write_ms", "cpu_percent", "machine_percent"]
TICK = os.sysconf("SC_CLK_TCK")
BUCKET = re.compile(r'aiodisk_request_duration_seconds_bucket\{.*op="(read|write)".*'
                    r'le="([^"]*)"\} (\d+)')


def field(path, name):
    """The number that follows `name` in a file of lines like "Pss:  100 kB"."""
    with open(path, encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))


class Sampler:
    """Appends a row to a CSV file for each call of sample()."""

    def __init__(self, pid, metrics, path):
        self.pid, self.metrics = pid, metrics
        self.file = open(path, "w", encoding="ascii", newline="")
        self.rows = csv.DictWriter(self.file, FIELDS)
        self.rows.writeheader()
        self.start = time.monotonic()
        self.before = self._cumulative()

    def held(self):
        return held(self.pid)

    def memory(self):
        """KiB that no file backs, and the proportional share of all memory."""
        return (field(f"/proc/{self.pid}/status", "RssAnon"),
                field(f"/proc/{self.pid}/smaps_rollup", "Pss"))

    def _cumulative(self):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as file:
            times = file.read().rsplit(")", 1)[1].split()
        with open("/proc/stat", encoding="ascii") as file:
            machine = [int(n) for n in file.readline().split()[1:9]]
        buckets = {"read": {}, "write": {}}
        with open(self.metrics, encoding="utf-8") as file:
            for op, bound, count in BUCKET.findall(file.read()):
                bound = float(bound.replace("+Inf", "inf"))
                buckets[op][bound] = buckets[op].get(bound, 0) + int(count)
        return {"time": time.monotonic(), "cpu": (int(times[11]) + int(times[12])) / TICK,
                "busy": sum(machine) - machine[3] - machine[4], "all": sum(machine),
                "buckets": buckets}

    def _window(self, now):
        """The histograms of the requests since the sample before."""
        before = self.before["buckets"]
        return {op: {bound: count - before[op].get(bound, 0) for bound, count in buckets.items()}
                for op, buckets in now["buckets"].items()}

    def sample(self, phase, connects):
        now = self._cumulative()
        window = self._window(now)
        threads, descriptors = self.held()
        anon, pss = self.memory()
        seconds = now["time"] - self.before["time"]
        machine = now["all"] - self.before["all"]
        p99 = {op: aiodisk_metrics.quantile(window[op], 0.99) for op in window}
        row = {"seconds": f"{now['time'] - self.start:.1f}", "phase": phase, "connects": connects,
               "threads": threads, "descriptors": descriptors, "anon_kib": anon, "pss_kib": pss,
               "requests": sum(max(w.values(), default=0) for w in window.values()),
               "cpu_percent": f"{(now['cpu'] - self.before['cpu']) / seconds * 100:.1f}",
               "machine_percent": f"{(now['busy'] - self.before['busy']) / machine * 100:.0f}"
                                  if machine else ""}
        for op, value in p99.items():
            row[f"p99_{op}_ms"] = "" if value is None else f"{value * 1000:.3f}"
        self.rows.writerow(row)
        self.file.flush()
        self.before = now
        return row
