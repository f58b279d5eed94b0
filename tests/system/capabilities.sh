#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What the server tells its clients about a file and a block device, writable and read-only, and
# what --dump-plugin prints.
. "$(dirname "$0")/../lib/functions.sh"
need_root "loop devices and mounts"
cd "$dir"
truncate -s 4M disk.img loop.img

# told NAME=VALUE...: nbdinfo reports each VALUE about the server that was started last.
told() {
    local pair
    nbdinfo --json "$uri" >info || fail_with "$log" "no client can connect to: $what"
    for pair; do
        [ "$(jq -c ".exports[0].\"${pair%%=*}\"" info)" = "${pair#*=}" ] ||
            fail_with info "expected $pair of: $what"
    done
}
always=(can_multi_conn=true can_flush=true can_cache=true can_df=true block_size_minimum=1
    block_size_maximum=$((64 << 20)) export-size=$((4 << 20)) 'contexts=["base:allocation"]')
writable=("${always[@]}" is_read_only=false can_fua=true can_trim=true can_zero=true
    can_fast_zero=true)
readonly=("${always[@]}" is_read_only=true can_fua=false can_trim=false can_zero=false
    can_fast_zero=false)

# rotational_of MAJOR:MINOR: prints true if the block device, or the disk of which it is a
# partition, is rotational, else false.
rotational_of() {
    local file
    for file in /sys/dev/block/"$1"/queue/rotational /sys/dev/block/"$1"/../queue/rotational; do
        [ ! -e "$file" ] || { [ "$(cat "$file")" = 1 ] && echo true || echo false; return; }
    done
    echo false
}
# preferred_is_sane BYTES: the preferred block size is BYTES, and one that NBD permits.
preferred_is_sane() {
    local n
    n=$(jq '.exports[0].block_size_preferred' info)
    ((n >= 512 && n <= 32 << 20 && (n & (n - 1)) == 0)) || fail "preferred block size $n of: $what"
    [ "$n" = "$1" ] || fail "preferred block size $n instead of $1 of: $what"
}
# server WHAT ARGUMENTS...: starts nbdkit with ARGUMENTS; messages name WHAT.
server() {
    what=$1
    shift
    say "$what"
    start server "$@"
}
# takes_no_writes: the server refuses writes also from a client that ignores what it was told.
# Flush and cache are no writes.
takes_no_writes() {
    "$python" - "$uri" <<'P'
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.set_strict_mode(0)
for name, call in {
        "write": lambda: h.pwrite(b"x" * 512, 0),
        "trim": lambda: h.trim(4096, 0),
        "zero": lambda: h.zero(4096, 0),
        "FUA": lambda: h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA)}.items():
    try:
        call()
        sys.exit(f"the server accepted: {name}")
    except nbd.Error as error:
        assert error.errnum in (errno.EPERM, errno.EROFS), error
h.flush()
h.cache(4096, 0)
assert h.pread(512, 0) == bytes(512)
h.shutdown()
P
}
# one_line REASON: one line of the log gives the reason why the image is read-only, also when
# several clients connect.
one_line() {
    nbdinfo --size "$uri" >/dev/null
    [ "$(grep -c 'served read-only' "$log")" = 1 ] &&
        grep -q "error: .*: served read-only: $1" "$log" ||
        fail_with "$log" "not exactly one line that gives the reason '$1'"
}

make_loop "$dir/loop.img"
device=$loop
node=$(cat "/sys/block/${device#/dev/}/dev")
for cache in default none; do
    server "a file, cache=$cache" disk.img cache=$cache
    told "${writable[@]}" 'description="file, 4194304 bytes"' \
        is_rotational="$(rotational_of "$(stat -c %Hd:%Ld disk.img)")"
    preferred_is_sane "$(stat -c %o disk.img)"
    stop
    for rotational in 0 1; do
        echo $rotational >"/sys/block/${device#/dev/}/queue/rotational"
        server "a block device, cache=$cache, rotational=$rotational" "$device" cache=$cache
        told "${writable[@]}" 'description="block device, 4194304 bytes"' \
            is_rotational="$(rotational_of "$node")"
        preferred_is_sane 512
        stop
    done
    server "a file with -r, cache=$cache" -r disk.img cache=$cache
    told "${readonly[@]}" 'description="file, 4194304 bytes, read-only"'
    ! grep -q 'served read-only' "$log" ||
        fail_with "$log" "a line gives a reason although the user asked for -r"
    takes_no_writes
    stop
