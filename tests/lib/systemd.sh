# SPDX-License-Identifier: BSD-3-Clause
# Runs the service units under a systemd of the test's own.  A test sources this file after
# functions.sh, calls prepare_units and start_systemd, and has the functions below.  The working
# directory is then $dir.
: "${AIODISK_BUILD:?is not set: run the test through meson test, or set it to the build directory}"
: "${AIODISK_CORKED:?is not set: run the test through meson test}"

# prepare_units: copies the units into $dir/units.
prepare_units() {
    command -v systemd-analyze systemd-socket-activate >/dev/null || skip "needs systemd"
    cd "$dir"
    mkdir units run lib overlay
    cp "$AIODISK_BUILD/plugin/service/aiodisk@.service" units
    cp "$source_root/plugin/service/aiodisk@.socket" units
}

# start_systemd: that systemd runs in namespaces and a cgroup of its own; see systemd-root.sh.  It
# has the user aiodisk, whose number is $user, the plugin, and the directory of the images.
start_systemd() {
    local target hierarchy plugins
    need_root "a systemd of its own"
    # Entering a mount namespace leaves a chroot, in which systemd cannot set up its sandbox.
    [ "$(nsenter --mount=/proc/self/ns/mnt stat -c %d:%i /)" = "$(stat -c %d:%i /)" ] ||
        skip "a chroot: systemd needs the root of the mount namespace"
    mount -t tmpfs tmpfs run # as /run is; from a real disk systemd removes nothing
    mounts+=("$dir/run")
    # Targets that the units name, without what a whole system would start for them.
    for target in test sysinit basic sockets shutdown local-fs remote-fs; do
        printf '[Unit]\nDefaultDependencies=no\n' >"units/$target.target"
    done
    mkdir "units/aiodisk@.service.d" # no journald runs here
    printf '[Service]\nStandardError=append:%s\n' "$dir/journal" \
        >"units/aiodisk@.service.d/journal.conf"
    hierarchy=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
    [ -n "$hierarchy" ] || skip "needs cgroup2"
    systemd_group=$hierarchy/${dir##*/}
    mkdir "$systemd_group"
    plugins=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')
    cat >enter.sh <<'S'
echo $$ >"$1/cgroup.procs"
exec unshare -C -m -p -i -u --fork --kill-child --propagation private bash "${@:2}"
S
    bash enter.sh "$systemd_group" "$source_root/tests/lib/systemd-root.sh" "$dir" "$plugins" \
        >console 2>&1 &
    systemd_parent=$!
    pids+=("$systemd_parent")
    wait_for 20 find_manager >/dev/null
    manager=$(find_manager)
    wait_for 20 manager_is_ready
    mkdir run/files
    cp "$source_root"/plugin/service/{aiodisk.sysusers,example.conf} run/files
    cp "$plugin" "$AIODISK_CORKED" run/files
    inside systemd-sysusers /run/files/aiodisk.sysusers || fail "systemd-sysusers"
    user=$(inside id -u aiodisk) || fail "systemd-sysusers has not made the user"
    # shellcheck disable=SC2016 # the inner shell expands $1
    inside sh -c 'mkdir /etc/aiodisk && cp /run/files/*.so "$1"' - "$plugins" ||
        fail "the plugin cannot be put in its place"
    mkdir lib/aiodisk
    chown "$user" lib/aiodisk
}
before_cleanup() {
    [ -n "${systemd_group:-}" ] || return
    end_processes
    # The processes in the group have been killed, and leave it soon.
    for _ in {1..100}; do
        find "$systemd_group" -depth -type d -exec rmdir {} + 2>/dev/null && break
        sleep 0.1
    done
}
find_manager() { pgrep -P "$systemd_parent" -x systemd; }
manager_is_ready() { inside systemctl is-active -q test.target 2>>console; }

# inside COMMAND...: runs the command where that systemd runs.
inside() { nsenter -t "$manager" -m -r -w/ -p -C env SYSTEMD_IGNORE_CHROOT=1 "$@"; }
# server_pid: prints the process of nbdkit, as seen from outside.
server_pid() { pgrep --ns "$manager" --nslist pid -x nbdkit; }

# config NAME ARGUMENTS: writes /etc/aiodisk/NAME.conf.
config() { echo "ARGUMENTS=$2" | inside tee "/etc/aiodisk/$1.conf" >/dev/null; }
# dropin NAME LINES...: adds lines to the section Service of the unit.
dropin() {
    mkdir -p "units/aiodisk@$1.service.d"
    printf '%s\n' '[Service]' "${@:2}" >"units/aiodisk@$1.service.d/test.conf"
    inside systemctl daemon-reload
}
# state NAME PROPERTY: prints a property of the service.
state() { inside systemctl show -P "$2" "aiodisk@$1.service"; }
# up NAME: starts the socket and selects it: $uri, $socket.
up() {
    inside systemctl start "aiodisk@$1.socket" || fail_with console "the socket does not start"
    socket=$dir/run/aiodisk/$1.sock uri="nbd+unix:///?socket=$dir/run/aiodisk/$1.sock"
}
down() {
    inside systemctl stop "aiodisk@$1.socket" "aiodisk@$1.service" || fail_with console "stop"
    [ "$(state "$1" Result)" = success ] || fail_with journal "the server failed"
}
# service_image NAME SIZE: makes an image that the user aiodisk may write.
service_image() {
    truncate -s "$2" "lib/aiodisk/$1"
    chown "$user" "lib/aiodisk/$1"
}
