#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A real guest: QEMU boots Linux with the plugin's disk as its drive.  The guest makes an ext4
# filesystem, writes, trims and loses its power.  It boots again and finds all synced data.  Outside
# of the guest, the filesystem is clean, the data are there, and the trimmed blocks are deallocated.
#
# guest.sh PARAMETERS...
#
# AIODISK_GUEST_KERNEL names a folder with an unpacked linux-image package, which ./check fetches.
. "$(dirname "$0")/../lib/functions.sh"
kernels=("${AIODISK_GUEST_KERNEL:-}"/boot/vmlinuz-*)
[ -f "${kernels[0]}" ] || skip "no kernel for a guest: ./check fetches one"
version=${kernels[0]##*/vmlinuz-}
drivers=$AIODISK_GUEST_KERNEL/lib/modules/$version/kernel/drivers
for program in qemu-system-x86_64 busybox cpio depmod; do
    command -v $program >/dev/null || skip "$program is not installed"
done

# --- The guest's initrd: busybox, the virtio modules, mke2fs with its libraries, and a script ---

root=$dir/root
mkdir -p "$root"/{bin,proc,sys,dev,mnt,lib/modules/$version}
cp "$(command -v busybox)" "$root/bin/busybox"
for library in $(ldd "$(command -v mke2fs)" | grep -o '/[^ ]*'); do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cp "$(command -v mke2fs)" "$root/bin/"
cp "$drivers"/virtio/virtio{,_ring,_pci,_pci_legacy_dev,_pci_modern_dev}.ko \
    "$drivers/block/virtio_blk.ko" "$root/lib/modules/$version/"
# depmod warns if these files are missing.
touch "$root/lib/modules/$version"/modules.{order,builtin,builtin.modinfo}
depmod -b "$root" "$version"
cat >"$root/init" <<'I'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b modprobe virtio_pci
$b modprobe virtio_blk
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] || $b sleep 0.1; done
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
chmod 755 "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$dir/initrd.gz"

# boot PHASE: runs the guest to its end.
boot() {
    timeout 100 qemu-system-x86_64 -accel tcg -m 256 -nographic -no-reboot -nodefaults \
        -serial stdio -kernel "${kernels[0]}" -initrd "$dir/initrd.gz" \
        -append "console=ttyS0 quiet panic=-1 phase=$1" \
        -drive "driver=nbd,server.type=unix,server.path=$socket,if=virtio,discard=unmap" \
        </dev/null >"$dir/console.$1" 2>&1 ||
        fail_with "$dir/console.$1" "QEMU failed, or the guest took more than 100 s"
    grep -q "PHASE-$1-DONE" "$dir/console.$1" ||
        fail_with "$dir/console.$1" "the guest did not complete phase $1"
}

disk=$dir/disk.img
truncate -s 256M "$disk"
start guest "$disk" "$@"
say "the guest makes a filesystem, writes, trims and loses its power"
boot 1
stop
allocated=$(($(stat -c %b "$disk") * 512))
say "$allocated bytes are allocated"
[ $allocated -lt $((40 << 20)) ] || fail "fstrim deallocated no blocks"
start guest "$disk" "$@"
say "the guest boots again and checks its data"
boot 2
stop
e2fsck -fn "$disk" || fail "the filesystem is not clean"
expected=$(grep -o '^[0-9a-f]\{64\}' "$dir/console.1")
found=$(debugfs -R 'cat /kept' "$disk" 2>/dev/null | sha256sum | cut -d' ' -f1)
[ "$found" = "$expected" ] || fail "the file in the image differs from the file in the guest"
