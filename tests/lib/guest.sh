# SPDX-License-Identifier: BSD-3-Clause
# A guest for one shell test: QEMU without KVM, Debian's kernel, and an initrd by .ci/guest.
#
# AIODISK_GUEST_KERNEL names a folder with an unpacked linux-image package, which ./check fetches.
# A test sources this file after functions.sh.
. "$source_root/.ci/guest"

# need_guest PROGRAMS...: sets $kernel and $modules; skips the test without a kernel, or without
# what a guest needs and these programs.
need_guest() {
    local program
    for program in qemu-system-x86_64 busybox cpio depmod "$@"; do
        command -v "$program" >/dev/null || skip "$program is not installed"
    done
    find_guest_kernel "${AIODISK_GUEST_KERNEL:-}" ||
        skip "no kernel for a guest: ./check fetches one"
}

# The machine, without its disk; the parameters of its kernel.
machine=(qemu-system-x86_64 -accel tcg -m 256 -nographic -no-reboot -nodefaults -serial stdio)
kernel_parameters="console=ttyS0 quiet panic=-1 no_timer_check"
