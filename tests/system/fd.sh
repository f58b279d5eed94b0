#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images that come as an inherited descriptor, by a relative path, and by names that are easily taken for something else.
. "$(dirname "$0")/../lib/functions.sh"
cd "$dir"

# writable FILE: the server that was started last reads and writes this file.
writable() {
    local mark=$((RANDOM % 255 + 1))
    nbdinfo --json "$uri" >info || fail "nobody can connect: $(cat "$log")"
    [ "$(jq '.exports[0].is_read_only' info)" = false ] || fail "$1 is served read-only: $(cat "$log")"
    [ "$(jq '.exports[0]."export-size"' info)" = "$(stat -Lc %s "$1")" ] || fail "$1: wrong size: $(cat info)"
    qemu-io -f raw -c "write -P $mark 1000 5000" -c "read -P $mark 1000 5000" -c flush "$uri" >out ||
        { cat out; fail "$1: qemu-io"; }
    cmp <(head -c 6000 "$1" | tail -c 5000) <(head -c 5000 /dev/zero | tr '\0' "\\$(printf %o $mark)") ||
        fail "$1 does not have it"
}
# readonly FILE WHY: it reads it, lets nobody write, and has said why in one line.
readonly_because() {
    [ "$(nbdinfo --json "$uri" | jq '.exports[0].is_read_only')" = true ] || fail "$1 is not read-only"
    ! qemu-io -f raw -c 'write 0 512' "$uri" >out 2>&1 || fail "$1 was written to"
    nbdcopy "$uri" copy
    cmp copy "$1" || fail "$1 reads differently"
    [ "$(grep -c 'served read-only' "$log")" = "$(grep -c "served read-only: $2" "$log")" ] &&
        [ "$(grep -c 'served read-only' "$log")" = "${3:-1}" ] || { cat "$log"; fail "$1: not one line: $2"; }
}
# refused PATTERN ARGUMENTS...: at once, in one line.
refused() {
    local pattern=$1 status=0
    shift
    timeout 20 nbdkit -f -U "$dir/refused.sock" "$plugin" "$@" --run true 2>err || status=$?
    rm -f refused.sock
    [ $status = 1 ] && [ "$(grep -c . err)" = 1 ] && grep -q -- "$pattern" err || { cat err; fail "status $status, for: $*"; }
}
fresh() { head -c 1234567 /dev/urandom >"$1"; }

fresh disk.img
for cache in default none; do
    say "fd=, read and write, cache=$cache"
    start "rw-$cache" fd=7 cache=$cache 7<>disk.img
    writable disk.img
    # It is still there for the next client, and for two at once.
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
    say "a descriptor that root opened for nobody: not with O_APPEND or O_DIRECT, which cannot do what is asked"
    (umask 077 && fresh own.img)
    chmod 755 "$dir"
    cp "$plugin" plugin.so
    mkdir nobody && chmod 777 nobody
    # opened FLAGS COMMAND...: with descriptor 7 on own.img.
    opened() {
        "$python" -c 'import os, sys
fd = os.open("own.img", os.O_RDWR | getattr(os, sys.argv[1]))
os.dup2(fd, 7)
os.execvp("setpriv", ["setpriv", "--reuid=nobody", "--clear-groups", *sys.argv[2:]])' "$@"
    }
    before=$(checksum own.img)
    for cache in default none; do
        # shellcheck disable=SC2016 # nbdkit sets $uri
        opened O_APPEND timeout 20 nbdkit -f -U nobody/append-$cache ./plugin.so fd=7 cache=$cache \
            --run 'nbdinfo --json "$uri"' >info 2>err || { cat err; fail "O_APPEND: not served"; }
        [ "$(jq '.exports[0].is_read_only' info)" = true ] && grep -q 'fd=7: served read-only: .*O_APPEND' err ||
            { cat info err; fail "O_APPEND: writes would go to the end"; }
        # shellcheck disable=SC2016
        ! opened O_DIRECT timeout 20 nbdkit -f -U nobody/direct-$cache ./plugin.so fd=7 cache=$cache \
            --run 'nbdinfo "$uri"' >info 2>err || fail "O_DIRECT: served"
        grep -q 'fd=7: cannot be opened' err || { cat err; fail "O_DIRECT: no line says why"; }
    done
    [ "$(checksum own.img)" = "$before" ] || fail "the file has changed"
