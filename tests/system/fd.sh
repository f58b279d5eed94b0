#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images that are named by an inherited descriptor, by a relative path, or by a name that looks like
# an option or a parameter.
. "$(dirname "$0")/../lib/functions.sh"
cd "$dir"

# writable FILE: the selected server reads and writes this file.
writable() {
    local mark=$((RANDOM % 255 + 1))
    nbdinfo --json "$uri" >info || fail "nobody can connect: $(cat "$log")"
    [ "$(jq '.exports[0].is_read_only' info)" = false ] ||
        fail "$1 is served read-only: $(cat "$log")"
    [ "$(jq '.exports[0]."export-size"' info)" = "$(stat -Lc %s "$1")" ] ||
        fail_with info "$1: wrong size"
    qemu-io -f raw -c "write -P $mark 1000 5000" -c "read -P $mark 1000 5000" -c flush "$uri" \
        >out || fail_with out "$1: qemu-io failed"
    cmp <(head -c 6000 "$1" | tail -c 5000) \
        <(head -c 5000 /dev/zero | tr '\0' "\\$(printf %o $mark)") ||
        fail "$1 does not have the data that qemu-io wrote"
}
# readonly_because FILE REASON [LINES]: the selected server reads the file and refuses writes, and
# LINES lines of the log, or 1, give the reason.
readonly_because() {
    [ "$(nbdinfo --json "$uri" | jq '.exports[0].is_read_only')" = true ] ||
        fail "$1 is not read-only"
    ! qemu-io -f raw -c 'write 0 512' "$uri" >out 2>&1 || fail "$1 was written to"
    nbdcopy "$uri" copy
    cmp copy "$1" || fail "a copy of $1 has other data"
    [ "$(grep -c 'served read-only' "$log")" = "$(grep -c "served read-only: $2" "$log")" ] &&
        [ "$(grep -c 'served read-only' "$log")" = "${3:-1}" ] ||
        fail_with "$log" "$1: not exactly ${3:-1} lines with the reason: $2"
}
# use_background NAME: selects a server that runs in the background.
use_background() {
    wait_for 20 test -s "$dir/$1.pid"
    select_server "$1" "$(cat "$dir/$1.pid")"
    pids+=("$pid")
    log=/dev/null
}
fresh() { head -c 1234567 /dev/urandom >"$1"; }

fresh disk.img
for cache in default none; do
    say "fd=, read and write, cache=$cache"
    start "rw-$cache" fd=7 cache=$cache 7<>disk.img
    writable disk.img
    # The descriptor serves another client, and two clients at once.
    "$python" - "$uri" <<'P'
import nbd, sys
h, h2 = nbd.NBD(), nbd.NBD()
h.connect_uri(sys.argv[1])
h2.connect_uri(sys.argv[1])
h2.pwrite(b"two", 0)
assert h.pread(3, 0) == b"two"
h.shutdown()
h2.shutdown()
P
    writable disk.img
    stop
done

if [ "$(id -u)" = 0 ]; then
    # The server runs as nobody and cannot open the file itself, so the descriptor's flags stay.
    # Writes through O_APPEND would go to the end; the page cache is impossible with O_DIRECT.
    say "a descriptor that root opened with O_APPEND or O_DIRECT, for a server without root"
    (umask 077 && fresh own.img)
    chmod 755 "$dir"
    cp "$plugin" plugin.so
    mkdir nobody && chmod 777 nobody
    # opened FLAG COMMAND...: runs the command with descriptor 7 open on own.img.
    opened() {
        "$python" -c 'import os, sys
fd = os.open("own.img", os.O_RDWR | getattr(os, sys.argv[1]))
os.dup2(fd, 7)
os.execvp("setpriv", ["setpriv", "--reuid=nobody", "--clear-groups", *sys.argv[2:]])' "$@"
    }
    before=$(checksum own.img)
    for cache in default none; do
        # shellcheck disable=SC2016 # nbdkit sets $uri
        opened O_APPEND timeout 20 nbdkit -f -U nobody/append-$cache ./plugin.so fd=7 \
            cache=$cache --run 'nbdinfo --json "$uri"' >info 2>err ||
            fail_with err "O_APPEND: not served"
        [ "$(jq '.exports[0].is_read_only' info)" = true ] &&
            grep -q 'fd=7: served read-only: .*O_APPEND' err ||
            fail_with err "O_APPEND: not read-only with that reason"
        # shellcheck disable=SC2016
        ! opened O_DIRECT timeout 20 nbdkit -f -U nobody/direct-$cache ./plugin.so fd=7 \
            cache=$cache --run 'nbdinfo "$uri"' >info 2>err || fail "O_DIRECT: served"
        grep -q 'fd=7: cannot be opened' err || fail_with err "O_DIRECT: no line gives the reason"
    done
    [ "$(checksum own.img)" = "$before" ] || fail "the file has changed"
