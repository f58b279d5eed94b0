#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Do the tests notice a fault?  Puts single faults into pool/, backends/ and plugin/disk/, builds
each, and runs the tests that are to notice it.

    mutate.py --state DIRECTORY [--count 240] [--seed 1] [--seconds S] [--only PATTERN] [--quick]
    mutate.py --state DIRECTORY --report

The seed decides which faults: the same sources and the same seed give the same list.  DIRECTORY
holds private copies of the sources, one for each job, and results.jsonl with a line for each fault
that was run.  A run goes on where the last one ended, and ends after S seconds, so that it can be
made in pieces.  Needs root, as the conformance suite does.  With --quick a fault meets the unit
tests, one conformance run and two system tests, and no sanitizer.

A fault counts as caught if the compiler refuses it, or if a test fails or exceeds its time limit.
A fault whose object file has the code of the original is no fault; it is left out of the figures.
README.md in this folder has the figures, and the reason for each fault that no test noticed.
"""
import argparse
import concurrent.futures
import fcntl
import filecmp
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

from which_tests import UNIT, deep_tests_of, find_script, quick_tests_of, seconds_of, tests_of

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SANITIZERS = ("thread", "address,undefined")
FOLDERS = ("pool", "backends", "plugin/disk")

# Lines without a promise: probes, figures, and where a slow request says that it is.  The tests of
# metrics=, of slow-request= and of the probes watch them, and those are not run here.  The end of
# a mutex or a semaphore does nothing in glibc.
PASSED_BY = re.compile(r"^\s*(assert|static_assert|PROBE|SCHEDULE_POINT|progress_|tally_|log_|"
                       r"snprintf|pthread_setname_np|#|case |default:)|totals[.]|counters->|_tally|"
                       r"(pthread_\w+|sem)_destroy[(]")
CALL = re.compile(r"^(\s+)((?:\w+(?:->|[.]))*\w+)\((.*)\);$")
ASSIGNMENT = re.compile(r"^(\s+)([*]?[\w.\[\]]+(?:->[\w.\[\]]+)*) ([-+|&]?=) ([^=].*);$")
STEP = re.compile(r"^(\s+)((?:\w+(?:->|[.]))*\w+)(\+\+|--);$")
CONDITION = re.compile(r"^(\s+)(}? ?(?:else )?if|while) \((.*)\)( \{)?$")
SWAPS = ((" < ", " <= "), (" <= ", " < "), (" > ", " >= "), (" >= ", " > "), (" == ", " != "),
         (" != ", " == "), (" && ", " || "), (" || ", " && "), (" + ", " - "), (" - ", " + "))
NUMBER = re.compile(r"(?<![\w.\"%])(\d+)u?(?![\w.\"])")
LOCKS = ("lock", "acquire", "release", "sem_", "wake", "signal", "broadcast", "wait", "schedule")


def code_of(lines):
    """The lines without comments and with strings made neutral, of the same length."""
    text = "\n".join(lines)

    def blank(match):
        return re.sub(r"[^\n]", " ", match.group(0))

    text = re.sub(r"/\*.*?\*/|//[^\n]*", blank, text, flags=re.S)
    text = re.sub(r'"(?:[^"\\\n]|\\.)*"', lambda m: '"' + "." * (len(m.group(0)) - 2) + '"', text)
    return text.split("\n")


def is_balanced(text):
    while "(" in text and ")" in text:
        text, before = re.sub(r"[(][^()]*[)]", "", text), text
        if text == before:
            return False
    return "(" not in text and ")" not in text


def faults_of_line(line, code, begins):
    """Yields (kind, new line) for one line of a function; `begins`: a statement begins here."""
    if PASSED_BY.search(code) or not code.strip():
        return
    match = CALL.match(code) if begins else None
    if match and is_balanced(match.group(3)) and \
            not match.group(2).startswith(("return", "free", "sizeof")):
        kind = "dropped lock or wake" if any(w in match.group(2) for w in LOCKS) else "dropped call"
        yield kind, match.group(1) + "(void)0;"
    match = ASSIGNMENT.match(code) if begins else None
    if match:
        yield "dropped assignment", match.group(1) + "(void)0;"
        if match.group(3) in ("+=", "-="):
            other = {"+=": "-=", "-=": "+="}[match.group(3)]
            yield "swapped operator", line.replace(" %s " % match.group(3), " %s " % other, 1)
    match = STEP.match(code)
    if match:
        yield "dropped assignment", match.group(1) + "(void)0;"
        yield "swapped operator", match.group(1) + match.group(2) + \
            {"++": "--", "--": "++"}[match.group(3)] + ";"
    match = CONDITION.match(code)
    if match and is_balanced(match.group(3)):
        inner = line[match.start(3):match.end(3)]
        rest = (line[:match.start(3)], line[match.end(3):])
        yield "negated condition", rest[0] + "!(" + inner + ")" + rest[1]
        if inner in ("r < 0", "error", "!image", "!pool", "fd < 0", "r < 0 || image->readonly"):
            yield "dropped error check", rest[0] + "0 && (" + inner + ")" + rest[1]
        elif match.group(2) == "while":
            yield "dropped loop", line.replace("while (", "if (", 1)
        else:
            yield "condition always true", rest[0] + "1 || (" + inner + ")" + rest[1]
            yield "condition never true", rest[0] + "0 && (" + inner + ")" + rest[1]
    for old, new in SWAPS:
        start = code.find(old)
        while start >= 0:
            yield "swapped operator", line[:start] + new + line[start + len(old):]
            start = code.find(old, start + 1)
    for match in NUMBER.finditer(code):
        if re.match(r"^\s*return", code) and match.group(1) == "0":
            continue  # a function that never says "well done" is noticed by everything
        value = int(match.group(1))
        yield "off by one", line[:match.start(1)] + str(value + 1) + line[match.end(1):]
    match = re.match(r"^(\s+return )(.*)(;)$", code)
    if match and match.group(2) in ("true", "false"):
        other = {"true": "false", "false": "true"}[match.group(2)]
        yield "wrong answer", match.group(1) + other + ";"
    elif match and match.group(2).startswith("-E"):
        yield "wrong answer", match.group(1) + "0;"


def faults_of_file(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        lines = f.read().split("\n")
    inside, begins = False, True
    for i, (line, code) in enumerate(zip(lines, code_of(lines))):
        if code == "{":
            inside = True
        elif code == "}":
            inside = False
        elif inside:
            for kind, new in faults_of_line(line, code, begins):
                yield {"file": path, "line": i + 1, "kind": kind, "old": line.strip(),
                       "new": new.strip(), "text": new}
        if code.strip():
            begins = code.rstrip().endswith((";", "{", "}", ":", ")", "else", "do"))


def choose(count, seed):
    """The faults to try.  A file's share grows with its size.  A dropped lock, wait or wake-up is
    about twice as likely as another fault.  The choice depends on the text of a line and not on its
    number, so most of the list stays the same when a file is edited elsewhere."""
    files = sorted(os.path.join(folder, name) for folder in FOLDERS
                   for name in os.listdir(os.path.join(ROOT, folder))
                   if name.endswith(".c") and "schedule" not in name)
    everything = []
    for path in files:
        faults = list(faults_of_file(path))
        seen = {}
        for fault in faults:
            key = "%(file)s:%(old)s:%(new)s" % fault
            seen[key] = seen.get(key, 0) + 1
            key = "%d:%s:%d" % (seed, key, seen[key])
            fault["id"] = hashlib.sha1(key.encode()).hexdigest()[:8]
            dice = int(hashlib.sha1(("dice:" + key).encode()).hexdigest()[:12], 16) / 16 ** 12
            fault["rank"] = dice ** 2 if fault["kind"] == "dropped lock or wake" else dice
        faults.sort(key=lambda f: f["rank"])
        for i, fault in enumerate(faults):
            fault["rank"] = (i + 0.5) / len(faults)
        everything += faults
    everything.sort(key=lambda f: (f["rank"], f["id"]))
    return everything[:count], len(everything)


# --- Building and testing ---

def limit():
    """For what a faulty program might do: no core files, and no endless log."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 30, 8 << 30))


