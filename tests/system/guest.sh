#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A real guest: QEMU boots Linux with the plugin's disk as its drive.  The guest makes an ext4
# filesystem, writes, trims and loses its power.  It boots again and finds all synced data.  Outside
# of the guest, the filesystem is clean, the data are there, and the trimmed blocks are deallocated.
#
# guest.sh file|rbd PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/tests/lib/guest.sh"
need_guest

# --- The guest's initrd: see .ci/guest ---

root=$dir/root
make_guest_root "$root"
cat >"$root/init" <<'I'
#!/bin/busybox sh
. /start
if $b grep -q phase=1 /proc/cmdline; then
    /bin/mke2fs -q -F -t ext4 /dev/vda && $b mount -t ext4 /dev/vda /mnt &&
        $b dd if=/dev/urandom of=/mnt/large bs=1M count=40 2>/dev/null &&
        $b dd if=/dev/urandom of=/mnt/kept bs=4099 count=2000 2>/dev/null &&
        $b sync && $b rm /mnt/large && $b sync && $b fstrim -v /mnt &&
        (cd /mnt && $b sha256sum kept >sums && $b cat sums) && $b sync && echo PHASE-1-DONE
    $b dd if=/dev/urandom of=/mnt/never-synced bs=1M count=4 2>/dev/null
    # Power loss: an immediate reboot without a sync or an unmount.
    echo b >/proc/sysrq-trigger
else
    $b mount -t ext4 /dev/vda /mnt && (cd /mnt && $b sha256sum -c sums) && $b umount /mnt &&
        echo PHASE-2-DONE
    $b sync
    $b reboot -f
fi
$b sleep 60
I
pack_guest_root "$root" "$dir/initrd.gz"

# boot PHASE: runs the guest to its end.
boot() {
    timeout 100 "${machine[@]}" -kernel "$kernel" -initrd "$dir/initrd.gz" \
        -append "$kernel_parameters phase=$1" \
        -drive "driver=nbd,server.type=unix,server.path=$socket,if=virtio,discard=unmap" \
        </dev/null >"$dir/console.$1" 2>&1 ||
        fail_with "$dir/console.$1" "QEMU failed, or the guest took more than 100 s"
    grep -q "PHASE-$1-DONE" "$dir/console.$1" ||
        fail_with "$dir/console.$1" "the guest did not complete phase $1"
}

# allocated: prints how many bytes of the disk are allocated.
allocated() {
    if [ "$kind" = rbd ]; then
        rbd diff --format json rbd/target | jq '[.[].length] | add'
    else
        echo $(($(stat -c %b "$target") * 512))
    fi
}

kind=$1
shift
make_target "$kind" 256M
start guest "$target" "$@"
say "the guest makes a filesystem, writes, trims and loses its power"
boot 1
stop
bytes=$(allocated)
say "$bytes bytes are allocated"
[ "$bytes" -lt $((40 << 20)) ] || fail "fstrim deallocated no blocks"
start guest "$target" "$@"
say "the guest boots again and checks its data"
boot 2
stop
disk=$target
if [ "$kind" = rbd ]; then
    disk=$dir/exported.img
    rbd export --no-progress rbd/target "$disk"
fi
e2fsck -fn "$disk" || fail "the filesystem is not clean"
expected=$(grep -o '^[0-9a-f]\{64\}' "$dir/console.1")
found=$(debugfs -R 'cat /kept' "$disk" 2>/dev/null | sha256sum | cut -d' ' -f1)
[ "$found" = "$expected" ] || fail "the file in the image differs from the file in the guest"
