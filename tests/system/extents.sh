#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The map of a file is the map that lseek(2) tells: after random writes that were not synced,
# preallocations, punches and zeros, and while such changes run beside it no data are called a hole.
# extents.sh ext4|xfs|btrfs [ROUNDS]
. "$(dirname "$0")/../lib/functions.sh"
kind=${1:?}
rounds=${2:-150}

cat >"$dir/extents.py" <<'P'
"""Changes the file, maps it in three ways, and compares."""
import ctypes, ctypes.util, errno, mmap, os, random, sys, threading
import nbd

uri, path, rounds, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("seed", seed)
random.seed(seed)
BLOCK, BLOCKS = 4096, 4096
SIZE = BLOCK * BLOCKS
KEEP_SIZE, PUNCH, ZERO = 1, 2, 16
libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
fd = os.open(path, os.O_RDWR)


def fallocate(mode, offset, length):
    assert libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) == 0, \
        os.strerror(ctypes.get_errno())


def mapped_write(offset, length):
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(fd, offset + length - start, offset=start) as memory:
        memory[offset - start:] = b"m" * length


def preallocate_many(offset, length):
    for at in range(offset, offset + length, 2 * BLOCK):
        fallocate(KEEP_SIZE, at, BLOCK)


CHANGES = [
    lambda at, n: os.pwrite(fd, b"w" * n, at), lambda at, n: os.pwrite(fd, b"w" * n, at),
    lambda at, n: os.pwrite(fd, b"b", at), mapped_write, preallocate_many,
    lambda at, n: fallocate(KEEP_SIZE, at, n), lambda at, n: fallocate(KEEP_SIZE | PUNCH, at, n),
    lambda at, n: fallocate(KEEP_SIZE | ZERO, at, n), lambda at, n: os.fdatasync(fd),
    lambda at, n: h.pwrite(b"n" * n, at), lambda at, n: h.zero(n, at),
    lambda at, n: h.trim(n, at), lambda at, n: h.flush(),
    lambda at, n: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED),
]


def change():
    n = BLOCK * random.choice((1, 1, 1, 2, 5, 64))
    at = BLOCK * random.randrange(BLOCKS - n // BLOCK)
    random.choice(CHANGES)(at, n)


def merged(pieces):
    out = []
    for length, hole in pieces:
        if out and out[-1][1] == hole:
            out[-1][0] += length
        else:
            out.append([length, hole])
    return out


def by_seek():
    pieces, at = [], 0
    while at < SIZE:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            data = SIZE
        pieces.append((data - at, True))
        if data < SIZE:
            at = os.lseek(fd, data, os.SEEK_HOLE)
            pieces.append((at - data, False))
        else:
            at = SIZE
    return merged(p for p in pieces if p[0])


def by_nbd(client, flags=0):
    pieces, at = [], 0

    def add(metacontext, offset, entries, error):
        nonlocal at
        for length, state in zip(entries[::2], entries[1::2]):
            pieces.append((length, bool(state & nbd.STATE_HOLE)))
            at += length

    while at < SIZE:
        client.block_status(SIZE - at, at, add, flags)
    return merged(pieces)


def client():
    c = nbd.NBD()
    c.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    c.connect_uri(uri)
    return c


h = client()
for i in range(rounds):
    for _ in range(random.choice((1, 1, 3, 20))):
        change()
    expected, whole = by_seek(), by_nbd(h)
    assert whole == expected, f"round {i}: {whole} instead of {expected}"
    if i % 10 == 0:
        single = by_nbd(h, nbd.CMD_FLAG_REQ_ONE)
        assert single == expected, f"round {i}, REQ_ONE: {single} instead of {expected}"

# One thread fills blocks for good, a second one changes other blocks; every even block that was
# written before a map began is data in that map.


def fill():
    for block in random.sample(range(0, BLOCKS, 2), BLOCKS // 2):
        os.pwrite(fd, b"f" * BLOCK, block * BLOCK)
        written.append(block)
    ended.set()


def disturb():
    page = b"d" * BLOCK
    while not ended.is_set():
        at = BLOCK * (2 * random.randrange(BLOCKS // 2) + 1)
        random.choice((lambda: os.pwrite(fd, page, at), lambda: fallocate(KEEP_SIZE, at, BLOCK),
                       lambda: fallocate(KEEP_SIZE | PUNCH, at, BLOCK),
                       lambda: fallocate(KEEP_SIZE | ZERO, at, BLOCK)))()


def check_map():
    count, at, holes = len(written), 0, set()
    for length, hole in by_nbd(h):
        if hole:
            holes.update(range(at // BLOCK, (at + length) // BLOCK))
        at += length
    lost = holes.intersection(written[:count])
    assert not lost, f"data called a hole: blocks {sorted(lost)[:9]}"


maps = 0
for _ in range(rounds // 15):
    fallocate(KEEP_SIZE | PUNCH, 0, SIZE)
    fallocate(KEEP_SIZE, 0, SIZE // 2)
    written, ended = [], threading.Event()
    threads = [threading.Thread(target=f) for f in (fill, disturb)]
    for t in threads:
        t.start()
    while not ended.is_set():
        check_map()
        maps += 1
    for t in threads:
        t.join()
print(rounds, "maps equal,", maps, "maps beside changes")
P

options=()
[ "$kind" != ext4 ] || options=(-b 4096)
make_fs "$kind" 400M "${options[@]}"
truncate -s 16M "$mnt/disk.img"
start extents "$mnt/disk.img"
"$python" "$dir/extents.py" "$uri" "$mnt/disk.img" "$rounds" $RANDOM || fail "extents.py failed"
stop
