#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Do the tests notice a fault?  Puts single faults into pool/, backends/ and plugin/disk/, builds
each, and runs the tests that are to notice it.

    mutate.py --state DIRECTORY [--count 240] [--seed 1] [--seconds S] [--only PATTERN] [--quick]
    mutate.py --state DIRECTORY --report
    mutate.py --state DIRECTORY --baseline N [--seconds S] [--only PATTERN]

The seed decides which faults: the same sources and the same seed give the same list.  DIRECTORY
holds private copies of the sources, one for each job, and results.jsonl with a line for each fault
that was run.  A run goes on where the last one ended, and ends after S seconds, so that it can be
made in pieces.  Needs root, as the conformance suite does.  With --quick a fault meets the unit
tests, one conformance run and two system tests, and no sanitizer.  With --tests it meets only the
named ones ("disk; system fallback"); what survives these is noted in tries.jsonl only.

--baseline runs each test of the list N times on sources without a fault, as many at the same time
as otherwise, and prints each that fails or hangs: such a test would "catch" faults by accident.

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
PLUGIN = "plugin/nbdkit-aiodisk-plugin.so"

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


def sources():
    return sorted(os.path.join(folder, name) for folder in FOLDERS
                  for name in os.listdir(os.path.join(ROOT, folder))
                  if name.endswith(".c") and "schedule" not in name)


