#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Becomes a systemd that manages the units of a directory and nothing else.  systemd.sh runs it as
# process 1 of namespaces of its own (mount, PID, IPC, UTS, cgroup), so nothing else on the machine
# is affected:
#   /run and /var/lib are the directories run and lib of DIRECTORY;
#   /tmp and /var/tmp are empty but for DIRECTORY;
#   /etc and nbdkit's plugin directory are copies in which new files may appear;
#   /proc/sys is read-only.
#
#   systemd-root.sh DIRECTORY PLUGIN-DIRECTORY
set -euo pipefail
dir=$1 plugins=$2
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --rbind "$dir" /mnt
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
mkdir -p "$dir"
mount --move /mnt "$dir"
mount --bind "$dir/run" /run
mount --bind "$dir/lib" /var/lib
mount -t tmpfs tmpfs "$dir/overlay"
cd "$dir/overlay"
mkdir {etc,plugins}{,.work}
mount -t overlay -o lowerdir=/etc,upperdir=etc,workdir=etc.work overlay /etc
mount -t overlay -o "lowerdir=$plugins,upperdir=plugins,workdir=plugins.work" overlay "$plugins"
cd /
mount -t tmpfs tmpfs /sys/fs/cgroup # hides the hierarchies of this machine
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# The variable container makes systemd leave the hardware, the clock and the sysctls alone.
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=aiodisk-test \
    SYSTEMD_UNIT_PATH="$dir/units" \
    /lib/systemd/systemd --system --unit=test.target --log-target=null --show-status=no
