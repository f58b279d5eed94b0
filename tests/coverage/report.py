#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The table of coverage.sh.  Asks gcovr for the counters of a build, prints lines and branches of
each file, and writes each line that is not covered whole to BUILD/uncovered.txt.  Each of these
lines needs an entry in reasons.txt, whose head says how that file is written.

    report.py BUILD MIN-LINES MIN-BRANCHES    percent; fails below them, and for a line without a
                                              reason
"""
import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
ASSERT = re.compile(r"^\s*assert\(")
FUNCTION = re.compile(r"^\w[^;=]*?(\w+)\(")


def files_of(build):
    command = ["gcovr", "-r", ROOT, build, "--filter", "pool/", "--filter", "backends/",
               "--filter", "plugin/disk/", "--exclude-unreachable-branches", "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout
    return sorted(json.loads(out)["files"], key=lambda f: f["file"])


def read_reasons():
    """The entries of reasons.txt: a list of (entry, pattern of "FILE FUNCTION: LINE", whether the
    entry must match a line)."""
    entries = []
    with open(os.path.join(HERE, "reasons.txt"), encoding="utf-8") as f:
        groups = f.read().split("\n\n")
    for group in groups:
        must_match = not group.startswith("In some runs")
        for line in group.splitlines():
            if line.startswith("    "):
                entry = line.strip()
                pattern = entry[1:-1] if entry.startswith("/") else re.escape(entry)
                entries.append((entry, re.compile(pattern), must_match))
    return entries


def percent(part, whole):
    return 100 * part / whole if whole else 100


class Counts:
    """Covered and all: lines, branches, and branches without those of asserts."""

    def __init__(self):
        self.lines, self.all_lines, self.taken, self.branches = 0, 0, 0, 0
        self.taken_strict, self.branches_strict = 0, 0

    def add(self, line, text):
        """Returns whether the line is covered whole."""
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


def functions_of(text):
    """The name of the function that each line belongs to."""
    names, name = [], ""
    for line in text:
        match = FUNCTION.match(line)
        name = match.group(1) if match else name
        names.append(name)
    return names


def main():
    build, min_lines, min_branches = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    total, reasons, used, without = Counts(), read_reasons(), set(), []
    print("%-30s %5s %8s %5s %8s" % ("file", "lines", "covered", "branches", "taken"))
    with open(os.path.join(build, "uncovered.txt"), "w", encoding="utf-8") as uncovered:
        for file in files_of(build):
            with open(os.path.join(ROOT, file["file"]), encoding="utf-8") as f:
                text = f.read().split("\n")
            functions = functions_of(text)
            counts = Counts()
            for line in file["lines"]:
                number = line["line_number"]
                source = text[number - 1]
                total.add(line, source)
                if counts.add(line, source):
                    continue
                taken = sum(b["count"] > 0 for b in line["branches"])
                where = "%s %s: %s" % (os.path.basename(file["file"]), functions[number - 1],
                                       source.strip())
                uncovered.write("%s:%d %d/%d %s\n" % (file["file"], number, taken,
                                                      len(line["branches"]), where))
                matching = [entry for entry, pattern, _ in reasons if pattern.fullmatch(where)]
                used.update(matching)
                if not matching:
                    without.append("%d: %s" % (number, where))
            print(counts.row(file["file"]))
    print(total.row("all"))
    print("with the failing side of each assert: %.1f %% of %d branches" % (
        percent(total.taken_strict, total.branches_strict), total.branches_strict))
    for entry, _, must_match in reasons:
        if must_match and entry not in used:
            print("covered or gone, but in reasons.txt: %s" % entry)
    for where in without:
        print("not covered, and not in reasons.txt: line %s" % where)
    lines, branches = percent(total.lines, total.all_lines), percent(total.taken, total.branches)
    if lines < min_lines or branches < min_branches:
        print("less than %g %% of the lines or %g %% of the branches" % (min_lines, min_branches))
        return 1
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
