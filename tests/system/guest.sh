#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A real guest: QEMU boots Linux with our disk as its drive, makes an ext4, writes, trims and loses its power; boots again
# and finds everything that it had synced.  From outside the filesystem is clean, the data are there, and what was trimmed
# is given back.
# guest.sh PARAMETERS...   AIODISK_GUEST_KERNEL: a directory with an unpacked linux-image package, which ./check fetches.
. "$(dirname "$0")/../lib/functions.sh"
kernels=("${AIODISK_GUEST_KERNEL:-}"/boot/vmlinuz-*)
[ -f "${kernels[0]}" ] || skip "no kernel for a guest: ./check fetches one"
version=${kernels[0]##*/vmlinuz-}
drivers=$AIODISK_GUEST_KERNEL/lib/modules/$version/kernel/drivers
for program in qemu-system-x86_64 busybox cpio depmod; do
    command -v $program >/dev/null || skip "$program is not installed"
done

# --- The guest: busybox, the virtio modules, mke2fs with its libraries, and what it does ---

root=$dir/root
mkdir -p "$root"/{bin,proc,sys,dev,mnt,lib/modules/$version}
cp "$(command -v busybox)" "$root/bin/busybox"
for library in $(ldd "$(command -v mke2fs)" | grep -o '/[^ ]*'); do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cp "$(command -v mke2fs)" "$root/bin/"
cp "$drivers"/virtio/virtio{,_ring,_pci,_pci_legacy_dev,_pci_modern_dev}.ko "$drivers/block/virtio_blk.ko" \
    "$root/lib/modules/$version/"
touch "$root/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} # depmod warns of their absence
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
    # The plug is pulled: nothing is unmounted or synced.
    echo b >/proc/sysrq-trigger
else
    $b mount -t ext4 /dev/vda /mnt && (cd /mnt && $b sha256sum -c sums) && $b umount /mnt && echo PHASE-2-DONE
    $b sync
    $b reboot -f
fi
$b sleep 60
I
chmod 755 "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$dir/initrd.gz"

# boot PHASE: until the guest has ended.
boot() {
    timeout 100 qemu-system-x86_64 -accel tcg -m 256 -nographic -no-reboot -nodefaults -serial stdio \
        -kernel "${kernels[0]}" -initrd "$dir/initrd.gz" -append "console=ttyS0 quiet panic=-1 phase=$1" \
        -drive "driver=nbd,server.type=unix,server.path=$dir/guest.sock,if=virtio,discard=unmap" \
        </dev/null >"$dir/console.$1" 2>&1 || { cat "$dir/console.$1"; fail "QEMU ended badly"; }
    grep -q "PHASE-$1-DONE" "$dir/console.$1" || { cat "$dir/console.$1"; fail "the guest did not get through phase $1"; }
}

disk=$dir/disk.img
truncate -s 256M "$disk"
start guest "$disk" "$@"
say "the guest makes a filesystem, writes, trims and loses its power"
boot 1
stop
allocated=$(($(stat -c %b "$disk") * 512))
say "$allocated bytes are allocated"
[ $allocated -lt $((40 << 20)) ] || fail "fstrim gave nothing back"
start guest "$disk" "$@"
say "it boots again"
boot 2
stop
e2fsck -fn "$disk" || fail "the filesystem is not clean"
expected=$(grep -o '^[0-9a-f]\{64\}' "$dir/console.1")
[ "$(debugfs -R 'cat /kept' "$disk" 2>/dev/null | sha256sum | cut -d' ' -f1)" = "$expected" ] || fail "not the same data"
