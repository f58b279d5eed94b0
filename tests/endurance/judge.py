#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Judges the samples of mixed.py, and draws them.

usage: judge.py [--leak BYTES] SAMPLES [PICTURE.png]

At each rest the threads and descriptors must be those of the first rest.  With at least 8 rests, so
that a quarter has 2, the last quarter of the time is compared with the third: memory, the 99th
percentiles and the processor time for each request must not have grown beyond the bounds below.
In the first half hour the memory grows: malloc(3) makes up to 8 arenas for each processor, and each
keeps up to two of nbdkit's buffers of 1 MiB.
The status is 3 if something grew.  --leak adds so much memory for each connect to the samples, to
show what is noticed.
"""
import argparse
import csv
import subprocess
import sys
from statistics import median

# KiB of memory.  The memory moves in steps of 1 MiB, the size of the killed clients' reads: of
# their buffers malloc keeps some more or some fewer.
GROWTH = 1536
# Factors.  The durations and the processor time depend on what else the machine does.
P99, CPU = 3, 2
WORKERS = 8     # so many are seen at least at the end of a burst or during one

PLOT = """
set terminal pngcairo size 680,720 font 'sans,9' background 'white'
set output '{picture}'
set datafile separator ','
set multiplot layout 4,1
set lmargin 9
set grid ytics lc rgb '#dddddd'
set key top right horizontal samplen 2
set xrange [0:{minutes}]
set yrange [0:*]
t(x) = x / 60
set title 'threads and descriptors'
plot '{samples}' using (t($1)):4 with lines lc rgb '#1f77b4' title 'threads', \
    '' using (t($1)):(strcol(2) eq 'rest' ? $4 : NaN) with points pt 7 ps 0.5 \
        lc rgb '#0b3d66' title 'threads at rest', \
    '' using (t($1)):5 with lines lc rgb '#ff7f0e' title 'descriptors'
set title 'memory (MiB)'
set key bottom right
plot '{samples}' using (t($1)):($6 / 1024) with lines lc rgb '#2ca02c' title 'anonymous', \
    '' using (t($1)):($7 / 1024) with lines lc rgb '#9467bd' title 'proportional share of all'
set key top right
set title '99th percentile of 5 s (ms)'
set logscale y
set yrange [0.1:1000]
plot '{samples}' using (t($1)):9 with points pt 7 ps 0.4 lc rgb '#1f77b4' title 'reads', \
    '' using (t($1)):10 with points pt 7 ps 0.4 lc rgb '#d62728' title 'writes'
unset logscale y
set yrange [0:*]
set title 'processor time (% of one)'
set xlabel 'minutes'
plot '{samples}' using (t($1)):11 with lines lc rgb '#1f77b4' title 'the server', \
    '' using (t($1)):($12 * 2) with lines lc rgb '#bbbbbb' title 'all programs of the machine'
"""


def number(text):
    try:
        return float(text)
    except ValueError:
        return text or None


def read(path):
    with open(path, encoding="ascii") as file:
        return [{name: number(value) for name, value in row.items()}
                for row in csv.DictReader(file)]


def judge(rows):
    """Yields a line for each thing that grew."""
    rests = [row for row in rows if row["phase"] == "rest"]
    bursts = [row for row in rows if row["phase"] == "burst"]
    end, first = rows[-1]["seconds"], rests[0]
    for row in rests:
        for what in "threads", "descriptors":
            if row[what] != first[what]:
                yield f"{row[what]:.0f} {what} at rest after {row['seconds']:.0f} s, " \
                      f"{first[what]:.0f} at the first rest"
    if max(row["threads"] for row in bursts) < first["threads"] + WORKERS:
        yield "no workers were seen: the load was too small"

    def quarter(some, number, value):
        return [value(row) for row in some
                if end * (number - 1) / 4 < row["seconds"] <= end * number / 4 and
                value(row) is not None]

    if len(rests) < 8:
        print("   too short to compare quarters")
        return
    for what, some, value, too_much in [
            ("memory at rest, KiB", rests, lambda r: r["anon_kib"], lambda b, a: a > b + GROWTH),
            ("p99 of reads, ms", bursts, lambda r: r["p99_read_ms"], lambda b, a: a > b * P99),
            ("p99 of writes, ms", bursts, lambda r: r["p99_write_ms"], lambda b, a: a > b * P99),
            ("processor time per 1000 requests, s", bursts,
             lambda r: r["cpu_percent"] * 50 / r["requests"] if r["requests"] > 500 else None,
             lambda b, a: a > b * CPU)]:
        before, after = (median(quarter(some, n, value)) for n in (3, 4))
        text = f"{what}: {before:.2f} in the third quarter, {after:.2f} in the last"
        print("   " + text)
        if too_much(before, after):
            yield text


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--leak", type=int, default=0)
    arguments.add_argument("samples")
    arguments.add_argument("picture", nargs="?")
    arguments = arguments.parse_args()
    rows = read(arguments.samples)
    for row in rows:
        row["anon_kib"] += row["connects"] * arguments.leak / 1024
    if arguments.picture:
        text = PLOT.format(picture=arguments.picture, samples=arguments.samples,
                           minutes=rows[-1]["seconds"] / 60)
        subprocess.run(["gnuplot"], input=text, text=True, check=True)
    grown = list(judge(rows))
    for line in grown:
        print("   leak: " + line)
    rests = [row for row in rows if row["phase"] == "rest"]
    print(f"   {len(rests)} rests in {rows[-1]['seconds']:.0f} s: {rests[0]['threads']:.0f} "
          f"threads, {rests[0]['descriptors']:.0f} descriptors; most threads: "
          f"{max(row['threads'] for row in rows):.0f}")
    sys.exit(3 if grown else 0)


main()
