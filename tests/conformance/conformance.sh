#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# One combination of backend, cache, dispatch and target: conformance.c's model, then the faults that this target can have.
# conformance.sh BACKEND CACHE DISPATCH ext4|xfs|tmpfs|loop512|loop4k|zram [SECONDS] [SEED]
. "$(dirname "$0")/../lib/functions.sh"
: "${AIODISK_CONFORMANCE:?is not set: it names the program that conformance.c makes}"
backend=$1 cache=$2 dispatch=$3 kind=$4 seconds=${5:-1} seed=${6:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
parameters=(backend="$backend" cache="$cache" dispatch="$dispatch")
MiB=$((1 << 20))
need_root "loop devices and mounts"

zram=
finish() {
    local status=$?
    set +e
    if [ -n "$zram" ]; then
        # Its users first.
        for i in "${pids[@]}"; do kill -9 "$i" 2>/dev/null; done
        for i in "${pids[@]}"; do wait "$i" 2>/dev/null; done
        (wait_for 10 reset_zram)
        echo "$zram" >/sys/class/zram-control/hot_remove
    fi
    (exit $status)
    cleanup
}
reset_zram() { echo 1 2>/dev/null >"/sys/block/zram$zram/reset"; }
trap finish EXIT

# --- The target, and making it new: all zeros ---

case $kind in
ext4 | xfs)
    make_fs "$kind" 400M
    size=$((33 * MiB + 777)) target=$mnt/disk.img sparse=--sparse
    ;;
tmpfs)
    make_fs tmpfs 80M
    size=$((33 * MiB + 777)) target=$mnt/disk.img sparse=--sparse
    ;;
loop512 | loop4k)
    sector=512 backing=$dir/backing.img sparse=
    [ "$kind" = loop512 ] || sector=4096
    size=$((33 * MiB + 3 * sector))
    truncate -s $size "$backing"
    make_loop "$backing" --direct-io=on --sector-size=$sector
    target=$loop
    ;;
zram)
    size=$((64 * MiB)) sparse=
    modprobe zram 2>/dev/null || true
    [ -e /sys/class/zram-control ] || skip "the kernel has no zram"
    zram=$(cat /sys/class/zram-control/hot_add)
    echo $size >"/sys/block/zram$zram/disksize"
    target=/dev/zram$zram
    ;;
*) fail "$kind: unknown target" ;;
esac

fresh() {
    if [ -b "$target" ]; then
        blkdiscard "$target"
    else
        rm -f "$target"
        truncate -s "$size" "$target"
    fi
}

kept_size() {
    [ -b "$target" ] || [ "$(stat -c %s "$target")" = "$1" ] || fail "the file has $(stat -c %s "$target") bytes, not $1"
}

model() { # NAME SECONDS [OPTION]
    fresh
    start "$1" "$target" "${parameters[@]}"
    "$AIODISK_CONFORMANCE" "$uri" "$2" "$seed" ${3:+"$3"} >"$dir/$1.out" || { cat "$dir/$1.out"; fail "$1, seed $seed"; }
    tail -1 "$dir/$1.out"
    stop
    kept_size "$size"
}

# --- Faults ---

cat >"$dir/client.py" <<'P'
import errno, nbd, os, random, subprocess, sys
case, uri, cache, target = sys.argv[1:5]
arguments = sys.argv[5:]
MiB = 1 << 20
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
pattern = bytes(range(1, 252)) * 8356  # 2 MiB, no zero in it, and no period of a power of two

def fails(error, call, *args):
    what = f"{call.__name__} {[len(a) if isinstance(a, bytes) else a for a in args]}"
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errnum == error, f"{what} gave {e.errno}, not {errno.errorcode[error]}"
        return
    raise AssertionError(f"{what} said ok")

def expect(length, offset, start=0):
    """What fill() wrote from `start` on."""
    at = (offset - start) % MiB
    assert h.pread(length, offset) == pattern[at:at + length], f"wrong data at {offset}"

def fill(start, end):
    for at in range(start, end, MiB):
        h.pwrite(pattern[:MiB], at)
    h.flush()

