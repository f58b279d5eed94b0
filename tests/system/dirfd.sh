#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# dirfd=: the files in a directory that the parent process has opened are the exports, as with dir=,
# also where the server cannot reach the directory by a path.  Other descriptors are refused before
# a client connects.  dir.sh checks every export of a directory, with dirfd= too.
. "$(dirname "$0")/../lib/functions.sh"
cd "$dir"
mkdir exports
truncate -s 1M exports/one
truncate -s 2M exports/two
ln -s ../exports/two exports/link

names() { timeout 20 nbdinfo --list --json "$uri" | jq -r '.exports[]."export-name"' | sort |
    paste -sd' '; }
# serves SIZE EXPORT: the selected server serves the export, which has this size.
serves() {
    local export="nbd+unix:///$2?socket=$socket"
    [ "$(timeout 20 nbdinfo --size "$export")" = "$1" ] || fail_with "$log" "$2 is not served"
}

say "dirfd= serves what is in the directory, again and again"
start server dirfd=7 7<exports
for _ in 1 2 3; do [ "$(names)" = "one two" ] || fail "listed: $(names)"; done
serves $((1 << 20)) one
qemu-io -f raw -c 'write -P 5 0 4k' -c flush "nbd+unix:///two?socket=$socket" >out ||
    fail_with out "qemu-io failed"
cmp -n 4096 exports/two <(head -c 4k /dev/zero | tr '\0' '\5') || fail "the file has other data"
say "two clients list the exports at the same time"
"$python" - "$socket" <<'P'
import sys, threading
import nbd

errors = []


def list_them():
    for _ in range(50):
        h = nbd.NBD()
        h.set_opt_mode(True)
        h.connect_unix(sys.argv[1])
        found = []
        h.opt_list(lambda name, description: found.append(name))
        h.opt_abort()
        if sorted(found) != ["one", "two"]:
            errors.append(found)


threads = [threading.Thread(target=list_them) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
P
say "the directory is renamed, and a file comes"
mv exports moved
truncate -s 3M moved/three
[ "$(names)" = "one three two" ] || fail "listed: $(names)"
serves $((3 << 20)) three
stop
mv moved exports

say "symlinks=anywhere, in the background, where nbdkit changes to /"
nbdkit -U "$dir/background.sock" -P background.pid "$plugin" dirfd=7 symlinks=anywhere 7<exports
wait_for 20 test -s background.pid
select_server background "$(cat background.pid)"
pids+=("$pid")
log=/dev/null
[ "$(names)" = "link one three two" ] || fail "listed: $(names)"
serves $((2 << 20)) link
kill "$pid"

say "a descriptor that was opened with O_PATH"
"$python" - "$plugin" exports >out 2>err <<'P' || fail_with err "O_PATH"
import os, subprocess, sys
fd = os.open(sys.argv[2], os.O_PATH)
subprocess.run(["nbdkit", "-U", "-", sys.argv[1], f"dirfd={fd}", "--run", 'nbdinfo --list "$uri"'],
               pass_fds=[fd], check=True)
P
grep -q 'export="one"' out || fail_with out "O_PATH: no export"

say "descriptors that are no directory are refused"
refused 'dirfd=77: cannot be read as a directory: Bad file descriptor' dirfd=77
refused 'dirfd=7: cannot be read as a directory: Not a directory' dirfd=7 7<exports/one
refused 'dirfd=1: out of range' dirfd=1
refused 'dirfd=exports: not a number' dirfd=exports
refused 'only one of file=, dir=, fd=, dirfd=' dirfd=7 dir=exports 7<exports
refused 'only one of file=, dir=, fd=, dirfd=' fd=8 dirfd=7 7<exports 8<exports/one
refused 'fd=7: is a directory' fd=7 7<exports

need_root "another user"
say "a directory that the server's user cannot reach by its path"
mkdir -m 700 closed
mkdir -m 755 closed/exports
truncate -s 4M closed/exports/four
truncate -s 4M closed/exports/locked
chmod 666 closed/exports/four
chmod 0 closed/exports/locked
chmod 777 "$dir"
cp "$plugin" plugin.so
plugin=$dir/plugin.so
nbdkit=(setpriv --reuid=nobody --clear-groups nbdkit)
start nobody dirfd=7 7<closed/exports
serves $((4 << 20)) four
qemu-io -f raw -c 'write -P 5 0 4k' -c flush "nbd+unix:///four?socket=$socket" >out ||
    fail_with out "qemu-io failed"
! nbdinfo "nbd+unix:///locked?socket=$socket" 2>out || fail "a file without rights is served"
stop
unset nbdkit
say "a directory that the server's user may not search"
chmod 744 closed/exports
status=0
setpriv --reuid=nobody --clear-groups nbdkit -f -U - ./plugin.so dirfd=7 --run true \
    7<closed/exports 2>err || status=$?
[ $status = 1 ] && [ "$(grep -c . err)" = 1 ] &&
    grep -q "dirfd=7: cannot be read .*user $(id -u nobody).*mode 0744" err ||
    fail_with err "status $status"
