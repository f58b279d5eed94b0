#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# One combination of backend, cache, dispatch and target: the conformance program's comparison with
# a model, then the faults that this target can have.
#
# conformance.sh BACKEND CACHE DISPATCH KIND [SECONDS] [SEED]
# KIND: ext4, xfs, btrfs, tmpfs, loop512, loop4k, zram, rbd, rbd-simple, rbd-64k, rbd-space or
# rbd-clone
# If AIODISK_RANDOM is set, only random operations run, many at a time: the fixed cases and the
# faults have few threads at work, and so nothing for TSan, which makes them very slow.
. "$(dirname "$0")/../lib/functions.sh"
: "${AIODISK_CONFORMANCE:?is not set: set it to the conformance program of the build}"
backend=$1 cache=$2 dispatch=$3 kind=$4 seconds=${5:-1}
seed=${6:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
parameters=(backend="$backend" cache="$cache" dispatch="$dispatch")
MiB=$((1 << 20))
need_root "loop devices and mounts"

zram=
before_cleanup() {
    [ -n "$zram" ] || return
    end_processes # a zram device cannot be reset while it is open
    (wait_for 10 reset_zram)
    echo "$zram" >/sys/class/zram-control/hot_remove
}
reset_zram() { echo 1 2>/dev/null >"/sys/block/zram$zram/reset"; }

# --- The target; fresh() fills it with zeros ---

case $kind in
ext4 | xfs | btrfs)
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
rbd*)
    . "$(dirname "$0")/../lib/ceph.sh"
    start_ceph
    size=$((33 * MiB + 777)) sparse=--sparse target=rbd=rbd/disk create=()
    case $kind in
    rbd) ;;
    rbd-simple) create=(--image-feature layering) ;; # no object map, no exclusive lock
    rbd-64k) create=(--object-size 64K) ;;
    rbd-space)
        rbd namespace create rbd/space
        target=rbd=rbd/space/disk
        ;;
    rbd-clone) # of a parent with data and holes, which must not come back from below
        sparse=--content=$dir/parent
        head -c $size /dev/urandom >"$dir/parent"
        for at in 3 9 10 20 33; do
            fallocate -p -o $((at * MiB + 5000)) -l $((MiB - 5000)) "$dir/parent"
        done
        rbd import --no-progress "$dir/parent" rbd/parent
        rbd snap create --no-progress rbd/parent@base
        ;;
    *) fail "$kind: unknown target" ;;
    esac
    ;;
*) fail "$kind: unknown target" ;;
esac

fresh() {
    if [[ $kind = rbd* ]]; then
        rbd remove --no-progress "${target#rbd=}" 2>/dev/null || true
        if [ "$kind" = rbd-clone ]; then
            rbd clone --rbd-default-clone-format 2 rbd/parent@base "${target#rbd=}"
        else
            rbd create "${target#rbd=}" --size ${size}B "${create[@]}"
        fi
    elif [ -b "$target" ]; then
        blkdiscard "$target"
    else
        rm -f "$target"
        truncate -s "$size" "$target"
    fi
}

kept_size() {
    [ -b "$target" ] || [[ $kind = rbd* ]] || [ "$(stat -c %s "$target")" = "$1" ] ||
        fail "the file has $(stat -c %s "$target") bytes, not $1"
}

# model NAME SECONDS [OPTION]: runs the conformance program on a fresh target.
model() {
    fresh
    start "$1" "$target" "${parameters[@]}"
    "$AIODISK_CONFORMANCE" "$uri" "$2" "$seed" ${3:+"$3"} >"$dir/$1.out" ||
        fail_with "$dir/$1.out" "$1, seed $seed"
    tail -1 "$dir/$1.out"
    stop
    kept_size "$size"
}

# --- Faults ---

# fault NAME ARGUMENTS...: runs the function NAME of faults.py on a fresh target.
fault() {
    local name=$1
    shift
    say "${name//_/ }"
    fresh
    start "$name" "$target" "${parameters[@]}"
    "$python" "$here/faults.py" "$name" "$uri" "$cache" "$target" "$@" || fail "$name"
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
    fault no_space "$mnt/filler" "$kind"
    kept_size "$size"
}

file_limit() {
    local nbdkit=(prlimit --fsize=$((16 * MiB)) nbdkit)
    fault file_limit $((16 * MiB))
    grep -q "File too large" "$log" || fail "no call failed with EFBIG"
    kept_size "$size"
}

# inject NAME SYSCALLS ERROR FIRST: from the call FIRST of each thread on, every third call fails.
# The comparison with the model must not fail.
inject() {
    local nbdkit=(strace -D -f --seccomp-bpf -qq -o "$dir/$1.strace" -e "trace=$2"
        -e "inject=$2:error=$3:when=$4+3" nbdkit)
    say "$3 from $2"
    model "$1" 0.3 --random
    [ "$(grep -c INJECTED "$dir/$1.strace")" -ge 5 ] || fail "strace injected fewer than 5 errors"
}

interrupted() { inject interrupted preadv,preadv2,pwritev,pwritev2,fdatasync,fallocate EINTR 2; }

refused_submission() {
    # With its first calls the backend finds out whether it works here.
    case $backend in
    io_uring)
        for error in EAGAIN EBUSY EINTR; do
            inject "enter-$error" io_uring_enter $error 20
        done
        ;;
    libaio)
        for error in EAGAIN EINTR; do
            inject "submit-$error" io_submit $error 20
        done
        ;;
    esac
}

# The faults that the target can have.
case $kind in
ext4 | xfs | btrfs | tmpfs) faults=(thin no_space file_limit shrunk_file) ;;
loop512 | loop4k) faults=(bad_sectors shrunk_disk) ;;
zram) faults=(no_memory) ;;
rbd*) faults=() ;;
esac
# The errors that system calls can return: the blocking calls, or the ring's.
case $backend-$cache-$kind in
*-rbd*) ;; # librbd makes the calls
threads-* | libaio-default-*) faults+=(interrupted) ;;
io_uring-* | libaio-none-*) faults+=(refused_submission) ;;
esac

echo "seed $seed"
if [ -n "${AIODISK_RANDOM:-}" ]; then
    model model "$seconds" --random
    overlap
    exit
fi
model model "$seconds" $sparse
[ "$kind" = rbd-clone ] || faults=(overlap "${faults[@]}") # wants zeros
for name in "${faults[@]}"; do $name; done
