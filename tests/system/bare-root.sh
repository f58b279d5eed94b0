#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# On a bare Debian, ./serve and ./check --quick install all that they need, and succeed.
#
# bare-root.sh RELEASE [ROOT]
#
# The test makes a bare root with debootstrap, from the mirror that this machine's apt uses, or
# copies an existing bare ROOT.  ./serve and ./check each run in a fresh copy, in mount and PID
# namespaces of their own, so that no mount and no process remains.
. "$(dirname "$0")/../lib/functions.sh"
release=$1
bare=${2:-}
need_root "a chroot"

# debian_mirror: prints the address from which apt gets Debian's own packages.
debian_mirror() {
    # shellcheck disable=SC2016 # apt-get expands these words
    local format='$(ORIGIN) $(COMPONENT) $(RELEASE) $(SITE)'
    apt-get indextargets --format "$format" 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 == "main" && $3 !~ /-/ { print $NF; exit }'
}

if [ -z "$bare" ]; then
    command -v debootstrap >/dev/null || skip "debootstrap is not installed"
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || skip "the apt configuration of this machine names no Debian mirror"
    bare=$dir/bare
    say "debootstrap $release"
    debootstrap --variant=minbase "$release" "$bare" "$mirror" >"$dir/debootstrap.log" 2>&1 ||
        fail_with "$dir/debootstrap.log" "debootstrap failed"
    # The mirror may need the options of this machine, such as a proxy.
    apt-config dump | grep -E '^Acquire::(https?::|Check-|Allow)' \
        >"$bare/etc/apt/apt.conf.d/90aiodisk-test" || true
fi

# in_root COMMAND: runs the shell command in the root, in the copy of the source tree.
in_root() {
    unshare --mount --propagation private --pid --fork --kill-child /bin/bash -ec '
        root=$1
        mount --bind "$root" "$root"
        mount --rbind /dev "$root/dev"
        mount --rbind /sys "$root/sys"
        mount -t proc proc "$root/proc"
        # Not chroot: the systemd of service.sh needs a root that is the root of its mounts.
        cd "$root"
        pivot_root . mnt
        umount -l /mnt
        cd /aiodisk
        exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
            LANG=C.UTF-8 /bin/bash -c "$2"' in-root "$root" "$1"
}

# fresh_root NAME: makes a copy of the bare root with the source tree in it; sets $root.
fresh_root() {
    root=$dir/$1
    cp -a "$bare" "$root"
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    mkdir "$root/aiodisk"
    tar -C "$source_root" --exclude='./build*' --exclude=./.git --exclude='*.img' -cf - . |
        tar -C "$root/aiodisk" -xf -
}

say "./serve on a bare $release"
fresh_root serve
truncate -s 4M "$root/disk.img"
cat >"$root/smoke" <<'S'
set -eu
./serve /disk.img --socket /nbd.sock >/serve.out 2>/serve.err &
serve=$!
until grep -q "^Ctrl-C" /serve.out; do
    kill -0 $serve || { cat /serve.err; exit 1; }
    sleep 0.2
done
head -c 1000000 /dev/urandom >/in
nbdcopy --flush /in "nbd+unix:///?socket=/nbd.sock"
nbdcopy "nbd+unix:///?socket=/nbd.sock" /out
cmp -n 1000000 /in /out
cmp -n 1000000 /in /disk.img
kill -TERM $serve
wait $serve
grep -q "serve: stopped" /serve.err
S
in_root "bash /smoke" >"$dir/smoke.log" 2>&1 || fail_with "$dir/smoke.log" "./serve"
rm -rf --one-file-system "$root"

say "./check --quick on a bare $release"
fresh_root check
status=0
in_root "./check --quick" >"$dir/check.log" 2>&1 || status=$?
# The indentation keeps these counts apart from the counts of the run that this test belongs to.
grep -E '^(skipped|FAILED): |^[0-9]+ passed' "$dir/check.log" | sed 's/^/   /' || true
[ $status = 0 ] || fail_with "$dir/check.log" "./check --quick ended with status $status"
grep -qE '^[1-9][0-9]* passed, 0 failed, [0-9]+ skipped$' "$dir/check.log" ||
    fail_with "$dir/check.log" "no line with the counts"
[ "$release" = trixie ] || exit 0

say "nbdkit's own abort does not happen on $release"
cat >"$root/newer" <<'S'
set -eu
export AIODISK_BUILD=$PWD/build-check
export AIODISK_PLUGIN=$AIODISK_BUILD/plugin/nbdkit-aiodisk-plugin.so
export AIODISK_CONFORMANCE=$AIODISK_BUILD/tests/conformance/conformance
nbdkit --version
tests/fault/abort.sh 2
tests/conformance/hostile.sh 10 - cache=default
tests/conformance/conformance.sh threads none auto ext4
S
in_root "bash /newer" >"$dir/newer.log" 2>&1 || fail_with "$dir/newer.log" "failed on $release"
grep -q "own in 0 of 2 rounds" "$dir/newer.log" && grep -q "own abort: 0 times" "$dir/newer.log" ||
    fail_with "$dir/newer.log" "nbdkit aborted"
