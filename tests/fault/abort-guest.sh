#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdkit aborts again and again under a running guest, and ./serve starts it again.  The guest,
# whose QEMU has reconnect-delay, writes files, syncs, drops its page cache and reads them back: it
# sees no I/O error and no wrong byte, and afterwards the filesystem is clean and has its files.
# Without reconnect-delay the guest sees errors: the control.
#
# abort-guest.sh ABORTS PARAMETERS...    PARAMETERS: --cache=none and the like
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/tests/lib/guest.sh"
: "${AIODISK_BUILD:?is not set: run the test through meson test, or set it to the build directory}"
aborts=$1
shift
need_guest debugfs
ulimit -c 0
mkdir "$dir/run"
export XDG_RUNTIME_DIR=$dir/run
serve='' guest=''
before_cleanup() {
    local file
    [ -z "$serve" ] || kill -9 "$serve" 2>/dev/null
    for file in "$dir"/run/aiodisk.*/pid; do
        [ ! -s "$file" ] || kill -9 "$(cat "$file")" 2>/dev/null
    done
}

make_guest_root "$dir/root"
cat >"$dir/root/init" <<'I'
#!/bin/busybox sh
. /start
($b head -n 1 </dev/ttyS0 >/dev/null; : >/stop) &
i=0 well=1
/bin/mke2fs -q -F -t ext4 /dev/vda && $b mount -t ext4 /dev/vda /mnt && cd /mnt || well=0
until [ -e /stop ] || [ $well = 0 ]; do
    i=$((i + 1)) file=file$((i % 8))
    $b dd if=/dev/urandom of=$file bs=16k count=24 2>/dev/null && $b sync &&
        $b sha256sum file* >/sums && $b sync &&
        echo 3 >/proc/sys/vm/drop_caches && $b sha256sum -c -s /sums && echo ROUND-$i || well=0
done
$b cat /sums
cd / && $b umount /mnt || well=0
$b dmesg | $b grep -iE 'I/O error|EXT4-fs (error|warning)|lost .*page|aborted journal' && well=0
[ $well = 0 ] && echo THE-GUEST-SAW-ERRORS || echo THE-GUEST-IS-WELL
$b sync
$b reboot -f
I
pack_guest_root "$dir/root" "$dir/initrd.gz"
truncate -s 64M "$dir/disk.img"
mkfifo "$dir/keyboard"
exec {keyboard}<>"$dir/keyboard"

# server_pid: prints the process of nbdkit; fails while there is none.
server_pid() { cat "$dir"/run/aiodisk.*/pid 2>/dev/null | grep .; }
is_new() {
    local now
    now=$(server_pid) && [ "$now" != "$1" ]
}
rounds() { grep -c '^ROUND-' "$dir/console" || true; }
beyond() { [ "$(rounds)" -gt "$1" ] || ended $guest; }

# session ABORTS DELAY PARAMETERS...: aborts under a guest; the console has what the guest says.
session() {
    local count=$1 delay=$2 i pid done_before
    shift 2
    "$source_root/serve" --stock --socket "$dir/serve.sock" "$dir/disk.img" "$@" \
        >"$dir/serve.log" 2>&1 &
    serve=$!
    wait_for 100 grep -qs "Ctrl-C stops" "$dir/serve.log"
    timeout 1500 "${machine[@]}" -kernel "$kernel" -initrd "$dir/initrd.gz" \
        -append "$kernel_parameters" \
        -blockdev "driver=nbd,node-name=n,server.type=unix,server.path=$dir/serve.sock,$delay" \
        -device virtio-blk-pci,drive=n <&$keyboard >"$dir/console" 2>&1 &
    guest=$!
    pids+=($guest)
    wait_for 400 beyond 2
    for ((i = 1; i <= count; i++)); do
        # A random moment; ./serve gives up after 5 aborts in 10 s.
        sleep "$(printf '2.%03d' $((600 + RANDOM % 400)))"
        pid=$(server_pid)
        done_before=$(rounds)
        kill -ABRT "$pid"
        wait_for 20 is_new "$pid"
        wait_for 400 beyond $((done_before + 1)) # a whole round after the abort
        ! ended $guest || break
    done
    echo stop >&$keyboard
    wait $guest || fail_with "$dir/console" "QEMU failed, or the guest took more than 1500 s"
    kill $serve
    wait $serve || fail_with "$dir/serve.log" "./serve ended with status $?"
    serve=''
    tr -d '\r' <"$dir/console" >"$dir/said"
}

say "control: QEMU does not wait for the server"
session 1 reconnect-delay=0 "$@"
grep -qx THE-GUEST-SAW-ERRORS "$dir/said" && grep -q 'I/O error' "$dir/said" ||
    fail_with "$dir/said" "the guest has noticed nothing"

say "$aborts aborts${*:+, $*}"
truncate -s 0 "$dir/disk.img"
truncate -s 64M "$dir/disk.img"
session "$aborts" reconnect-delay=60 "$@"
grep -qx THE-GUEST-IS-WELL "$dir/said" || fail_with "$dir/said" "the guest saw errors"
[ "$(grep -c 'nbdkit aborted; starting' "$dir/serve.log")" = "$aborts" ] ||
    fail_with "$dir/serve.log" "another number of aborts"
e2fsck -fn "$dir/disk.img" >"$dir/fsck" 2>&1 || fail_with "$dir/fsck" "the filesystem is not clean"
files=0
while read -r sum file; do
    found=$(debugfs -R "cat /$file" "$dir/disk.img" 2>/dev/null | sha256sum | cut -d' ' -f1)
    [ "$found" = "$sum" ] || fail "$file in the image differs from the file in the guest"
    files=$((files + 1))
done < <(grep -E '^[0-9a-f]{64}  file' "$dir/said")
[ $files = 8 ] || fail_with "$dir/said" "$files files"
say "$(rounds) rounds of the guest, no error; the image has its 8 files"
