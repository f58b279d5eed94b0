# SPDX-License-Identifier: BSD-3-Clause
"""What `compare` shows: the table, the JSON file and the chart of its measurements.

A ratio divides a rate of ours by the rate of the best peer in the same round.  The best peer of a
cell is the peer with the highest median rate.
"""
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

from measure import CACHE, CEILING, CELLS, OURS, PEERS, cell_of, describe, short, unit_of
from process import Failed, say

COLUMNS = {  # per request, except the last two
    "server_cpu_us": "server us", "client_cpu_us": "client us", "server_switches": "server cs",
    "client_switches": "client cs", "p99_us": "p99 us", "rss_mib": "RSS MiB",
}
WIDTH = 100  # columns of the JSON file

# --- The table and the JSON file ---


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(key, measurements):
    """Returns one cell's best peer and, for each server, medians; for ours also the ratio."""
    rows, servers = [row for row in measurements if row["cell"] == key], {}
    names = list(dict.fromkeys(row["server"] for row in rows))
    rates = {name: [row["rate"] for row in rows if row["server"] == name] for name in names}
    for name in names:
        servers[name] = {"rate": spread(rates[name])}
        for column in COLUMNS:
            servers[name][column] = statistics.median(
                row[column] for row in rows if row["server"] == name)
    best = max((name for name in names if name in PEERS), default=None,
               key=lambda name: servers[name]["rate"]["median"])
    for name in names:
        if name not in OURS:
            continue
        # Rows are in the order of the rounds, so zip pairs measurements of the same round.
        if best:
            servers[name]["ratio"] = spread([a / b for a, b in zip(rates[name], rates[best])])
            servers[name]["ratios"] = {
                peer: spread([a / b for a, b in zip(rates[name], rates[peer])])
                for peer in names if peer in PEERS}
            servers[name]["p99_ratio"] = servers[name]["p99_us"] / min(
                servers[peer]["p99_us"] for peer in names if peer in PEERS)
        if CEILING in rates:
            servers[name]["of_ceiling"] = spread(
                [a / b for a, b in zip(rates[name], rates[CEILING])])
    return {"what": describe(cell_of(key)), "best_peer": best, "servers": servers}


def print_cell(key, summary):
    unit, shown = unit_of(cell_of(key))
    print(f"\n{key}: {summary['what']}")
    print(f"  {'server':18}{unit:>8}{'(min-max)':>18}{'ratio (min-max)':>18}",
          *(f"{title:>9}" for title in COLUMNS.values()), f"{'p99 x':>9}{'of null':>9}")
    for name, row in summary["servers"].items():
        middle = shown(row["rate"]["median"])
        low, high = sorted((shown(row["rate"]["min"]), shown(row["rate"]["max"])))
        ratio = "best peer" if name == summary["best_peer"] else ""
        if "ratio" in row:
            ratio = "{median:.2f} ({min:.2f}-{max:.2f})".format(**row["ratio"])
        print(f"  {name:18}{short(middle):>8}{f'({short(low)}-{short(high)})':>18}{ratio:>18}",
              *(f"{short(row[column]):>9}" for column in COLUMNS),
              f"{short(row['p99_ratio']) if 'p99_ratio' in row else '':>9}"
              f"{short(row['of_ceiling']['median']) if 'of_ceiling' in row else '':>8}")
    for name, row in summary["servers"].items():
        for peer, ratio in row.get("ratios", {}).items():
            print("  {} to {}: {median:.2f} ({min:.2f}-{max:.2f})".format(name, peer, **ratio))


def layout(value, name="", depth=0):
    """JSON text with each object and list on one line if it fits there.  `name` is its key."""
    name = " " * depth + (f"{json.dumps(name)}: " if name else "")
    line = name + json.dumps(value)
    if not isinstance(value, (dict, list)) or len(line) < WIDTH:
        return line
    if isinstance(value, list):
        ends, items = "[]", [layout(item, "", depth + 1) for item in value]
    else:
        ends, items = "{}", [layout(item, key, depth + 1) for key, item in value.items()]
    return name + ends[0] + "\n" + ",\n".join(items) + "\n" + " " * depth + ends[1]


def write_json(path, report):
    with open(path, "w") as f:
        print(layout(report), file=f)
    say(f"wrote {path}")