def choose(count, seed):
    """The faults to try.  A file's share grows with its size.  A dropped lock, wait or wake-up is
    about twice as likely as another fault.  The choice depends on the text of a line and not on its
    number, so most of the list stays the same when a file is edited elsewhere."""
    everything = []
    for path in sources():
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
        self.run(["ninja", "-j2", "-C", self.build] + self.targets_of(UNIT), 600, check=True)
        self.hashes = {path: self.code_hash(path) for path in sources()}
        self.env = dict(os.environ, TMPDIR=self.tmp, AIODISK_BUILD=self.build,
                        AIODISK_PLUGIN=os.path.join(self.build, PLUGIN),
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
            raise SystemExit("%s: %s\n%s" % (command, result, self.words()[-3000:]))
        return result

    def words(self):
        """What the last command has printed."""
        with open(os.path.join(self.tmp, "..", "log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    @staticmethod
    def targets_of(tests):
        return [PLUGIN, "tests/unit/libpool-module.so", "tests/conformance/conformance",
                "tests/lib/deny-syscalls", "plugin/libnbdkit-corked.so"] + \
            sorted({"tests/unit/test-" + t.split()[0] for t in tests if t.split()[0] in UNIT}) + \
            ["tests/unit/test-geometry" for t in tests if t in ("system geometry", "units")]

    def command_of(self, test, build):
        words = test.split()
        if words[0] == "conformance":
            return ["bash", os.path.join(self.source, "tests/conformance/conformance.sh")] + \
                words[1:] + ["1", "4711"]
        if words[0] == "system":
            return ["bash", os.path.join(self.source, find_script(words[1]))] + words[2:]
        return [os.path.join(build, "tests/unit/test-" + words[0])] + words[1:]

    def build_with_sanitizer(self, sanitizer, tests):
        """Builds the sources, as they are in the copy, in one more directory."""
        build = self.build + "-" + sanitizer.split(",")[0]
        if not os.path.exists(os.path.join(build, "build.ninja")):
            self.run(["meson", "setup", build, self.source, "-Dtests=enabled",
                      "-Db_lundef=false", "-Db_sanitize=" + sanitizer], 120, check=True)
        targets = [PLUGIN, "tests/unit/libpool-module.so", "tests/lib/libasan-first.so"] + \
            ["tests/unit/test-" + t for t in tests if t in UNIT]
        return self.run(["ninja", "-j2", "-C", build] + targets, 600) == "ok"

    def run_with_sanitizer(self, sanitizer, test):
        build = self.build + "-" + sanitizer.split(",")[0]
        runtime = {"thread": "libtsan.so", "address,undefined": "libasan.so"}[sanitizer]
        preload = subprocess.run(["gcc", "-print-file-name=" + runtime], stdout=subprocess.PIPE,
                                 check=True, encoding="utf-8").stdout.strip()
        env = self.env
        self.env = dict(env, AIODISK_PLUGIN=os.path.join(build, PLUGIN),
                        AIODISK_PRELOAD=preload + " " +
                        os.path.join(build, "tests/lib/libasan-first.so"),
                        AIODISK_RANDOM="1", TSAN_OPTIONS="halt_on_error=1",
                        AIODISK_POOL_MODULE=os.path.join(build, "tests/unit/libpool-module.so"))
        try:
            return self.run(self.command_of(test, build), 2 * seconds_of(test))
        finally:
            self.env = env

    def judge_with_sanitizer(self, fault, sanitizer):
        tests = deep_tests_of(fault["file"])
        if not self.build_with_sanitizer(sanitizer, tests):
            return "the build with -fsanitize=" + sanitizer
        for test in tests:
            result = self.run_with_sanitizer(sanitizer, test)
            if result not in ("ok", "skipped"):
                return "%s with -fsanitize=%s (%s)" % (test, sanitizer, result)
        return None

    def code_hash(self, path):
        """A hash of the machine code and the data of the file's object."""
        name = {"pool": "pool/libpool.a.p/%s.o", "backends": "backends/libbackends.a.p/%s.o",
                "plugin/disk": "plugin/disk/libdisk.a.p/%s.o"}[os.path.dirname(path)]
        stripped = os.path.join(self.tmp, "..", "stripped.o")
        subprocess.run(["objcopy", "--strip-debug",
                        os.path.join(self.build, name % os.path.basename(path)), stripped],
                       check=True)
        with open(stripped, "rb") as f:
            return hashlib.sha1(f.read()).hexdigest()

    def judge(self, fault):
        """Puts the fault in, builds, tests, and takes the fault out of the sources again.  What is
        built next is built without it, because the file is newer than its object."""
        path = os.path.join(self.source, fault["file"])
        with open(path, encoding="utf-8") as f:
            original = f.read()
        tests = self.tests(fault["file"])
        lines = original.split("\n")
        lines[fault["line"] - 1] = fault["text"]
        try:
            with open(path, "w", encoding="utf-8") as f:
                f.write("\n".join(lines))
            if self.run(["ninja", "-j1", "-C", self.build] + self.targets_of(tests), 300) != "ok":
                if not re.search(r"[.]c:\d+:\d+: error: ", self.words()):
                    raise SystemExit("the build failed for another reason than the fault")
                return "caught", "compiler"
            if self.code_hash(fault["file"]) == self.hashes[fault["file"]]:
                return "same code", ""
            skipped = []
            for test in tests:
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


# --- The run and the report ---

def read_lines(state, name):
    with open(os.path.join(state, name), "a+", encoding="utf-8") as f:
        f.seek(0)
        return [json.loads(line) for line in f]


def read_results(state):
    return {result["id"]: dict({"began": 0}, **result)
            for result in read_lines(state, "results.jsonl")}


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


def run_jobs(options, function, queue):
    """Runs function(copy, item) for each item of the queue, until the time is up.  What it returns
    is one more line of the file for which it returns it."""
    lock = threading.Lock()
    end = time.monotonic() + options.seconds
    named = [test.strip() for test in options.tests.split(";")]
    tests = (lambda path: named) if options.tests else quick_tests_of if options.quick else tests_of

    def work(job):
        copy = Copy(os.path.join(options.state, "copy%d" % job), tests)
        while time.monotonic() < end:
            with lock:
                if not queue:
                    return
                item = queue.pop(0)
            began, start = time.monotonic(), int(time.time())
            name, result, text = function(copy, item)
            result.update(began=start, seconds=round(time.monotonic() - began, 1),
                          words=copy.words()[-800:])
            with lock, open(os.path.join(options.state, name), "a", encoding="utf-8") as f:
                f.write(json.dumps(result) + "\n")
                print(text % result, flush=True)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for future in [pool.submit(work, job) for job in range(options.jobs)]:
            future.result()


def judge(options, copy, fault):
    verdict, by = copy.judge(fault)
    name = "tries.jsonl" if options.tests and verdict == "survived" else "results.jsonl"
    return name, dict(fault, verdict=verdict, by=by, quick=options.quick), \
        "%(id)s %(verdict)s %(file)s:%(line)d %(kind)s %(by)s %(seconds)ss"


def run_unmodified(copy, item):
    test, sanitizer = item
    if not sanitizer:
        result = copy.run(copy.command_of(test, copy.build), seconds_of(test))
    elif copy.build_with_sanitizer(sanitizer, [test]):
        result = copy.run_with_sanitizer(sanitizer, test)
    else:
        raise SystemExit("the sources do not build with -fsanitize=" + sanitizer)
    return "baseline.jsonl", {"test": test, "sanitizer": sanitizer, "result": result}, \
        "%(result)s %(test)s %(sanitizer)s %(seconds)ss"


def baseline(options, files):
    """Goes on until each test has run N times since the state directory was made."""
    wanted = dict.fromkeys((test, "") for path in files for test in tests_of(path))
    wanted.update(dict.fromkeys((test, sanitizer) for path in files for sanitizer in SANITIZERS
                                for test in deep_tests_of(path)))

    def runs():
        results = {item: [] for item in wanted}
        for line in read_lines(options.state, "baseline.jsonl"):
            results.setdefault((line["test"], line["sanitizer"]), []).append(line)
        return results

    before = runs()
    run_jobs(options, run_unmodified, [item for i in range(options.baseline) for item in wanted
                                       if len(before[item]) <= i])
    done = {item: lines for item, lines in runs().items() if lines and item in wanted}
    for (test, sanitizer), lines in done.items():
        bad = [line["result"] for line in lines if line["result"] != "ok"]
        limit_s = seconds_of(test) * (2 if sanitizer else 1)
        longest = max(line["seconds"] for line in lines)
        if bad or (not sanitizer and longest > limit_s / 2):
            print("%s %s: %d of %d runs were not ok (%s); the longest took %.1f of %d s" % (
                test, sanitizer, len(bad), len(lines), ", ".join(sorted(set(bad))), longest,
                limit_s))
    print("%d of %d tests, %d runs" % (len(done), len(wanted), sum(map(len, done.values()))))


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
    parser.add_argument("--tests", default="", help="only these tests, separated by semicolons")
    parser.add_argument("--baseline", type=int, default=0, metavar="N")
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
    if options.baseline:
        baseline(options, sorted(set(f["file"] for f in chosen)))
        return 0
    if not options.report:
        queue = [f for f in chosen if f["id"] not in results or
                 (options.again and results[f["id"]]["verdict"] == "survived" and
                  results[f["id"]]["began"] < options.again)]
        queue.sort(key=lambda f: "system rbd" in tests_of(f["file"]))  # a cluster for each: last
        run_jobs(options, lambda copy, fault: judge(options, copy, fault), queue)
        results = read_results(options.state)
    report(chosen, results, total)
    return 0


if __name__ == "__main__":
    sys.exit(main())