fi

say "descriptors that bash also uses, and a high number"
exec 7<>disk.img {high}>&7
exec 200<>disk.img
start bash fd=7
writable disk.img
stop
start bash-high fd=200
writable disk.img
stop
exec 7>&- 200>&- {high}>&-

say "a descriptor whose file is deleted"
fresh gone.img
exec 7<>gone.img 8<gone.img
rm gone.img
start gone fd=7 cache=none
writable /proc/self/fd/8
stop
exec 7>&- 8>&-

say "in the background, where nbdkit forks and changes to /"
nbdkit -U "$dir/background.sock" -P background.pid "$plugin" fd=7 7<>disk.img
use_background background
writable disk.img
kill "$pid"

say "descriptors and servers that are read-only"
start ro fd=7 7<disk.img
readonly_because disk.img "the descriptor was opened for reading only"
stop
start ro-asked -r fd=7 7<>disk.img
readonly_because disk.img "" 0
stop

say "descriptors that are no image are refused"
refused 'fd=7: was opened for writing only' fd=7 7>>disk.img
refused 'fd=77: Bad file descriptor' fd=77
refused 'fd=7: is a directory' fd=7 7<"$dir"
refused 'fd=7: is a FIFO' fd=7 7< <(:)
refused 'fd=7: is a character device' fd=7 7<>/dev/null
refused 'fd=0: out of range' fd=0
refused 'fd=: not a number' fd=
refused 'fd=disk.img: not a number' fd=disk.img
refused 'only one of' fd=7 file=disk.img 7<>disk.img
"$python" - "$plugin" disk.img >out 2>&1 <<'P' || fail_with out "a descriptor with O_PATH"
import os, subprocess, sys
fd = os.open(sys.argv[2], os.O_PATH)
r = subprocess.run(["nbdkit", "-f", "-U", "-", sys.argv[1], f"fd={fd}", "--run", "true"],
                   pass_fds=[fd], stderr=subprocess.PIPE, text=True)
assert r.returncode == 1 and "was opened with O_PATH" in r.stderr and r.stderr.count("\n") == 1, r
P

say "a path that is relative to nbdkit's working directory, also in the background"
start relative file=disk.img
writable disk.img
stop
mkdir folder
(cd folder && nbdkit -U "$dir/below.sock" -P "$dir/below.pid" "$plugin" ../disk.img)
use_background below
writable disk.img
kill "$pid"

say "/proc/self/fd"
start proc /proc/self/fd/7 7<>disk.img
writable disk.img
stop

say "unusual names"
mkdir 'a folder'
for name in 'with space.img' 'größe-日本.img' $'new\nline.img' '%s%n.img' '-r' 'a=b.img' 'fd=7' \
    'a folder/x y=z?.img' "it's \"quoted\"\\.img"; do
    fresh "./$name"
    start name "file=$name"
    writable "./$name"
    stop
done
# Without file=, a word that contains = is a parameter, unless a slash precedes the =.
start slash "./a=b.img"
writable a=b.img
stop
start spaces 'with space.img'
writable 'with space.img'
stop
refused 'a=b.img: unknown parameter' a=b.img
refused 'with  spaces: cannot be opened: No such file' 'with  spaces'

need_root "another user"
say "a descriptor whose file the server's user may not open"
chmod 777 "$dir"
cp "$plugin" plugin.so
plugin=$dir/plugin.so
chmod 600 disk.img
nbdkit=(setpriv --reuid=nobody --clear-groups nbdkit)
for cache in default none; do
    start other-rw fd=7 cache=$cache 7<>disk.img
    writable disk.img
    stop
    start other-ro fd=7 cache=$cache 7<disk.img
    readonly_because disk.img "the descriptor was opened for reading only"
    stop
done
say "a path that the server's user may only read"
chmod 644 disk.img
start path disk.img
readonly_because disk.img "Permission denied"
stop
