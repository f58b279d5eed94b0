#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The table of coverage.sh.  Asks gcovr for the counters of a build, prints lines and branches of
each file, and writes each line that is not covered whole to BUILD/uncovered.txt.

    report.py BUILD MIN-LINES MIN-BRANCHES          percent; fails below them
"""
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ASSERT = re.compile(r"^\s*assert\(")


def files_of(build):
    command = ["gcovr", "-r", ROOT, build, "--filter", "pool/", "--filter", "backends/",
               "--filter", "plugin/disk/", "--exclude-unreachable-branches", "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout
    return sorted(json.loads(out)["files"], key=lambda f: f["file"])


def percent(part, whole):
    return 100 * part / whole if whole else 100


class Counts:
    """Covered and all: lines, branches, and branches without those of asserts."""

    def __init__(self):
        self.lines, self.all_lines, self.taken, self.branches = 0, 0, 0, 0
        self.taken_strict, self.branches_strict = 0, 0

    def add(self, line, text):
        if not line.get("gcovr/noncode"):
            self.all_lines += 1
            self.lines += line["count"] > 0
        taken = sum(b["count"] > 0 for b in line["branches"])
        self.taken_strict += taken
        self.branches_strict += len(line["branches"])
        if ASSERT.match(text):
            return True
        self.taken += taken
        self.branches += len(line["branches"])
        return taken == len(line["branches"]) and (line["count"] > 0 or line.get("gcovr/noncode"))

    def row(self, name):
        return "%-30s %5d %6.1f %% %5d %6.1f %%" % (
            name, self.all_lines, percent(self.lines, self.all_lines),
            self.branches, percent(self.taken, self.branches))


def main():
    build, min_lines, min_branches = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    total = Counts()
    print("%-30s %5s %8s %5s %8s" % ("file", "lines", "covered", "branches", "taken"))
    with open(os.path.join(build, "uncovered.txt"), "w", encoding="utf-8") as uncovered:
        for file in files_of(build):
            with open(os.path.join(ROOT, file["file"]), encoding="utf-8") as f:
                text = f.read().split("\n")
            counts = Counts()
            for line in file["lines"]:
                source = text[line["line_number"] - 1]
                total.add(line, source)
                if not counts.add(line, source):
                    taken = sum(b["count"] > 0 for b in line["branches"])
                    uncovered.write("%s:%d %d/%d %s\n" % (
                        file["file"], line["line_number"], taken, len(line["branches"]),
                        source.strip()))
            print(counts.row(file["file"]))
    print(total.row("all"))
    print("with the failing side of each assert: %.1f %% of %d branches" % (
        percent(total.taken_strict, total.branches_strict), total.branches_strict))
    lines, branches = percent(total.lines, total.all_lines), percent(total.taken, total.branches)
    if lines < min_lines or branches < min_branches:
        print("less than %g %% of the lines or %g %% of the branches" % (min_lines, min_branches))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
