#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The firmware of a machine (QEMU's SeaBIOS) boots from the plugin's disk: boot loader, kernel and
# initrd come from the disk alone.  Then the guest reads the whole disk, writes to its end, and
# syncs.  The disk was copied in through the server, and its content is compared outside.
#
# guest-boot.sh file|rbd PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/tests/lib/guest.sh"
need_guest syslinux mformat

root=$dir/root
make_guest_root "$root"
cat >"$root/init" <<'I'
#!/bin/busybox sh
. /start
echo "DISK $($b sha256sum /dev/vda)"
$b dd if=/proc/version of=/dev/vda bs=512 seek=131071 conv=sync,fsync 2>/dev/null && echo WRITTEN
$b reboot -f
I
pack_guest_root "$root" "$dir/initrd.gz"

say "a disk with a FAT filesystem, syslinux, the kernel and the initrd"
disk=$dir/boot.img
truncate -s 64M "$disk"
mformat -i "$disk" -T 131072 -h 16 -s 63 ::
syslinux --install "$disk"
cat >"$dir/syslinux.cfg" <<C
DEFAULT linux
LABEL linux
KERNEL vmlinuz
APPEND initrd=initrd.gz $kernel_parameters
C
mcopy -i "$disk" "$kernel" ::vmlinuz
mcopy -i "$disk" "$dir/initrd.gz" "$dir/syslinux.cfg" ::

kind=$1
shift
make_target "$kind" 64M
start server "$target" "$@"
nbdcopy --flush "$disk" "$uri"

say "the firmware boots from it"
timeout 100 "${machine[@]}" \
    -drive "driver=nbd,server.type=unix,server.path=$socket,if=virtio" </dev/null \
    >"$dir/console" 2>&1 ||
    fail_with "$dir/console" "QEMU failed, or the guest took more than 100 s"
sum=$(sha256sum <"$disk")
grep -q "DISK ${sum%% *}" "$dir/console" || fail_with "$dir/console" "the guest read another disk"
grep -q "^WRITTEN" "$dir/console" || fail_with "$dir/console" "the guest could not write"
nbdcopy "$uri" "$dir/after.img"
cmp -n $((131071 * 512)) "$disk" "$dir/after.img" || fail "the disk has changed"
tail -c 512 "$dir/after.img" | grep -aq "^Linux version" || fail "what the guest wrote is not there"
stop
