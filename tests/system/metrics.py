#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Checks a metrics file, as the first word says; the rest of the words are the arguments of the
function of that name.  Parsed by the client library of Prometheus.
"""
import json
import re
import sys

from prometheus_client.parser import text_string_to_metric_families


def read(path):
    """A list of (name without prefix, labels, value)."""
    with open(path, encoding="utf-8") as f:
        return [(s.name.removeprefix("aiodisk_"), s.labels, s.value)
                for family in text_string_to_metric_families(f.read()) for s in family.samples]


def total(samples, name, **labels):
    return sum(v for n, l, v in samples
               if n == name and all(l.get(k) == x for k, x in labels.items()))


def expect(what, got, wanted):
    if got != wanted:
        sys.exit(f"{what}: {got} instead of {wanted}")


def totals(path, *fio_files):
    """The requests and bytes of the file are those that fio counted, and each histogram holds as
    many requests as were counted.
    """
    samples = read(path)
    requests, transferred = {}, {}
    for fio_file in fio_files:
        with open(fio_file, encoding="ascii") as f:
            job = json.load(f)["jobs"][0]
        expect("fio's errors", job["error"], 0)
        for op in "read", "write", "trim":
            requests[op] = requests.get(op, 0) + job[op]["total_ios"]
            transferred[op] = transferred.get(op, 0) + job[op]["io_bytes"]
        requests["flush"] = requests.get("flush", 0) + job["sync"]["total_ios"]
    for op, n in requests.items():
        expect(f"requests of {op}", total(samples, "requests_total", op=op), n)
        expect(f"histogram of {op}",
               total(samples, "request_duration_seconds_count", op=op), n)
        expect(f"last bucket of {op}",
               total(samples, "request_duration_seconds_bucket", op=op, le="+Inf"), n)
    for op, n in transferred.items():
        expect(f"bytes of {op}", total(samples, "transferred_bytes_total", op=op), n)
    expect("errors", total(samples, "request_errors_total"), 0)
    for lane in "fast", "slow":
        expect(f"waits in the {lane} lane",
               total(samples, "queue_wait_seconds_count", lane=lane),
               total(samples, "pool_tasks_total", lane=lane))


def samples(path, *wanted):
    """wanted: NAME{LABEL="VALUE",...}=NUMBER"""
    got = read(path)
    for text in wanted:
        name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})?=(\d+)", text).groups()
        expect(text, total(got, name, **dict(re.findall(r'(\w+)="([^"]*)"', labels or ""))),
               float(value))


def names(path, *wanted):
    """Each export is listed once, under its own name and the server's."""
    got = [l["export"] for n, l, _ in read(path)
           if n == "connections_total" and l["server"] == "alpha"]
    expect("exports", sorted(got), sorted(wanted))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
