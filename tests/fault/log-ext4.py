#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The load and the check of log-replay.sh: an ext4 on the served disk.

usage: log-ext4.py load MOUNTPOINT LOG STATE SEED
       log-ext4.py check LOG STATE SEED SAMPLES DIRECTORY

`load` makes, syncs, renames and removes files, and notes how long the log was before and after.

`check` makes disks of which a power failure could leave one.  e2fsck replays the journal, and then
finds nothing to repair; the files that were synced are there with their bytes.
"""
import os
import pickle
import random
import re
import shutil
import subprocess
import sys

from write_log import power_failures

SIZE = 16 << 20     # bytes of the disk
FILES = 40
# What e2fsck prints of a healthy filesystem.  After the replay of the journal it may have to end a
# removal, and to count what is free, for the superblock's sums are not in the journal.
USUAL = re.compile(r"^$|^e2fsck |^Pass |recovering journal|\*\*\*\*\*|non-contiguous|"
                   r"orphaned inode|^Free (blocks|inodes) count wrong \(|^Fix\? yes$")


def content(seed, name):
    rng = random.Random(f"{seed} {name}")
    return rng.randbytes(rng.randrange(1, 60000))


def load(mountpoint, log, state, seed):
    rng = random.Random(seed)
    start = os.path.getsize(log)
    files = {}  # name: [length of the log at the end of the sync, at the begin of the removal]
    folder = os.open(mountpoint, os.O_RDONLY)

    def remove(name):
        files[name][1] = os.path.getsize(log)

    for i in range(FILES):
        name = f"file{i}"
        with open(f"{mountpoint}/{name}", "wb") as file:
            file.write(content(seed, name))
            file.flush()
            os.fsync(file.fileno())
        os.fsync(folder)
        files[name] = [os.path.getsize(log), None]
        kept = [name for name in files if files[name][1] is None]
        if rng.random() < 0.3:
            gone = rng.choice(kept)
            remove(gone)
            os.unlink(f"{mountpoint}/{gone}")
        elif rng.random() < 0.3:
            with open(f"{mountpoint}/unsynced{i}", "wb") as file:
                file.write(content(seed, name))
    os.close(folder)
    with open(state, "wb") as file:
        pickle.dump((start, files), file)
    print(f"files={FILES}")


def run(*command):
    """Returns the exit status and the output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def check_disk(image, directory, seed, files, now):
    status, text = run("e2fsck", "-fy", image)
    repairs = [line for line in text.splitlines() if not USUAL.search(line)]
    if status > 1 or repairs:
        sys.exit(f"lost: the ext4 needs a repair after {now} bytes of the log: {text}")
    shutil.rmtree(directory, ignore_errors=True)
    os.mkdir(directory)
    run("debugfs", "-R", f"rdump / {directory}", image)
    count = 0
    for name, (synced, removed) in files.items():
        path = f"{directory}/{name}"
        if synced > now or (removed is not None and removed <= now):
            continue
        found = None
        if os.path.exists(path):
            with open(path, "rb") as file:
                found = file.read()
        if found != content(seed, name):
            sys.exit(f"lost: {name}, synced at {synced} bytes of the log, after {now} bytes: "
                     f"{'absent' if found is None else 'other content'}")
        count += 1
    return count


def check(log, state, seed, samples, directory):
    with open(state, "rb") as file:
        start, files = pickle.load(file)
    image, disks, count = directory + "/replayed.img", 0, 0
    for now in power_failures(log, image, SIZE, start, random.Random(seed), int(samples)):
        count += check_disk(image, directory + "/files", seed, files, now)
        disks += 1
    print(f"e2fsck={disks} synced_files={count}")


{"load": load, "check": check}[sys.argv[1]](*sys.argv[2:])
