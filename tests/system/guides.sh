#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Every command in README.md, plugin/GUIDES.md and the man pages works as it is printed, and does
# what the text says.  guides.py makes a script of each section, and says which commands are not run
# and why.  Each script runs in a sandbox, all at once: namespaces of its own for mounts, processes
# and the network, so /tmp, /run, /usr/local, nbdkit's plugins and all ports are private.
#
# guides.sh quick | slow | readme
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/.ci/guest"
need_root "namespaces"
[ -e /dev/fuse ] || skip "no /dev/fuse"
for program in virt-xml-validate psktool certtool busybox prometheus; do
    command -v $program >/dev/null || skip "$program is not installed"
done
[ "$1" = quick ] || find_guest_kernel "${AIODISK_GUEST_KERNEL:-}" ||
    skip "no kernel for a guest: ./check fetches one"
mkdir "$dir/scripts"
"$python" "$here/guides.py" "$source_root" "$1" "$dir/scripts" || fail "guides.py"

# A device for /dev/vg/guest.
make_target loop 16M
export LOOP=$loop
export source_root plugin dir PLUGINS=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')
unset AIODISK_GRACE
export build=${AIODISK_BUILD:-$source_root} TMPDIR='' # the programs use /tmp, which is private

# The first lines of each script.
cat >"$dir/prelude" <<'P'
set -e
until_true() {
    local - end=$((SECONDS + 300))
    set +x
    until "$@"; do
        [ $SECONDS -lt $end ] || { echo "the time limit expired while waiting for: $*"; return 1; }
        sleep 0.1
    done
}
# ready CONDITION: waits until the last command in the background is so far; it must not have ended.
ready() { until_true eval "$1 || ended_early"; ! ended_early; }
ended_early() { ! kill -0 $! 2>/dev/null; }
fails() { ! "$@" || { echo "succeeded: $*"; return 1; }; }
# connected PATH: a client is connected to this unix socket.
connected() { awk -v path="$1" '$6 == "03" && $8 == path { n++ } END { exit !n }' /proc/net/unix; }
connected_to_port() {
    awk -v port=":$(printf %04X "$1")$" '$2 ~ port && $4 == "01" { n++ } END { exit !n }' \
        /proc/net/tcp
}
# in_background COMMAND: runs it in a terminal of 100 columns; $log has the output.
in_background() {
    log=$logs/background.$((++background))
    echo "stty cols 100 rows 30; $1" >"$log.sh"
    TERM=xterm script -qfc "bash $log.sh" "$log" </dev/null >/dev/null 2>&1 &
}
# stop_it: ends the last command in the background, as a closed terminal does.
stop_it() {
    kill $!
    wait $! || true
}
# block NUMBER SECTION: a block of the document follows.
block() {
    out=$logs/block.$((++blocks))
    echo "$1, $2" >"$logs/current"
    exec >"$out" 2>&1
    set -x
}
check() { { set +x; } 2>/dev/null; exec >>"$logs/check" 2>&1; set -x; }
P

# The operating system of the guide that needs one: it tells of /dev/vdb on its console.
if [ "$1" = slow ]; then
    make_guest_root "$dir/root"
    cat >"$dir/root/init" <<'I'
#!/bin/busybox sh
. /start
echo "GUEST: ready"
until [ -b /dev/vdb ]; do $b sleep 0.1; done
echo "GUEST: vdb appeared"
while [ -b /dev/vdb ]; do $b sleep 0.1; done
echo "GUEST: vdb is gone"
$b sleep 1000
I
    pack_guest_root "$dir/root" "$dir/initrd.gz"
fi

# run_part NAME: runs the script in its sandbox.
run_part() {
    local own=$dir/parts/$1
    mkdir -p "$own"/{tmp,run,bin,plugins,local,work,logs}
    printf '#!/bin/sh\nexec "$@"\n' >"$own/bin/sudo"
    printf '#!/bin/sh\nexec %s -display none $GUEST "$@"\n' "$(command -v qemu-system-x86_64)" \
        >"$own/bin/qemu-system-x86_64"
    chmod +x "$own"/bin/*
    if [[ $1 = readme* ]]; then
        # A fresh clone, in which nothing is installed.
        for part in .ci serve fio-jobs meson.build meson_options.txt plugin backends pool tests; do
            cp -r "$source_root/$part" "$own/work"
        done
    else
        ln -s "$source_root/plugin/top/aiodisk-top" "$own/bin"
        ln -s "$source_root"/{fio-jobs,plugin} "$own/work"
        cp "$plugin" "${plugin%/*}/libnbdkit-corked.so" "$own/plugins"
    fi
    cat "$dir/prelude" "$dir/scripts/$1.sh" >"$own/script"
    local guest=''
    [[ $1 != *hotplug* ]] || guest="-kernel $kernel -initrd $dir/initrd.gz
        -append console=ttyS0 -serial file:/tmp/guest.log"
    # shellcheck disable=SC2016 # the shell in the namespaces expands the words
    GUEST=$guest PATH=$own/bin:$PATH own=$own logs=$own/logs timeout 800 \
        unshare --mount --propagation private --net --pid --fork --kill-child --mount-proc \
        bash -ec '
            busybox ip link set lo up
            cp -a "$PLUGINS/." "$own/plugins"
            mount --bind "$own/plugins" "$PLUGINS"
            # Below /usr/local the commands see what is there, and may change it.
            mount -t tmpfs aiodisk-test "$own/local"
            mkdir "$own/local/upper" "$own/local/work"
            mount -t overlay -o \
                "lowerdir=/usr/local,upperdir=$own/local/upper,workdir=$own/local/work" \
                aiodisk-test /usr/local
            # What the test needs stays where it is.
            for path in "$source_root" "$build" "$dir"; do
                [[ $path != /tmp/* && $path != /run/* ]] ||
                    { mkdir -p "$own$path"; mount --rbind "$path" "$own$path"; }
            done
            cd "$own/work"
            mount --rbind "$own/run" /run
            mount --rbind "$own/tmp" /tmp
            unset AIODISK_BUILD # it would direct ./serve to another directory
            exec bash "$own/script"' >"$own/log" 2>&1 </dev/null
}

parts=() running=()
for script in "$dir"/scripts/*.sh; do
    name=${script##*/}
    parts+=("${name%.sh}")
    run_part "${name%.sh}" &
    running+=($!)
    pids+=($!)
done
[ ${#parts[@]} -gt 0 ] || fail "no commands"
failed=()
for i in "${!parts[@]}"; do
    own=$dir/parts/${parts[i]}
    if wait "${running[i]}"; then
        say "${parts[i]}: $(wc -l <"$dir/scripts/${parts[i]}.sh") lines ran"
        continue
    fi
    failed+=("${parts[i]}")
    echo "== ${parts[i]}, block $(cat "$own/logs/current" 2>/dev/null)"
    tail -n 60 "$own"/log "$own"/logs/{block,check,background}* 2>/dev/null || true
done >&2
[ ${#failed[@]} = 0 ] || fail "commands of these sections failed: ${failed[*]}"
