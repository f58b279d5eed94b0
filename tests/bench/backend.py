#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measures each backend, without nbdkit, beside fio's own engine on the same file.

Random 4 KiB requests with O_DIRECT, in interleaved rounds.

usage: backend.py PATH-OF-bench-backend [--rounds N] [--runtime SECONDS] [--file FILE]

Prints the medians in thousands of requests per second, and the median of the rounds' ratios to fio.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

ENGINES = {"threads": "psync", "io_uring": "io_uring", "libaio": "libaio"}
DEPTHS = (1, 16, 64)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the built bench-backend")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", type=float, default=2, help="seconds for each measurement")
    parser.add_argument("--file", help="file or block device to use, whose content is LOST; "
                        "default: a new 1 GiB file")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.runtime <= 0:
        parser.error("--rounds and --runtime must be positive")
    return arguments


def ours(arguments, backend, op, depth, path):
    milliseconds = str(int(arguments.runtime * 1000))
    run = subprocess.run([arguments.program, backend, op, str(depth), path, milliseconds],
                         stdout=subprocess.PIPE, check=True, text=True)
    return float(run.stdout)


def fio(arguments, engine, op, depth, path):
    # A psync job has one request in flight.  So `depth` threads run, which is what nbdkit does too.
    load = [f"--numjobs={depth}", "--thread"] if engine == "psync" else [f"--iodepth={depth}"]
    run = subprocess.run(
        ["fio", "--name=bench", f"--filename={path}", f"--ioengine={engine}", "--direct=1",
         f"--rw=rand{op}", "--bs=4k", f"--runtime={int(arguments.runtime * 1000)}ms",
         "--time_based=1", "--group_reporting=1", "--norandommap=1", "--randrepeat=0",
         "--output-format=json", *load], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(run.stdout)["jobs"][0][op]["iops"]


def make_file(path):
    with open(path, "wb") as image:
        for _ in range(1024):
            image.write(os.urandom(1 << 20))
        os.fsync(image.fileno())


def compare(arguments, path, backend, op, depth):
    """Measures one cell and prints its line."""
    ours_rates, fio_rates = [], []
    for number in range(arguments.rounds):
        print(f"\r{backend} {op} {depth}: round {number + 1} ", end="", file=sys.stderr)
        pair = [lambda: ours_rates.append(ours(arguments, backend, op, depth, path)),
                lambda: fio_rates.append(fio(arguments, ENGINES[backend], op, depth, path))]
        # The order alternates, so that neither side always runs on a disk that the other warmed up.
        for measure in pair if number % 2 else reversed(pair):
            measure()
    ratios = [a / b for a, b in zip(ours_rates, fio_rates)]
    print("\r", end="", file=sys.stderr)
    print(f"{f'{backend} {op} depth {depth}':24} {statistics.median(ours_rates) / 1000:9.1f} "
          f"{statistics.median(fio_rates) / 1000:9.1f} {statistics.median(ratios):6.2f}x   "
          f"{min(ratios):.2f} - {max(ratios):.2f}", flush=True)


def main():
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="aiodisk-bench.", dir="/var/tmp") as directory:
        path = arguments.file
        if not path:
            path = os.path.join(directory, "disk")
            make_file(path)
        print(f"{arguments.rounds} rounds of {arguments.runtime:g} s, "
              "thousands of requests per second")
        print(f"{'':24} {'aiodisk':>9} {'fio':>9} {'ratio':>7}   lowest - highest ratio")
        for backend in ENGINES:
            for op in ("read", "write"):
                for depth in DEPTHS:
                    compare(arguments, path, backend, op, depth)


main()