def at_once(requests):
    """All in flight together: (length, offset, the error it is to give)."""
    left = len(requests)
    def done(got, wanted, where):
        nonlocal left
        left -= 1
        assert got.value == wanted, f"read at {where} gave {got.value}, not {wanted}"
        return 1
    for length, offset, error in requests:
        h.aio_pread(nbd.Buffer(length), offset, lambda got, e=error, o=offset: done(got, e, o))
    while left:
        h.poll(-1)

def overlap(seed):
    """Two writes, or a zero and a write, at once on the same bytes: each byte is one of the two's, and what only one of them
    covers is that one's.  The model leaves this out."""
    random.seed(seed)
    handles = [h] + [nbd.NBD() for _ in range(3)]
    for other in handles[1:]:
        other.connect_uri(uri)
    def done(error):
        assert error.value == 0, f"error {error.value}"
        return 1
    def write(handle, content, offset):
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content)), offset, done)
    for _ in range(10):
        pairs = []
        for at in range(0, 32 * 65536, 65536):
            one, two = random.sample(handles, 2)
            part = random.randbytes(random.choice((1, 100, 511, 5000)))
            where = random.randrange(1, 16384 - len(part))
            part_first = random.random() < 0.5
            if part_first:
                write(two, part, at + where)
            if random.random() < 0.5:
                whole = random.randbytes(16384)
                write(one, whole, at)
            else:
                whole = bytes(16384)
                one.aio_zero(16384, at, done, random.choice((0, nbd.CMD_FLAG_NO_HOLE)))
            if not part_first:
                write(two, part, at + where)
            pairs.append((at, whole, part, where))
        for handle in handles:
            while handle.aio_in_flight():
                handle.poll(-1)
        for at, whole, part, where in pairs:
            got, end = h.pread(len(whole), at), where + len(part)
            assert got[:where] == whole[:where] and got[end:] == whole[end:], f"bytes near {at} are of neither write"
            assert all(g in (w, p) for g, w, p in zip(got[where:end], whole[where:end], part)), f"invented bytes at {at}"

def thin():
    """Block status of data, a hole, and data."""
    fill(0, 12 * MiB)
    h.zero(6 * MiB, 3 * MiB + 1)
    h.flush()
    told = []
    h.block_status(12 * MiB, 0, lambda context, offset, entries, error: told.extend(entries))
    assert told[1::2] == [0, nbd.STATE_HOLE | nbd.STATE_ZERO, 0], told
    assert 3 * MiB < told[0] < 4 * MiB and 5 * MiB < told[2] <= 6 * MiB and sum(told[::2]) == 12 * MiB, told

def bad_sectors(backing):
    """The disk's second half cannot be read."""
    size, half = os.stat(backing).st_size, 8 * MiB
    fill(0, 2 * half)
    os.truncate(backing, half)
    subprocess.run(["blockdev", "--flushbufs", target], check=True)
    for length, offset in ((4096, half), (1, half + 4099), (3 * MiB, 12 * MiB + 1), (2 * MiB, half - MiB), (3, half - 1)):
        fails(errno.EIO, h.pread, length, offset)
        expect(4096, half - 4096)
    at_once([(5000, i * 97001 % (half - 5000) + half * (i % 2), errno.EIO if i % 2 else 0) for i in range(64)])
    # Part of a block that cannot be read cannot be written; a whole one can, and is good again.
    fails(errno.EIO, h.pwrite, b"x" * 100, 12 * MiB + 100)
    fails(errno.EIO, h.pread, 4096, 12 * MiB)
    h.pwrite(b"whole" * 8192, 14 * MiB)
    h.flush()
    assert h.pread(40960, 14 * MiB) == b"whole" * 8192
    expect(MiB, 0)
    os.truncate(backing, size)

