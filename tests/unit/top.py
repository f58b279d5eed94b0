#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""aiodisk-top's calculation: rates and percentiles are exact for known metrics files; counters that
start again, exports that come and go, several files and damaged files do no harm.

    top.py SOURCE-DIRECTORY
"""
import importlib.machinery
import importlib.util
import math
import os
import random
import sys
import tempfile
import time
import unittest

SOURCE = sys.argv.pop(1)
sys.path[:0] = [SOURCE + "/plugin/top", SOURCE + "/tests/lib"]
sys.dont_write_bytecode = True
try:
    import prometheus_client.parser
except ModuleNotFoundError:
    print("skipped: needs Debian's package python3-prometheus-client")
    sys.exit(77)
import aiodisk_metrics
import fake_metrics as metrics

loader = importlib.machinery.SourceFileLoader("top", SOURCE + "/plugin/top/aiodisk-top")
top = importlib.util.module_from_spec(importlib.util.spec_from_loader("top", loader))
loader.exec_module(top)


class Quantile(unittest.TestCase):
    def check(self, samples, q):
        """The result lies in the bucket of the true quantile."""
        bounds = metrics.BOUNDS + [float("inf")]
        buckets = {bound: sum(s <= bound for s in samples) for bound in bounds}
        true = sorted(samples)[math.ceil(len(samples) * q) - 1]
        upper = next(bound for bound in bounds if true <= bound)
        lower = max([0] + [bound for bound in bounds if bound < upper])
        got = aiodisk_metrics.quantile(buckets, q)
        self.assertLessEqual(lower, got)
        self.assertLessEqual(got, upper)

    def test_random(self):
        source = random.Random(1)
        for _ in range(300):
            samples = [10 ** source.uniform(-6, 1.0) for _ in range(source.randint(1, 200))]
            for q in 0.5, 0.99:
                self.check(samples, q)

    def test_edges(self):
        quantile, inf = aiodisk_metrics.quantile, float("inf")
        self.assertIsNone(quantile({}, 0.5))
        self.assertIsNone(quantile({1.0: 0, inf: 0}, 0.5))
        self.assertEqual(quantile({1.0: 10, 2.0: 10, inf: 10}, 0.5), 0.5)
        self.assertEqual(quantile({1.0: 0, 2.0: 10, inf: 10}, 0.5), 1.5)
        self.assertEqual(quantile({1.0: 50, 2.0: 50, 4.0: 100, inf: 100}, 0.99), 3.96)
        # Beyond the last finite bound there is nothing to interpolate.
        self.assertEqual(quantile({1.0: 1, 2.0: 2, inf: 100}, 0.99), 2.0)
        self.assertEqual(quantile({inf: 5}, 0.99), 0)


class File(unittest.TestCase):
    """One metrics file, written with a chosen clock."""

    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.now = float(int(time.time()))
        self.file, self.server = self.new("a.prom")

    def new(self, name):
        path = os.path.join(self.directory.name, name)
        return metrics.Server(path, self.now - 100), aiodisk_metrics.Server(path)

    def update(self, seconds=1.0, **up):
        """The clock advances, the server writes, aiodisk-top reads."""
        self.now += seconds
        self.file.write(self.now, **up)
        self.server.refresh()

    def row(self, export="e"):
        self.assertIsNone(self.server.error)
        return self.server.exports()[export]

    def test_rates(self):
        self.file.count("e", "read", 1000, 4096, 100e-6)
        self.update()
        self.assertIsNone(self.row()["reads_per_second"])       # one update tells no rate
        self.assertIsNone(self.row()["read_p99_seconds"])
        self.file.count("e", "read", 500, 4096, 100e-6)
        self.file.count("e", "write", 99, 512, 2e-3)
        self.file.count("e", "write", 1, 512, 3.0)
        self.file.count("e", "trim", 7, 512, 1e-3)
        self.update(2)
        row = self.row()
        self.assertAlmostEqual(row["reads_per_second"], 250, 3)
        self.assertAlmostEqual(row["writes_per_second"], 50, 3)
        self.assertAlmostEqual(row["read_bytes_per_second"], 250 * 4096, 0)
        self.assertAlmostEqual(row["write_bytes_per_second"], 50 * 512, 0)
        self.assertTrue(80e-6 < row["read_p50_seconds"] < row["read_p99_seconds"] <= 160e-6, row)
        self.assertTrue(1.28e-3 < row["write_p50_seconds"] <= 2.56e-3, row)
        self.assertAlmostEqual(row["write_p99_seconds"], 2.56e-3)
        self.assertIsNone(row["flush_p99_seconds"])
        # Only the last interval counts: its percentiles are not those since the start.
        self.file.count("e", "write", 10, 512, 50e-6)
        self.update()
        row = self.row()
        self.assertLessEqual(row["write_p99_seconds"], 80e-6)
        self.assertEqual(row["reads_per_second"], 0)
        self.assertIsNone(row["read_p99_seconds"])

    def test_same_update(self):
        """Reading the same update twice changes nothing."""
        self.update()
        self.file.count("e", "read", 10, 512, 1e-3)
        self.update()
        before = self.row()
        self.server.refresh()
        self.assertEqual(self.row(), before)
        self.assertAlmostEqual(before["reads_per_second"], 10, 3)

    def test_queue_wait_of_both_lanes(self):
        self.file.count("e", "read", 1, 512, 1e-3)
        self.update()
        self.file.observe("queue_wait_seconds", 15e-6, 900, export="e", lane="fast")
        self.file.observe("queue_wait_seconds", 1.0, 5, export="e", lane="slow")
        self.update()
        self.assertTrue(10e-6 < self.row()["queue_wait_p99_seconds"] <= 20e-6, self.row())
        self.file.observe("queue_wait_seconds", 15e-6, 90, export="e", lane="fast")
        self.file.observe("queue_wait_seconds", 1.0, 10, export="e", lane="slow")
        self.update()
        self.assertTrue(0.64 < self.row()["queue_wait_p99_seconds"] < 1.32, self.row())

    def test_gauges_and_errors(self):
        self.file.set("requests_in_flight", 5, export="e")
        self.file.set("oldest_request_seconds", 12.5, export="e")
        self.file.set("disk_failed", 1, export="e")
        self.file.add("request_errors_total", 3, export="e", op="read", errno="EIO")
        self.update()
        self.file.add("request_errors_total", 2, export="e", op="write", errno="ENOSPC")
        self.update()
        row = self.row()
        self.assertEqual((row["requests_in_flight"], row["oldest_request_seconds"]), (5, 12.5))
        self.assertEqual((row["errors"], row["disk_failed"]), (5, True))
        self.assertAlmostEqual(row["errors_per_second"], 2, 3)

    def test_restart(self):
        """A new server counts from 0: also where it has counted more than the old one."""
        self.file.count("e", "read", 100, 512, 1e-3)
        self.update()
        self.update()
        old = self.file
        self.file = metrics.Server(old.path, self.now + 2)
        self.file.count("e", "read", 400, 512, 1e-3)
        self.update(4)                          # 2 s after the new start
        self.assertAlmostEqual(self.row()["reads_per_second"], 200, 1)

    def test_counter_decreases(self):
        """The same without a new start time, as with two servers that write one file."""
        for count in 100, 50:
            self.file.count("e", "read", count, 512, 1e-3)
        self.update()
        self.file.counters.clear()
        self.file.count("e", "read", 30, 512, 1e-3)
        self.update()
        self.assertAlmostEqual(self.row()["reads_per_second"], 30, 3)
        self.assertTrue(0 < self.row()["read_p99_seconds"] <= 1.28e-3)

    def test_exports_come_and_go(self):
        self.file.count("e", "read", 100, 512, 1e-3)
        self.update()
        self.file.count("new", "read", 20, 512, 1e-3)
        self.update()
        self.assertAlmostEqual(self.row("new")["reads_per_second"], 20, 3)
        kept = dict(self.file.counters)
        self.file.counters = {k: v for k, v in kept.items() if 'export="new"' not in k}
        self.update()
        self.assertEqual(set(self.server.exports()), {"e"})
        self.file.counters = kept               # it comes back, and its counters go on
        self.file.count("new", "read", 5, 512, 1e-3)
        self.update()
        self.assertAlmostEqual(self.row("new")["reads_per_second"], 5, 3)

    def test_names(self):
        for name in ["", 'a"b', "line\nfeed", "back\\slash", "\\n", "ü 世界", "a,op=\"trim\"}",
                     "# x"]:
            self.file.count(name, "read", 1, 512, 1e-3)
            self.update()
            self.file.count(name, "read", 7, 512, 1e-3)
            self.update()
            self.assertAlmostEqual(self.row(name)["reads_per_second"], 7, 3)
        self.assertEqual(top.printable("a\x1b[2Jb\nü世\u202e"), "a\\x1b[2Jb\\nü世\\u202e")

    def test_states(self):
        self.file.count("e", "read", 1, 512, 1e-3)
        self.update(0)
        self.assertEqual(self.server.state(), "running")
        self.update(-20)
        self.assertEqual(self.server.state(), "gone")
        self.assertRegex(self.server.problem(), "^server gone: no update for 2[01]s$")
        self.assertIsNone(self.row()["reads_per_second"])
        self.update(20, up=0)
        self.assertEqual(self.server.state(), "ended")
        os.remove(self.file.path)
        self.server.refresh()
        self.assertEqual(self.server.state(), "gone")
        self.assertIn("No such file", self.server.problem())
        self.update(1)
        self.assertEqual(self.server.state(), "running")        # it is back

    def test_pool(self):
        self.file.set("pool_threads", 4, state="busy")
        self.file.set("pool_queue_length", 6, lane="slow")
        self.file.add("thread_create_failures_total", 2)
        self.update()
        pool = self.server.pool()
        self.assertEqual([pool[name] for name in ("threads_busy", "queued_slow", "queued_fast",
                                                  "thread_create_failures")], [4, 6, 0, 2])

    def test_server_label(self):
        """With metrics-server=NAME each line has one more label."""
        with open(self.file.path, "w", encoding="utf-8") as file:
            file.write(f'aiodisk_updated_seconds{{server="a,b"}} {self.now}\n'
                       'aiodisk_up{server="a,b"} 1\n'
                       'aiodisk_connections{export="e",server="a,b"} 3\n'
                       'aiodisk_pool_threads{state="busy",server="a,b"} 5\n')
        self.server.refresh()
        self.assertEqual(self.server.state(), "running")
        self.assertEqual((self.row()["connections"], self.server.pool()["threads_busy"]), (3, 5))

    def test_damaged(self):
        for text, message in [
                ("aiodisk_up{", "format"), ("aiodisk_up{a=}\n", "format"),
                ("aiodisk_up one\n", "format"), ('aiodisk_requests_total{export="a} 1\n', "format"),
                ("", "not a metrics file"), ("node_load1 3\n", "not a metrics file"),
                (b"aiodisk_up 1\n\xff", "UTF-8")]:
            with open(self.file.path, "wb") as file:
                file.write(text if isinstance(text, bytes) else text.encode())
            self.server.refresh()
            self.assertIn(message, str(self.server.error), text)
        with open(self.file.path, "w", encoding="utf-8") as file:
            file.write(f"aiodisk_updated_seconds {time.time()}\naiodisk_bounce_bytes NaN\n")
        self.server.refresh()
        self.assertIsNone(self.server.error)
        self.assertEqual(self.server.pool()["bounce_bytes"], 0)


class Formats(unittest.TestCase):
    def test_times(self):
        for seconds, text in [(None, "-"), (0, "0us"), (1.2e-5, "12us"), (9.994e-4, "999us"),
                              (9.996e-4, "1.0ms"), (1.24e-3, "1.2ms"), (9.96e-3, "10ms"),
                              (0.9996, "1.0s"), (10.5, "10s"), (7200, "7200s"), (36000, "10h")]:
            self.assertEqual(top.format_time(seconds), text)

    def test_numbers(self):
        for value, text in [(None, "-"), (0, "0"), (0.25, "0.2"), (1, "1"), (9.96, "10"),
                            (9999, "9999"), (10000, "10.0k"), (167700, "168k"), (999700, "1.0M"),
                            (2.5e9, "2.5G")]:
            self.assertEqual(top.format_number(value), text)
        for exponent in range(-30, 150):
            for form in top.format_number, top.format_megabytes:
                self.assertLessEqual(len(form(10 ** (exponent / 10))), 5)


if __name__ == "__main__":
    unittest.main()