done
grep -q 1 "/sys/block/${device#/dev/}/queue/rotational" ||
    fail "the kernel does not let a loop device be rotational"

server "a block device with -r" -r "$device"
told "${readonly[@]}"
takes_no_writes
stop

make_loop "$dir/loop.img" -r
for cache in default none; do
    server "a read-only block device (BLKROGET), cache=$cache" "$loop" cache=$cache
    told "${readonly[@]}" 'description="block device, 4194304 bytes, read-only"'
    takes_no_writes
    one_line "the block device is read-only"
    stop
done

truncate -s 4M 4k.img
make_loop "$dir/4k.img" -b 4096
server "a block device with sectors of 4096 bytes" "$loop" cache=none
told "${writable[@]}"
preferred_is_sane 4096
stop

make_fs tmpfs 8M
truncate -s 4M "$mnt/disk.img"
server "a file on a tmpfs, which has no disk" "$mnt/disk.img"
told "${writable[@]}" is_rotational=false
stop
mount -o remount,ro "$mnt"
server "a file on a read-only filesystem" "$mnt/disk.img"
told "${readonly[@]}"
takes_no_writes
one_line "Read-only file system"
stop

make_fs ext4 16M
truncate -s 4M "$mnt/disk.img"
chattr +i "$mnt/disk.img"
server "an immutable file" "$mnt/disk.img"
told "${readonly[@]}"
takes_no_writes
one_line "Operation not permitted"
stop

chmod 777 "$dir"
chmod 444 disk.img
cp "$plugin" plugin.so
installed=$plugin plugin=$dir/plugin.so
nbdkit=(setpriv --reuid=nobody --clear-groups nbdkit)
server "a file that the user of nbdkit may not write to" disk.img
told "${readonly[@]}"
takes_no_writes
one_line "Permission denied"
stop
unset nbdkit
plugin=$installed

say "--dump-plugin"
nbdkit --dump-plugin "$plugin" >dump 2>err
[ ! -s err ] || fail_with err "--dump-plugin prints errors"
for line in aiodisk_max_threads=64 aiodisk_min_threads=0 aiodisk_queue_depth=128 \
    'aiodisk_cache=default none' 'aiodisk_direct=off on' 'aiodisk_dispatch=auto pool' \
    'aiodisk_locking=auto on off' 'aiodisk_symlinks=inside anywhere none' \
    'aiodisk_fadvise=normal random sequential' 'aiodisk_discard=unmap ignore' \
    'aiodisk_detect_zeroes=off on unmap' \
    magic_config_key=file thread_model=parallel name=aiodisk; do
    grep -qx "$line" dump || fail_with dump "no line $line"
done
# The backends that are compiled in and that the kernel permits, found out without the plugin.
expected=$(ldd "$plugin" | "$python" -c '
import ctypes, platform, sys
libraries = sys.stdin.read()
libc = ctypes.CDLL(None)
memory = ctypes.create_string_buffer(256)
io_setup = 206 if platform.machine() == "x86_64" else 0
names = ["threads"]
if "liburing" in libraries and libc.syscall(425, 1, memory) >= 0:
    names.append("io_uring")
if "libaio" in libraries and libc.syscall(io_setup, 1, ctypes.create_string_buffer(8)) == 0:
    names.append("libaio")
print(" ".join(names))')
grep -qx "aiodisk_backends=$expected" dump ||
    fail_with dump "expected aiodisk_backends=$expected"
for backend in threads io_uring libaio; do
    status=0
    nbdkit -U - "$plugin" loop.img backend=$backend --run true 2>err || status=$?
    case " $expected " in
    *" $backend "*)
        [ $status = 0 ] || fail_with err "backend=$backend is listed and does not start"
        ;;
    *) [ $status = 1 ] || fail_with err "backend=$backend is not listed, and status $status" ;;
    esac
done
echo "backends: $expected"