def report_of(options, measurements):
    """What the JSON file holds: machine, command, a summary of each cell, every measurement."""
    with open("/proc/cpuinfo") as f:
        cpu = re.search(r"model name\s*: (.*)", f.read())
    versions = {}
    for name in filter(shutil.which, ("nbdkit", "qemu-nbd", "fio")):
        done = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
        versions[name] = done.stdout.split("\n")[0]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "kernel": os.uname().release,
        "cores": len(os.sched_getaffinity(0)), "cpu": cpu[1] if cpu else os.uname().machine,
        "versions": versions, "command": sys.argv, "plugin": options.plugin,
        "transport": "tcp" if options.tcp else "unix", "one_session": options.one_session,
        "rounds": options.rounds, "runtime": options.runtime, "size": options.size,
        "cells": {key: summarise(key, measurements) for key in options.cells},
        "measurements": measurements}


def read_report(path):
    """Reads a JSON file that write_json has written."""
    try:
        with open(path) as f:
            report = json.load(f)
        for key in report["cells"]:
            cell_of(key)
        return report
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise Failed(f"--redraw: {path!r} cannot be used ({type(e).__name__}: {e}); "
                     "allowed is a JSON file that compare has written") from e


def published(report):
    """The part of a report that the chart and the published tables need, with rounded numbers."""
    cells = {}
    for key, cell in report["cells"].items():
        servers = {}
        for name, row in cell["servers"].items():
            if "ratio" in row or name == cell["best_peer"]:
                servers[name] = {"rate": {"median": float(f"{row['rate']['median']:.5g}")}}
            if "ratio" in row:
                servers[name]["ratio"] = {k: round(v, 2) for k, v in row["ratio"].items()}
                servers[name]["p99_ratio"] = round(row["p99_ratio"], 2)
            if "of_ceiling" in row:
                servers[name]["of_ceiling"] = round(row["of_ceiling"]["median"], 2)
        cells[key] = {"best_peer": cell["best_peer"], "servers": servers}
    return {**{k: v for k, v in report.items() if k not in ("plugin", "measurements")},
            "cells": cells}


def transport_of(report):
    where = "TCP" if report["transport"] == "tcp" else "unix sockets"
    return where + ", all in one session" * report.get("one_session", False)


# --- The chart ---

PANELS = {"page": "page cache", "direct": "O_DIRECT", "rbd": "Ceph RBD",
          "rbd-cached": "Ceph RBD, cached"}
# Pixels.  The chart is drawn at twice the size at which a README shows it.
WIDE, LABELS, NUMBERS, EDGE = 1800, 745, 105, 29
ROW, HEAD, FOOT, KEY = 44, 205, 110, 44
FONT = 22
# A light panel of its own, so that the chart is legible on light and on dark pages.
INK, FAINT, GRID, PAPER = "#1f2328", "#59636e", "#c8d1da", "#f6f8fa"
FASTER, SLOWER = "#4a8fdc", "#e8893c"  # distinct for colour-blind readers too
# One for each name in OURS.
OF_NAMES = ("#4a8fdc", "#d0588f", "#e8893c", "#4ca86a", "#a37be8", "#8c959f", "#2aa5a0", "#b08a3e",
            "#6e4a9e", "#c0504d")


def text_at(x, y, text, size=FONT, colour=INK, align="center"):
    """A gnuplot statement.  `y` counts from 0 (bottom of the picture) to 1."""
    return f"set label '{text}' at {x}, screen {y} {align} tc rgb '{colour}' font ',{size}'"


def panel_rows(report, mode, rows, names):
    """Lines of a data block: ratio, y, the bar's x and y, the line's x, colour, text."""
    lines = []
    for i, cell in enumerate(rows):
        servers = report["cells"].get(f"{mode}/{cell}", {"servers": {}})["servers"]
        for j, name in enumerate(names):
            ratio = servers.get(name, {}).get("ratio")
            if not ratio:
                continue
            y, half = i + 0.5 + 0.75 * ((j + 0.5) / len(names) - 0.5), 0.36 / len(names)
            colour = OF_NAMES[j] if len(names) > 1 else FASTER if ratio["median"] >= 1 else SLOWER
            lines.append(f"{ratio['median']} {y:.3f} {min(1, ratio['median'])} "
                         f"{max(1, ratio['median'])} {y - half:.3f} {y + half:.3f} "
                         f"{ratio['min']} {ratio['max']} 0x{colour[1:]} {ratio['median']:.2f}")
    return lines