def shrunk_disk(backing):
    """A disk that has become smaller while it is served."""
    size, half = os.stat(backing).st_size, 8 * MiB
    fill(0, 2 * half)
    os.truncate(backing, half)
    subprocess.run(["losetup", "-c", target], check=True)
    for length, offset in ((4096, half), (100, half + 4099), (MiB, half - 5000)):
        fails(errno.EIO, h.pread, length, offset)
    fails(errno.ENOSPC, h.pwrite, pattern[:8192], half)
    fails(errno.ENOSPC, h.pwrite, pattern[:8192], half - 4096)
    h.pwrite(b"here", half - 5)
    assert h.pread(5, half - 5)[:4] == b"here"
    assert os.stat(backing).st_size == half
    os.truncate(backing, size)
    subprocess.run(["losetup", "-c", target], check=True)
    expect(MiB, 0)

def shrunk_file():
    """A file that was cut short while it is served: never zeros, and never grown again."""
    end = 8 * MiB + 1100
    fill(0, 16 * MiB)
    os.truncate(target, end)
    for length, offset in ((1, end), (4096, 9 * MiB), (200, end - 100), (3 * MiB, end - MiB), (2 * MiB, 12 * MiB + 1)):
        fails(errno.EIO, h.pread, length, offset)
        expect(100, end - 100)
        expect(MiB, MiB)
    for length, offset in ((1, end), (4096, 9 * MiB), (200, end - 100), (2 * MiB, end - MiB)):
        fails(errno.ENOSPC, h.pwrite, pattern[:length], offset)
        fails(errno.ENOSPC, h.pwrite, pattern[:length], offset, nbd.CMD_FLAG_FUA)
        fails(errno.ENOSPC, h.zero, length, offset)
        fails(errno.ENOSPC, h.zero, length, offset, nbd.CMD_FLAG_NO_HOLE)
        try:
            h.trim(length, offset)
        except nbd.Error:
            pass
        assert os.stat(target).st_size == end, f"grown to {os.stat(target).st_size}"
    claims = []
    h.block_status(MiB, 12 * MiB, lambda context, offset, entries, error: claims.extend(entries))
    assert not any(claims[1::2]), f"block status claims {claims} behind the end"
    h.pwrite(b"here" * 100, MiB + 1)
    h.flush()
    assert h.pread(400, MiB + 1) == b"here" * 100
    assert os.stat(target).st_size == end

def no_space(filler):
    """No room is left: what is there already can be read and written, and the disk is not failed."""
    fill(0, 2 * MiB)
    with open(filler, "wb") as f:
        end = 0
        for step in (64 * MiB, 4 * MiB, 256 << 10, 4096):
            try:
                while True:
                    os.posix_fallocate(f.fileno(), end, step)
                    end += step
            except OSError as e:
                assert e.errno == errno.ENOSPC, e
    for flags in (0, nbd.CMD_FLAG_FUA):
        fails(errno.ENOSPC, h.pwrite, pattern[:MiB], 8 * MiB + 1, flags)
        fails(errno.ENOSPC, h.pwrite, pattern[:MiB], 12 * MiB, flags)
        fails(errno.ENOSPC, h.zero, MiB, 20 * MiB, flags | nbd.CMD_FLAG_NO_HOLE)
        expect(MiB, 0)
        h.pwrite(b"room" * 1000, 4096, flags)
        h.pwrite(b"room" * 1000, MiB + 77, flags)
        assert h.pread(4000, 4096) == h.pread(4000, MiB + 77) == b"room" * 1000
        h.flush()
        fill(0, 2 * MiB)
    os.unlink(filler)
    fill(24 * MiB, 26 * MiB)
    expect(MiB, 24 * MiB, 24 * MiB)
    expect(MiB, 0)

def file_limit(limit):
    """A write over RLIMIT_FSIZE is short, then EFBIG, which nbdkit sends as ENOSPC; no SIGXFSZ."""
    limit = int(limit)
    fill(0, MiB)
    for flags in (0, nbd.CMD_FLAG_FUA):
        fails(errno.ENOSPC, h.pwrite, pattern[:2 * MiB], limit - MiB, flags)
        fails(errno.ENOSPC, h.pwrite, pattern[:MiB], limit - 1000, flags)
        fails(errno.ENOSPC, h.pwrite, pattern[:1], limit, flags)
        fails(errno.ENOSPC, h.pwrite, pattern[:4096], limit + 4 * MiB, flags)
        expect(MiB, 0)
        assert h.pread(4096, limit + 4 * MiB) == bytes(4096)
        h.pwrite(b"below", limit - 5, flags)
        assert h.pread(6, limit - 5) in (b"below\0", b"below" + pattern[:1])
        h.flush()