class Copy:
    """A private copy of the sources, with a build directory.  One job uses it at a time."""

    def __init__(self, directory, tests):
        self.tests = tests  # the function that names the tests for a file
        self.source = os.path.join(directory, "source")
        self.build = os.path.join(directory, "build")
        self.tmp = os.path.join(directory, "tmp")
        self.env = None
        shutil.rmtree(self.tmp, ignore_errors=True)
        os.makedirs(self.tmp)
        listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others",
                                 "--exclude-standard"], stdout=subprocess.PIPE, check=True)
        for name in listed.stdout.decode().split("\0"):
            if name and os.path.isfile(os.path.join(ROOT, name)):
                self.update(os.path.join(ROOT, name), os.path.join(self.source, name))
        if not os.path.exists(os.path.join(self.build, "build.ninja")):
            self.run(["meson", "setup", self.build, self.source, "-Dtests=enabled"], 120,
                     check=True)
        self.targets = ["plugin/nbdkit-aiodisk-plugin.so"] + \
            ["tests/unit/test-" + name for name in list(UNIT) + ["geometry"]] + \
            ["tests/unit/libpool-module.so", "tests/conformance/conformance",
             "tests/lib/deny-syscalls", "plugin/libnbdkit-corked.so"]
        self.run(["ninja", "-j2", "-C", self.build] + self.targets, 600, check=True)
        self.env = dict(os.environ, TMPDIR=self.tmp, AIODISK_BUILD=self.build,
                        AIODISK_PLUGIN=os.path.join(self.build, self.targets[0]),
                        AIODISK_CONFORMANCE=os.path.join(self.build,
                                                         "tests/conformance/conformance"),
                        AIODISK_DENY=os.path.join(self.build, "tests/lib/deny-syscalls"),
                        AIODISK_GEOMETRY=os.path.join(self.build, "tests/unit/test-geometry"),
                        AIODISK_POOL_MODULE=os.path.join(self.build,
                                                         "tests/unit/libpool-module.so"))

    @staticmethod
    def update(source, to):
        """An earlier run may have been interrupted, so a file that differs is copied again."""
        os.makedirs(os.path.dirname(to), exist_ok=True)
        if not os.path.exists(to) or not filecmp.cmp(source, to, shallow=False):
            shutil.copy(source, to)

    def run(self, command, seconds, check=False):
        """Returns "ok", "skipped", "failed" or "hang".  Everything that the command has started is
        in its process group, and ends with it."""
        log = os.path.join(self.tmp, "..", "log")
        with open(log, "wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       env=self.env, start_new_session=True,
                                       preexec_fn=limit)
            try:
                status = process.wait(seconds)
                result = {0: "ok", 77: "skipped"}.get(status, "failed")
            except subprocess.TimeoutExpired:
                result = "hang"
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(15)  # a shell test cleans up
                except subprocess.TimeoutExpired:
                    pass
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        if check and result != "ok":
            with open(log, encoding="utf-8", errors="replace") as f:
                raise SystemExit("%s: %s\n%s" % (command, result, f.read()[-3000:]))
        return result

    def compiler_complains(self):
        with open(os.path.join(self.tmp, "..", "log"), encoding="utf-8", errors="replace") as f:
            return re.search(r"[.]c:\d+:\d+: error: ", f.read())

    def command_of(self, test, build):
        words = test.split()
        if words[0] == "conformance":
            return ["bash", os.path.join(self.source, "tests/conformance/conformance.sh")] + \
                words[1:] + ["1", "4711"]
        if words[0] == "system":
            return ["bash", os.path.join(self.source, find_script(words[1]))] + words[2:]
        return [os.path.join(build, "tests/unit/test-" + words[0])]

    def judge_with_sanitizer(self, fault, sanitizer):
        """Builds the sources, with the fault in them, in one more directory, and tests there."""
        build = self.build + "-" + sanitizer.split(",")[0]
        tests = deep_tests_of(fault["file"])
        runtime = {"thread": "libtsan.so", "address,undefined": "libasan.so"}[sanitizer]
        preload = subprocess.run(["gcc", "-print-file-name=" + runtime], stdout=subprocess.PIPE,
                                 check=True, encoding="utf-8").stdout.strip()
        env = self.env
        targets = [self.targets[0], "tests/unit/libpool-module.so"] + \
            ["tests/unit/test-" + t for t in tests if t in UNIT]
        targets.append("tests/lib/libasan-first.so")
        preload += " " + os.path.join(build, "tests/lib/libasan-first.so")
        try:
            if not os.path.exists(os.path.join(build, "build.ninja")):
                self.run(["meson", "setup", build, self.source, "-Dtests=enabled",
                          "-Db_lundef=false", "-Db_sanitize=" + sanitizer], 120, check=True)
            if self.run(["ninja", "-j2", "-C", build] + targets, 600) != "ok":
                return "the build with -fsanitize=" + sanitizer
            self.env = dict(env, AIODISK_PLUGIN=os.path.join(build, self.targets[0]),
                            AIODISK_PRELOAD=preload, AIODISK_RANDOM="1",
                            TSAN_OPTIONS="halt_on_error=1",
                            AIODISK_POOL_MODULE=os.path.join(build, targets[1]))
            for test in tests:
                result = self.run(self.command_of(test, build), 2 * seconds_of(test))
                if result not in ("ok", "skipped"):
                    return "%s with -fsanitize=%s (%s)" % (test, sanitizer, result)
            return None
        finally:
            self.env = env

    def code_hash(self, path):
        """A hash of the machine code and the data of the file's object."""
        name = {"pool": "pool/libpool.a.p/%s.o", "backends": "backends/libbackends.a.p/%s.o",
                "plugin/disk": "plugin/disk/libdisk.a.p/%s.o"}[os.path.dirname(path)]
        stripped = os.path.join(self.tmp, "stripped.o")
        subprocess.run(["objcopy", "--strip-debug",
                        os.path.join(self.build, name % os.path.basename(path)), stripped],
                       check=True)
        with open(stripped, "rb") as f:
            return hashlib.sha1(f.read()).hexdigest()

    def judge(self, fault):
        """Puts the fault in, builds, tests, and takes the fault out again."""
        path = os.path.join(self.source, fault["file"])
        with open(path, encoding="utf-8") as f:
            original = f.read()
        before = self.code_hash(fault["file"])
        lines = original.split("\n")
        lines[fault["line"] - 1] = fault["text"]
        try:
            with open(path, "w", encoding="utf-8") as f:
                f.write("\n".join(lines))
            if self.run(["ninja", "-j1", "-C", self.build] + self.targets, 300) != "ok":
                if not self.compiler_complains():
                    raise SystemExit("the build failed for another reason than the fault")
                return "caught", "compiler"
            if self.code_hash(fault["file"]) == before:
                return "same code", ""
            skipped = []
            for test in self.tests(fault["file"]):
                result = self.run(self.command_of(test, self.build), seconds_of(test))
                if result == "skipped":
                    skipped.append(test)
                elif result != "ok":
                    return "caught", "%s (%s)" % (test, result)
            for sanitizer in SANITIZERS if self.tests is tests_of else ():
                by = deep_tests_of(fault["file"]) and self.judge_with_sanitizer(fault, sanitizer)
                if by:
                    return "caught", by
            return "survived", "; ".join(skipped) and "skipped: " + "; ".join(skipped)
        finally:
            with open(path, "w", encoding="utf-8") as f:
                f.write(original)
            if self.run(["ninja", "-j1", "-C", self.build] + self.targets, 300) != "ok":
                raise SystemExit("the sources do not build without the fault")