def panel_script(data, title, left, right, height, head):
    """One panel: a bar from 1 to each median, a line for its range, and the median in digits."""
    return f"""
$data << EOD
{data}
EOD
set lmargin at screen {left / WIDE}; set rmargin at screen {right / WIDE}
{text_at('graph 0.5', 1 - (head - 70) / height, title, FONT + 4)}
{text_at('first 1', 1 - (head - 28) / height, 'best peer', FONT - 2)}
{text_at('graph 0.14', 28 / height, 'slower', FONT - 2, FAINT)}
{text_at('graph 0.86', 28 / height, 'faster', FONT - 2, FAINT)}
plot $data using 1:2:3:4:5:6:9 with boxxyerror fs solid noborder lc rgb variable, \\
     $data using 1:2:7:8 with xerrorbars pt -1 lw 2.5 lc rgb '{INK}', \\
     $data using (right):2:10 with labels left offset 1.5,0 tc rgb '{INK}'
unset object; unset label; unset ytics
"""


def chart_script(path, report, names, modes, rows):
    ratios = [server["ratio"] for cell in report["cells"].values()
              for server in cell["servers"].values() if "ratio" in server]
    low = min(0.5, *(ratio["min"] for ratio in ratios)) / 1.06
    high = max(2, *(ratio["max"] for ratio in ratios)) * 1.06
    head = HEAD + KEY * (len(names) > 1)
    height = head + int(ROW * max(1, 0.8 * len(names))) * len(rows) + FOOT
    x = f"screen {EDGE / WIDE}"
    texts = [
        text_at(x, 1 - 42 / height, "aiodisk beside its best peer: ratio of the rates", FONT + 6,
                align="left"),
        text_at(x, 1 - 86 / height,
                f"Bar: median of {report['rounds']} rounds. Line: lowest to highest round. Over "
                f"{transport_of(report)}; {report['cores']} CPUs, Linux "
                f"{report['kernel'].partition('-')[0]}, {report['date'][:10]}",
                FONT - 2, FAINT, "left")]
    for i, name in enumerate(names if len(names) > 1 else ()):
        x = f"screen {(EDGE + i * (WIDE - EDGE) // len(names)) / WIDE}"
        texts.append(text_at(x, 1 - 132 / height, name, FONT, OF_NAMES[i], "left"))
    words = [describe(CELLS[cell]).replace("%", "%%") for cell in rows]  # gnuplot takes a format
    labels = ", ".join(f"'{text}' {i + 0.5}" for i, text in enumerate(words))
    ticks = ", ".join(f"'{tick}' {tick}" for tick in (0.125, 0.25, 0.5, 0.7, 1, 1.4, 2, 4, 8))
    step = (WIDE - LABELS - EDGE) // len(modes)
    panels = [panel_script("\n".join(panel_rows(report, mode, rows, names)), PANELS[mode],
                           LABELS + i * step, LABELS + (i + 1) * step - NUMBERS, height, head)
              for i, mode in enumerate(modes)]
    return f"""
set terminal pngcairo noenhanced size {WIDE},{height} font 'Sans,{FONT}' background '{PAPER}'
set output '{path.replace("'", "''")}'
set object rectangle from screen 0,0 to screen 1,1 behind fs empty border rgb '{GRID}' lw 4
unset key; right = {high}
set tmargin at screen {1 - head / height}; set bmargin at screen {FOOT / height}
set logscale x 2; set xrange [{low}:{high}]; set yrange [{len(rows)}:0]
set border 0; set xtics ({ticks}) scale 0 tc rgb '{INK}'
set ytics ({labels}) scale 0 tc rgb '{INK}' font ',{FONT - 2}'
set grid xtics lc rgb '{GRID}' lt 1 lw 2
set arrow from 1, graph 0 to 1, graph 1 nohead lc rgb '{INK}' lw 3 front
{chr(10).join(texts)}
set multiplot
{''.join(panels)}
unset multiplot
"""


def draw(path, report):
    """Draws our ratios to the best peer: one panel per cache mode, one row per cell."""
    cells = report["cells"]
    names = [name for name in OURS
             if any("ratio" in cell["servers"].get(name, {}) for cell in cells.values())]
    if not names or not shutil.which("gnuplot"):
        return say("no chart: " + ("gnuplot is not installed" if names else "no cell has a ratio"))
    modes = [mode for mode in CACHE if any(key.startswith(f"{mode}/") for key in cells)]
    rows = [cell for cell in CELLS if any(f"{mode}/{cell}" in cells for mode in modes)]
    done = subprocess.run(["gnuplot"], input=chart_script(path, report, names, modes, rows),
                          text=True, capture_output=True, check=False)
    say(f"no chart: gnuplot: {done.stderr}" if done.returncode else f"wrote {path}")