fi

say "bash's own descriptors, and a high number"
exec 7<>disk.img {high}>&7
exec 200<>disk.img
start bash fd=7
writable disk.img
stop
start bash-high fd=200
writable disk.img
stop
exec 7>&- 200>&- {high}>&-

say "a descriptor whose file has no name any more"
fresh gone.img
exec 7<>gone.img 8<gone.img
rm gone.img
start gone fd=7 cache=none
writable /proc/self/fd/8
stop
exec 7>&- 8>&-

say "in the background, where nbdkit forks and changes to /"
nbdkit -U "$dir/background.sock" -P background.pid "$plugin" fd=7 7<>disk.img
wait_for 20 test -s background.pid
pids+=("$(cat background.pid)")
uri="nbd+unix:///?socket=$dir/background.sock" log=/dev/null
writable disk.img
kill "$(cat background.pid)"

say "reading only"
start ro fd=7 7<disk.img
readonly_because disk.img "the descriptor was opened for reading only"
stop
start ro-asked -r fd=7 7<>disk.img
readonly_because disk.img "" 0
stop

say "what is no image"
refused 'fd=7: was opened for writing only' fd=7 7>>disk.img
refused 'fd=77: Bad file descriptor' fd=77
refused 'fd=7: is a directory' fd=7 7<"$dir"
refused 'fd=7: is a FIFO' fd=7 7< <(:)
refused 'fd=7: is a character device' fd=7 7<>/dev/null
refused 'fd=0: out of range' fd=0
refused 'fd=: not a number' fd=
refused 'fd=disk.img: not a number' fd=disk.img
refused 'only one of' fd=7 file=disk.img 7<>disk.img
"$python" - "$plugin" disk.img >out 2>&1 <<'P' || { cat out; fail "a descriptor that only names a file"; }
import os, subprocess, sys
fd = os.open(sys.argv[2], os.O_PATH)
r = subprocess.run(["nbdkit", "-f", "-U", "-", sys.argv[1], f"fd={fd}", "--run", "true"],
                   pass_fds=[fd], stderr=subprocess.PIPE, text=True)
assert r.returncode == 1 and "was opened with O_PATH" in r.stderr and r.stderr.count("\n") == 1, r
P

say "a path, relative to where nbdkit was started, in the background too"
start relative file=disk.img
writable disk.img
stop
mkdir folder
(cd folder && nbdkit -U "$dir/below.sock" -P "$dir/below.pid" "$plugin" ../disk.img)
wait_for 20 test -s below.pid
pids+=("$(cat below.pid)")
uri="nbd+unix:///?socket=$dir/below.sock" log=/dev/null
writable disk.img
kill "$(cat below.pid)"

say "/proc/self/fd"
start proc /proc/self/fd/7 7<>disk.img
writable disk.img
stop

say "names"
mkdir 'a folder'
for name in 'with space.img' 'größe-日本.img' $'new\nline.img' '%s%n.img' '-r' 'a=b.img' 'fd=7' 'a folder/x y=z?.img' \
    "it's \"quoted\"\\.img"; do
    fresh "./$name"
    start name "file=$name"
    writable "./$name"
    stop
done
# Without file= a word with = in it is a parameter; a path with a slash before the = is a path.
start slash "./a=b.img"
writable a=b.img
stop
start spaces 'with space.img'
writable 'with space.img'
stop
refused 'a=b.img: unknown parameter' a=b.img
refused 'with  spaces: No such file' 'with  spaces'

need_root "another user"
say "a descriptor that its user may use, and not open"
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
say "and a path that it may only read"
chmod 644 disk.img
start path disk.img
readonly_because disk.img "Permission denied"
stop