# --- The run and the report ---

def read_results(state):
    results = {}
    with open(os.path.join(state, "results.jsonl"), "a+", encoding="utf-8") as f:
        f.seek(0)
        for line in f:
            result = json.loads(line)
            results[result["id"]] = dict({"began": 0}, **result)
    return results


def report(chosen, results, total):
    done = [results[f["id"]] for f in chosen if f["id"] in results]
    real = [r for r in done if r["verdict"] != "same code"]
    caught = [r for r in real if r["verdict"] == "caught"]
    for result in real:
        if result["verdict"] != "caught":
            print("%(id)s %(file)s:%(line)d %(kind)s %(by)s\n    - %(old)s\n    + %(new)s" % result)
    print("%d of %d possible faults chosen, %d run, %d of them without effect on the code" %
          (len(chosen), total, len(done), len(done) - len(real)))
    print("%d faults, %d caught (%.1f %%), %d survived" %
          (len(real), len(caught), 100 * len(caught) / max(1, len(real)), len(real) - len(caught)))


def work(options, job, queue, lock, end):
    state = options.state
    copy = Copy(os.path.join(state, "copy%d" % job), quick_tests_of if options.quick else tests_of)
    while time.monotonic() < end:
        with lock:
            if not queue:
                return
            fault = queue.pop(0)
        began, start = time.monotonic(), time.time()
        verdict, by = copy.judge(fault)
        result = dict(fault, verdict=verdict, by=by, began=int(start), quick=options.quick,
                      seconds=round(time.monotonic() - began, 1))
        with lock, open(os.path.join(state, "results.jsonl"), "a", encoding="utf-8") as f:
            f.write(json.dumps(result) + "\n")
            print("%(id)s %(verdict)s %(file)s:%(line)d %(kind)s %(by)s %(seconds)ss" % result,
                  flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", required=True)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--only", default="", help="a regular expression for FILE:LINE KIND or id")
    parser.add_argument("--again", type=float, default=0,
                        help="run faults again that survived before this time (date +%%s)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen, total = choose(options.count, options.seed)
    if options.only:
        chosen = [f for f in chosen
                  if re.search(options.only, "%(file)s:%(line)d %(kind)s %(id)s" % f)]
    os.makedirs(options.state, exist_ok=True)
    results = read_results(options.state)
    for fault in chosen if options.list else []:
        print("%(id)s %(file)s:%(line)d %(kind)s\n    - %(old)s\n    + %(new)s" % fault)
    if options.list:
        return 0
    if not options.report:
        alone = open(os.path.join(options.state, "lock"), "w", encoding="utf-8")
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the copies serve one run at a time
        queue = [f for f in chosen if f["id"] not in results or
                 (options.again and results[f["id"]]["verdict"] == "survived" and
                  results[f["id"]]["began"] < options.again)]
        queue.sort(key=lambda f: "rbd" in tests_of(f["file"])[0])  # a cluster for each: last
        lock = threading.Lock()
        end = time.monotonic() + options.seconds
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for future in [pool.submit(work, options, job, queue, lock, end)
                           for job in range(options.jobs)]:
                future.result()
        results = read_results(options.state)
    report(chosen, results, total)
    return 0


if __name__ == "__main__":
    sys.exit(main())
