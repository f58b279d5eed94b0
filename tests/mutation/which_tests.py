# SPDX-License-Identifier: BSD-3-Clause
"""The tests that are to notice a fault in a file, for mutate.py."""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

UNIT = {  # seconds that each may take, a few times what it takes on a busy machine
    "pool-lanes": 8, "pool-stranded": 8, "pool-cancel": 10, "pool-growth": 20, "loop": 30,
    "pool-free": 30, "backend-async": 40, "pool-time": 60, "bounce": 10, "space": 10, "disk": 20,
    "disk-calls": 10, "disk-hints": 10, "disk-open": 10, "device": 10, "units": 10, "stale": 20,
    "each-call": 30, "rbd": 10, "rbd-open": 15, "backend": 120,
}
POOL = ["pool-lanes", "pool-stranded", "pool-cancel", "pool-growth", "loop", "pool-free"]
CONFORMANCE_SECONDS = 45
THREADS = ["threads none auto ext4", "threads default auto loop4k", "threads default auto ext4"]


def quick_tests_of(path):
    """The unit tests, and a few of the others."""
    rest = {"conformance": 1, "system": 2}
    tests = []
    for test in tests_of(path):
        kind = test.split()[0]
        if kind not in rest or rest[kind] > 0:
            tests.append(test)
        if kind in rest:
            rest[kind] -= 1
    return tests


def tests_of(path):
    """The tests that are to notice a fault in the file, the cheap ones first."""
    name = os.path.basename(path)
    if path.startswith("pool/"):
        return POOL + ["each-call", "pool-time", "backend-async",
                       "conformance threads none pool ext4",
                       "system scheduling", "system dispatch-pool",
                       "system metrics cache=default"]
    if name in ("io_uring.c", "ring.c", "libaio.c"):
        kind = "libaio" if name == "libaio.c" else "io_uring"
        return ["disk", "stale", "each-call", "backend-async",
                "conformance %s none auto loop512" % kind,
                "conformance %s none auto ext4" % kind, "backend", "system fallback",
                "system last-client cache=none backend=" + kind, "each-call all " + kind]
    if "rbd" in name or "ceph" in name:
        return ["rbd", "rbd-open", "conformance threads default auto rbd", "system rbd"]
    if path.startswith("backends/"):
        return ["disk", "stale", "each-call", "backend-async"] + \
            ["conformance " + t for t in THREADS[:2]] + ["backend"]
    extra = {
        "bounce.c": ["bounce"], "space.c": ["space", "system detect-zeroes ext4 cache=none"],
        "image-table.c": ["system last-client cache=default", "system reopen",
                          "system churn 200 4 cache=default"],
        "image.c": ["system resize file", "system reopen", "system last-client cache=default",
                    "system errors", "system capabilities", "system few-descriptors",
                    "system fd", "system odd-device", "system size-race", "system fadvise",
                    "system fallback", "system dir", "system inode-reuse"],
        "image-disk.c": ["system capabilities", "system detect-zeroes ext4 cache=none"],
        "qemu-lock.c": ["system locks file"],
        "health.c": ["system inode-reuse", "system lost-writeback"],
        "flush.c": ["system lost-writeback", "system power-loss ext4", "system few-descriptors",
                    "system last-client cache=default", "system fd", "system inode-reuse"],
        "zero.c": ["system zero ext4 cache=none", "system fast-zero", "system zero-refused",
                   "system zero-pages", "system discard ext4 cache=none",
                   "conformance threads default auto tmpfs", "system zero tmpfs cache=default",
                   "system zero loop cache=default"],
        "folio.c": ["system large-folios"],
        "prefetch.c": ["system capabilities", "system last-client cache=default"],
        "fd.c": ["system fd", "system dirfd", "system surroundings"],
        "geometry.c": ["units", "system geometry", "system odd-device", "system capabilities"],
        "extents.c": ["system copy file cache=none dispatch=auto", "system resize file"],
        "transfer.c": ["system power-loss ext4",
                       "system unaligned file cache=none dispatch=auto", "system resize file",
                       "system unaligned loop cache=none dispatch=auto"],
        "range-lock.c": ["system unaligned file cache=none dispatch=auto", "system size-race"],
    }.get(name, [])
    unit = [t for t in extra if not t.startswith("system")]
    system = [t for t in extra if t.startswith("system")]
    return ["disk", "disk-calls", "disk-hints", "disk-open", "device", "stale", "each-call"] + \
        unit + ["conformance " + t for t in THREADS] + system


def deep_tests_of(path):
    """The tests that run once more with a sanitizer, if no other test has noticed the fault."""
    if "rbd" in path or "ceph" in path:
        return ["rbd", "rbd-open"]
    tests = {"pool": ["pool-lanes", "pool-cancel", "pool-free", "loop", "each-call"],
             "backends": ["backend-async", "each-call", "conformance threads default auto loop4k"],
             "plugin/disk": ["disk", "conformance threads default auto ext4"]
             }[os.path.dirname(path)]
    if os.path.basename(path) in ("io_uring.c", "ring.c"):
        tests = ["backend-async", "each-call", "conformance io_uring none auto ext4"]
    return tests


def find_script(name):
    for folder in ("system", "fault"):
        path = os.path.join("tests", folder, name + ".sh")
        if os.path.exists(os.path.join(ROOT, path)):
            return path
    raise SystemExit("no test " + name)


def seconds_of(test):
    words = test.split()
    if words[0] in ("conformance", "system"):
        return 240 if "rbd" in test else 90 if words[0] == "system" else CONFORMANCE_SECONDS
    return UNIT[words[0]] if len(words) == 1 else 600  # "each-call all BACKEND"
