# SPDX-License-Identifier: BSD-3-Clause
"""Writes metrics files of servers that do not exist: for tests of aiodisk-top's calculation and
display only, where each figure must be known exactly.  Whether a real server's file is right is
the matter of other tests.

    fake_metrics.py FILE EXPORTS [UPDATES]

updates FILE each second with the load of default_load(), and says at the end that the server ended.
"""
import os
import sys
import time

BOUNDS = [1e-5 * 2 ** n for n in range(21)]     # seconds
OPS = ("read", "write", "flush", "trim", "zero", "cache", "extents")


def escape(name):
    """An export name as a label's value."""
    return name.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class Server:
    """Counters of a server.  count() adds to them; write() replaces the file."""

    def __init__(self, path, started):
        self.path, self.started = path, started
        self.counters = {}      # "name{labels}" -> value
        self.gauges = {}

    def add(self, name, value, **labels):
        key = self.key(name, **labels)
        self.counters[key] = self.counters.get(key, 0) + value

    def set(self, name, value, **labels):
        self.gauges[self.key(name, **labels)] = value

    @staticmethod
    def key(name, **labels):
        inner = ",".join(f'{label}="{escape(value)}"' for label, value in labels.items())
        return f"aiodisk_{name}" + ("{" + inner + "}" if inner else "")

    def observe(self, name, seconds, count, **labels):
        """Adds count samples of this duration to a histogram."""
        for bound in BOUNDS:
            self.add(name + "_bucket", count if seconds <= bound else 0, **labels, le=f"{bound:g}")
        self.add(name + "_bucket", count, **labels, le="+Inf")
        self.add(name + "_sum", seconds * count, **labels)
        self.add(name + "_count", count, **labels)

    def count(self, export, op, count, size, seconds):
        """Adds count requests of size bytes that took this long."""
        self.add("requests_total", count, export=export, op=op)
        self.add("transferred_bytes_total", count * size, export=export, op=op)
        self.observe("request_duration_seconds", seconds, count, export=export, op=op)
        self.observe("backend_duration_seconds", seconds / 2, count, export=export, op=op)

    def write(self, updated, up=1):
        """Replaces the file, as a server does."""
        lines = [f"{key} {value}" for part in (self.counters, self.gauges)
                 for key, value in part.items()]
        lines += [f"aiodisk_up {up}", f"aiodisk_updated_seconds {updated:.6f}",
                  f"aiodisk_start_time_seconds {self.started:.2f}",
                  'aiodisk_build_info{version="0.1.0"} 1']
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            file.write("# HELP aiodisk_up Whether the server runs.\n# TYPE aiodisk_up gauge\n")
            file.write("\n".join(lines) + "\n")
        os.rename(self.path + ".new", self.path)


def default_load(server, seconds, exports):
    """What the exports do in this time: disk0 reads 4 KiB 1000 times a second in 100 us each, disk1
    half as often, and so on; every tenth also writes and flushes."""
    for i in range(exports):
        export = f"disk{i}"
        reads = round(1000 * seconds / (i + 1))
        server.count(export, "read", reads, 4096, 100e-6)
        server.observe("queue_wait_seconds", 50e-6, reads, export=export, lane="fast")
        for op in ("write", "flush"):
            server.count(export, op, round(200 * seconds) if i % 10 == 0 else 0,
                         65536 if op == "write" else 0, 3e-3 if op == "write" else 20e-3)
        server.add("request_errors_total", 0, export=export, op="read", errno="EIO")
        server.set("connections", 2, export=export)
        server.set("requests_in_flight", 16 if i == 0 else 0, export=export)
        server.set("oldest_request_seconds", 0.25 if i == 0 else 0, export=export)
        server.set("disk_failed", 1 if i == 3 else 0, export=export)
    server.set("pool_threads", 3 * exports, state="busy")
    server.set("pool_threads", exports, state="idle")
    server.set("pool_queue_length", 2 * exports, lane="fast")
    server.set("pool_queue_length", 0, lane="slow")
    server.set("bounce_bytes", 3 << 20)


def main():
    path, exports = sys.argv[1], int(sys.argv[2])
    updates = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    server = Server(path, time.time() - 1)
    default_load(server, 1, exports)
    second = dict(server.counters)
    # The time that the file claims advances by whole seconds, so that rates are exact.
    updated, n = time.time(), 1
    for _ in range(updates):
        server.counters = {key: value * n for key, value in second.items()}
        server.write(updated)
        time.sleep(max(0, updated + 1 - time.time()))
        passed = max(1, int(time.time() - updated))
        updated, n = updated + passed, n + passed
    server.write(updated, up=0)


if __name__ == "__main__":
    main()