def no_memory(limit):
    """A compressed disk in memory that has no more memory."""
    fill(0, MiB)
    noise = os.urandom(8 * MiB)
    with open(limit, "w") as f:
        f.write("4M")
    if cache == "none":
        fails(errno.EIO, h.pwrite, noise, 16 * MiB)
        fails(errno.EIO, h.pwrite, noise, 16 * MiB + 1, nbd.CMD_FLAG_FUA)
    else:
        h.pwrite(noise, 16 * MiB)
        fails(errno.EIO, h.flush)
        fails(errno.EIO, h.flush)
    expect(MiB, 0)
    with open(limit, "w") as f:
        f.write("0")
    h.pwrite(noise, 16 * MiB)
    assert h.pread(8 * MiB, 16 * MiB) == noise
    if cache == "none":
        h.flush()

globals()[case](*arguments)
h.shutdown()
P

# fault NAME ARGUMENTS...: the client's function of that name, on a new disk; $nbdkit, if set, is how nbdkit is started.
fault() {
    local name=$1
    shift
    say "${name//_/ }"
    fresh
    start "$name" "$target" "${parameters[@]}"
    "$python" "$dir/client.py" "$name" "$uri" "$cache" "$target" "$@" || fail "$name"
    stop
}

overlap() { fault overlap "$seed"; }
thin() { fault thin; }
bad_sectors() { fault bad_sectors "$backing"; }
shrunk_disk() { fault shrunk_disk "$backing"; }
no_memory() { fault no_memory "/sys/block/zram$zram/mem_limit"; }

shrunk_file() {
    fault shrunk_file
    kept_size $((8 * MiB + 1100))
}

no_space() {
    fault no_space "$mnt/filler"
    kept_size "$size"
}

file_limit() {
    local nbdkit=(prlimit --fsize=$((16 * MiB)) nbdkit)
    fault file_limit $((16 * MiB))
    grep -q "File too large" "$log" || fail "EFBIG did not come"
    kept_size "$size"
}

# inject NAME SYSCALLS ERROR FIRST: every third call of each thread fails, from the FIRST on; the model must not notice.
inject() {
    local nbdkit=(strace -D -f --seccomp-bpf -qq -o "$dir/$1.strace" -e "trace=$2" -e "inject=$2:error=$3:when=$4+3" nbdkit)
    say "$3 from $2"
    model "$1" 0.3 --random
    [ "$(grep -c INJECTED "$dir/$1.strace")" -ge 5 ] || fail "strace injected next to nothing"
}

interrupted() { inject interrupted preadv,preadv2,pwritev,pwritev2,fdatasync,fallocate EINTR 2; }

refused_submission() {
    # The first calls are the backend's own look whether it works here.
    case $backend in
    io_uring) for error in EAGAIN EBUSY EINTR; do inject "enter-$error" io_uring_enter $error 20; done ;;
    libaio) for error in EAGAIN EINTR; do inject "submit-$error" io_submit $error 20; done ;;
    esac
}

# What else, and which fault where.
case $kind in
ext4 | xfs | tmpfs) faults=(thin no_space file_limit shrunk_file) ;;
loop512 | loop4k) faults=(bad_sectors shrunk_disk) ;;
zram) faults=(no_memory) ;;
esac
# And what can be disturbed on the way to the kernel: calls that block, or the ring's.
case $backend-$cache in
threads-* | libaio-default) faults+=(interrupted) ;;
io_uring-* | libaio-none) faults+=(refused_submission) ;;
esac

echo "seed $seed"
model model "$seconds" $sparse
for name in overlap "${faults[@]}"; do $name; done
