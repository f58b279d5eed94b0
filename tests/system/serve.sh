#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# ./serve, in a copy of the source tree without a build directory: it builds the plugin, serves each
# kind of image, prints commands that work when pasted, and ends in an orderly way.
. "$(dirname "$0")/../lib/functions.sh"
unset AIODISK_BUILD AIODISK_GRACE
need_root "a loop device"

# The checkout, the sockets and the images have spaces in their paths, as a user's may have, and the
# sockets all that a shell or a URI would take for something else.
copy="$dir/a copy"
export XDG_RUNTIME_DIR="$dir/run 'tïme\" \$x"
mkdir "$copy" "$XDG_RUNTIME_DIR" "$dir/shims" "$dir/images" "$dir/my images" "$dir/elsewhere"
for part in .ci serve meson.build meson_options.txt fio-jobs plugin backends pool tests; do
    cp -r "$source_root/$part" "$copy"
done
sed -i 's/^runtime=10$/runtime=1/' "$copy"/fio-jobs/*.fio
cd "$dir/elsewhere"

# nbdkit has a process group of its own, so only its pid file leads to the process.
before_cleanup() {
    local file
    for file in "$XDG_RUNTIME_DIR"/aiodisk.*/pid; do
        [ ! -s "$file" ] || kill -9 "$(cat "$file")"
    done
}

# ./serve has nothing to install here, so it must call neither apt-get nor sudo.
cat >"$dir/shims/apt-get" <<'S'
#!/bin/sh
echo "$@" >>"${0%/*}/apt-get.log"
exit 100
S
chmod +x "$dir/shims/apt-get"
cp "$dir/shims/apt-get" "$dir/shims/sudo"
export PATH="$dir/shims:$PATH"

# launch NAME ARGUMENTS...: starts ./serve in a session of its own, in which SIGINT is not ignored,
# as in a terminal.
declare -A served
launch() {
    local name=$1
    shift
    : >"$dir/$name.out" # an earlier ./serve of that name may have printed Ctrl-C there
    setsid env --default-signal=INT "$copy/serve" "$@" >"$dir/$name.out" 2>"$dir/$name.err" &
    served[$name]=$!
    pids+=($!)
}
# use NAME: waits until this ./serve is ready and selects it.  Sets $pid, $uri, $image, $out, $err.
use() {
    pid=${served[$1]} out="$dir/$1.out" err="$dir/$1.err"
    wait_for 100 serving
    grep -q '^Ctrl-C' "$out" || fail_with "$err" "./serve did not start ($1)"
    uri=$(sed -n 's/^URI: //p' "$out")
    image=$(sed -n 's/^Serving //p' "$out")
}
serving() { grep -qs '^Ctrl-C' "$out" || ended "$pid"; }
up() {
    launch "$@"
    use "$1"
}

# nothing_left [COUNT]: COUNT servers, or none, have a directory in $XDG_RUNTIME_DIR.
nothing_left() {
    [ "$(find "$XDG_RUNTIME_DIR" -mindepth 1 -maxdepth 1 | wc -l)" = "${1:-0}" ] ||
        fail "files remain: $(ls -R "$XDG_RUNTIME_DIR")"
}

# down NAME [SIGNAL [LAST-LINE]]: signals the whole process group, as Ctrl-C does.  ./serve must end
# with status 0 and LAST-LINE as its only message, and leave no file.  The client's fault that
# nbdkit 1.42 logs for `nbdinfo --list` does not count.
down() {
    local status=0 lines
    pid=${served[$1]} out="$dir/$1.out" err="$dir/$1.err"
    kill -"${2:-INT}" -- "-$pid"
    wait_for 30 ended "$pid"
    wait "$pid" || status=$?
    [ $status = 0 ] || fail_with "$err" "./serve ended with status $status"
    lines=$(grep -v '^nbdkit: .*: error: .*: the client named no export; ' "$err") || true
    [ "$lines" = "${3:-serve: stopped}" ] ||
        fail_with "$err" "the only message is not '${3:-serve: stopped}'"
    unset "served[$1]"
    nothing_left ${#served[@]}
}

# interrupt NAME: ends the selected ./serve, NAME, whose messages are checked elsewhere.
interrupt() {
    kill -INT -- "-$pid"
    wait "$pid" || fail "./serve ended with $?"
    unset "served[$1]"
}

# printed: prints the commands that ./serve printed.
printed() { sed -n 's/^  //p' "$out"; }
# paste PATTERN [SED-EXPRESSION]: runs the command that matches.
paste() {
    local line
    line=$(printed | grep -- "$1") || fail_with "$out" "no command matches '$1'"
    [ "$(echo "$line" | wc -l)" = 1 ] || fail "several commands match '$1': $line"
    [ $# = 1 ] || line=$(echo "$line" | sed "$2")
    echo "   \$ $line"
    timeout 60 bash -c "$line" >"$dir/pasted" 2>&1 ||
        fail_with "$dir/pasted" "this command fails when pasted: $line"
}
# pasted PATTERN: the output of the last pasted command has such a line.
pasted() { grep -q "$1" "$dir/pasted" || fail_with "$dir/pasted" "no '$1' in the output"; }

say "two servers at once, without a build: each has a sample and a socket of its own"
launch sample
launch second
use sample
first_uri=$uri first_image=$image
use second
[ "$uri" != "$first_uri" ] || fail "both servers use $uri"
samples=$(printf '%s\n' "$first_image" "$image" | sort)
[ "$samples" = "$copy/sample-2.img"$'\n'"$copy/sample.img" ] ||
    fail "the samples are $first_image and $image"
for n in sample second; do
    use $n
    [ "$(stat -c %s "$image")" = $((1 << 30)) ] && [ "$(nbdinfo --size "$uri")" = $((1 << 30)) ] ||
        fail "the sample does not have 1 GiB"
    [ ! -s "$err" ] || fail_with "$err" "./serve printed an error"
done
qemu-io -f raw -c 'write -P 2 0 64k' "$uri" >"$dir/out"
qemu-io -f raw -c 'read -P 0 0 64k' -c 'write -P 1 0 64k' "$first_uri" >"$dir/out" ||
    fail_with "$dir/out" "both servers serve the same disk"
cmp -n 65536 "$image" <(head -c 65536 /dev/zero | tr '\0' '\2') ||
    fail "the second sample does not have the data that were written to it"
down second TERM
[ "$(nbdinfo --size "$first_uri")" = $((1 << 30)) ] || fail "the first server ended with the second"
down sample

say "a later server uses the same sample again"
up again
[ "$image" = "$copy/sample.img" ] || fail "another sample: $image"
pattern=$([ "$first_image" = "$image" ] && echo 1 || echo 2)
qemu-io -f raw -c "read -P $pattern 0 64k" "$uri" >"$dir/out" ||
    fail_with "$dir/out" "the sample has lost its data"
down again

say "an image, and every command that ./serve prints"
head -c 8000000 /dev/urandom >"$dir/my images/disk one.img"
truncate -s 1G "$dir/my images/disk one.img"
up image "$dir/my images/disk one.img"
paste '^nbdinfo'
paste '^nbdcopy'
cmp copy.img "$dir/my images/disk one.img" || fail "the copy differs"
paste '^URI=.*fio'
pasted 'err= 0'
paste '^fio --name'
pasted 'err= 0'
paste '^qemu-img info'
pasted 'virtual size: 1 GiB'
paste '^qemu-io'
# A virtual machine would take too long, so qemu-img opens the drive instead.
drive='s/^qemu-system-x86_64.* -drive \(.*\),if=virtio"$/qemu-img info --image-opts \1"/'
paste '^qemu-system-x86_64' "$drive"
pasted 'virtual size: 1 GiB'
[ "$(printed | wc -l)" = 7 ] || fail_with "$out" "not the 7 commands that this test knows"

say "a second server of the same image refuses clients; the first server is not affected"
hold_client "$uri"
up rival "$dir/my images/disk one.img"
! nbdinfo "$uri" >/dev/null 2>&1 || fail "both servers may write"
grep -q 'in use by another program' "$dir/rival.err" || fail "no line gives the reason"
kill -INT "$pid" # to ./serve only, not to its process group
wait "$pid" || fail "./serve ended with $?"
unset "served[rival]"
release_client
use image
paste '^nbdinfo'
down image

say "a directory"
truncate -s 1M "$dir/images/one" "$dir/images/two words"
up directory "$dir/images"
paste '^nbdinfo --list'
pasted 'two words'
paste '^nbdinfo "' s/NAME/one/
paste '^nbdcopy' 's/NAME/two%20words/'
cmp copy.img "$dir/images/two words" || fail "the copy differs"
[ "$(printed | wc -l)" = 3 ] || fail_with "$out" "not the 3 commands that this test knows"
down directory

say "a block device, read-only, through TCP"
make_loop "$dir/my images/disk one.img"
port=$("$python" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
up device -r "$loop" --port "$port"
[ "$uri" = "nbd://127.0.0.1:$port" ] || fail "the URI is $uri"
paste '^nbdinfo'
pasted 'is_read_only: true'
paste '^qemu-img info'
paste '^qemu-io'
paste '^qemu-system-x86_64' "$drive"
! nbdinfo "nbd://[::1]:$port" >/dev/null 2>&1 || fail "nbdkit listens on more than 127.0.0.1"
down device

say "nbdkit has libnbdkit-corked.so, and with --stock has it not, which ./serve prints"
for stock in '' --stock; do
    # shellcheck disable=SC2086 # no argument if $stock is empty
    up stock $stock "$dir/images/one"
    maps=/proc/$(cat "$XDG_RUNTIME_DIR"/aiodisk.*/pid)/maps
    if [ -z "$stock" ]; then
        grep -q 'libnbdkit-corked[.]so' "$maps" || fail "the library is missing"
        ! grep -q stock "$out" || fail_with "$out" "a word about --stock"
    else
        ! grep -q 'libnbdkit-corked[.]so' "$maps" || fail "the library is there in spite of --stock"
        grep -q '^Stock nbdkit: .*(--stock)$' "$out" || fail_with "$out" "no word about --stock"
    fi
    paste '^nbdinfo'
    down stock
done
[ -z "$(find /tmp -maxdepth 2 -lname "$copy/*")" ] || fail "a link to the library remains"

say "parameters, and nbdkit's own arguments"
up parameters "$dir/images/one" --cache=none --max-threads=7 --socket "$dir/my socket" \
    -- -v -D aiodisk.stats=1 --filter=noextents
nbdinfo --size "$uri" >/dev/null
[ -S "$dir/my socket" ] || fail "no such socket"
grep -q 'read-write, O_DIRECT' "$err" || fail_with "$err" "no effect of --cache=none"
grep -q 'filter=.*noextents\|registered filter.*noextents' "$err" ||
    fail_with "$err" "no effect of --filter"
grep -q 'max-threads, value=7' "$err" || fail_with "$err" "no effect of --max-threads"
interrupt parameters
grep -q 'aiodisk: counters:' "$err" || fail_with "$err" "no effect of -D"

say "Ctrl-C with a connected client: ./serve waits for the grace period, ends nbdkit, and says so"
export AIODISK_GRACE=1
up grace "$dir/images/one"
unset AIODISK_GRACE
"$python" -c 'import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
print("connected", flush=True)
try:
    h.poll(-1)
    h.flush()
except nbd.Error:
    pass' "$uri" >"$dir/connected" &
client=$!
pids+=("$client")
wait_for 10 grep -q connected "$dir/connected"
nbdkit_pid=$(cat "$XDG_RUNTIME_DIR"/aiodisk.*/pid)
started=$EPOCHREALTIME
down grace INT "serve: clients are still connected after 1 s; ending nbdkit"
took=$(milliseconds_since "$started")
[ "$took" -lt 8000 ] || fail "the end took $took ms"
[ ! -e /proc/"$nbdkit_pid" ] || fail "nbdkit still runs"
wait "$client" || fail "the client ended with $?"

say "Ctrl-C in a terminal; nbdkit is in the session of the terminal, in a group of its own"
"$python" - "$copy/serve" "$dir/images/one" <<'P' || fail "./serve in a terminal"
import glob, os, sys
from servers import serve_in_terminal
pid, terminal, output = serve_in_terminal(*sys.argv[1:])
with open(glob.glob(os.environ["XDG_RUNTIME_DIR"] + "/aiodisk.*/pid")[0]) as f:
    nbdkit = int(f.read())
assert os.getsid(nbdkit) == os.getsid(pid) and os.getpgid(nbdkit) == nbdkit, output
assert os.tcgetpgrp(terminal) == pid, "./serve is not in the foreground"
os.write(terminal, b"\x03")
try:
    while data := os.read(terminal, 4096):
        output += data
except OSError:  # the terminal has no user any more
    pass
status = os.waitpid(pid, 0)[1]
assert status == 0 and output.endswith(b"serve: stopped\r\n"), (status, output)
P
nothing_left

say "the terminal is closed: ./serve leaves no process and no file"
"$python" - "$copy/serve" "$dir/images/one" <<'P' || fail "./serve in a terminal that is closed"
import os, sys
from servers import serve_in_terminal
pid, terminal, _ = serve_in_terminal(*sys.argv[1:])
os.close(terminal)  # from now on ./serve cannot print
os.waitpid(pid, 0)
P
nothing_left

say "nbdkit is killed: ./serve ends with nbdkit's status and leaves no file"
up dies "$dir/images/one"
kill -9 "$(cat "$XDG_RUNTIME_DIR"/aiodisk.*/pid)"
status=0
wait "$pid" || status=$?
[ $status = 137 ] || fail "status $status"
unset "served[dies]"
nothing_left

say "every error is one line"
# wrong PATTERN ARGUMENTS...: ./serve fails and prints one line, which matches PATTERN.
wrong() {
    local pattern=$1 status=0
    shift
    timeout 60 "$copy/serve" "$@" >"$dir/out" 2>"$dir/err" || status=$?
    [ $status = 1 ] && [ "$(grep -c . "$dir/err")" = 1 ] && grep -q -- "$pattern" "$dir/err" &&
        [ ! -s "$dir/out" ] || fail_with "$dir/err" "status $status, for: ./serve $*"
    nothing_left
    sed 's/^/   /' "$dir/err"
}
wrong 'missing.img: No such file' missing.img
wrong 'name of the image is empty' ''
wrong 'one image is served at a time' "$dir/images/one" "$dir/images/two words"
wrong '--nonsense: unknown option' --nonsense
wrong '-x: unknown option' -x
wrong '--port: the number is missing' --port
wrong '--socket: the path is missing' --socket
wrong '--port abc: not a port number' --port abc
wrong '--port 0: not a port number' --port 0
wrong '--port 65536: not a port number' --port=65536
wrong '--port 99999999999999999999: not a port number' --port=99999999999999999999
wrong 'exclude each other' --port 10809 --socket x
wrong 'exists already' --socket "$dir/images/one" "$dir/images/one"
wrong 'cache=fast: unknown value; allowed are: default, none' "$dir/images/one" --cache=fast
wrong 'colour=red: unknown parameter' "$dir/images/one" --colour=red
wrong 'max-threads=0: out of range' "$dir/images/one" --max-threads=0
wrong 'is a character device' /dev/null
mkfifo "$dir/fifo"
wrong 'is a FIFO' "$dir/fifo"
"$python" -c 'import socket, sys, time
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen()
print(s.getsockname()[1], flush=True)
time.sleep(60)' >"$dir/port" &
pids+=($!)
wait_for 10 test -s "$dir/port"
status=0
"$copy/serve" --port "$(cat "$dir/port")" "$dir/images/one" >"$dir/out" 2>"$dir/err" || status=$?
[ $status = 1 ] && grep -q 'Address already in use' "$dir/err" ||
    fail_with "$dir/err" "a port in use: status $status"
nothing_left
"$copy/serve" --help >"$dir/out"
grep -q '^usage: ./serve' "$dir/out" || fail "--help prints no usage"

say "the same --socket PATH twice, and over the socket of a killed server"
for i in 1 2; do
    up again "$dir/images/one" --socket "$dir/again.sock"
    down again
    [ ! -e "$dir/again.sock" ] || fail "the socket still exists"
done
"$python" -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' \
    "$dir/again.sock"
up again "$dir/images/one" --socket "$dir/again.sock"
down again

say "a second Ctrl-C ends nbdkit at once"
AIODISK_GRACE=60 up twice "$dir/images/one"
"$python" -c 'import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
print("connected", flush=True)
time.sleep(60)' "$uri" >"$dir/client" &
pids+=($!)
wait_for 10 test -s "$dir/client"
kill -INT -- "-$pid"
sleep 0.5 # the script handles the first signal; no event shows that
kill -INT -- "-$pid"
wait_for 10 ended "$pid"
wait "$pid" || true
unset "served[twice]"
nothing_left

say "exactly the missing packages are installed; errors of the installation and the build are shown"
[ ! -e "$dir/shims/apt-get.log" ] ||
    fail_with "$dir/shims/apt-get.log" "./serve called apt-get although no package was missing"
cat >"$dir/shims/dpkg-query" <<'S'
#!/bin/sh
for last; do :; done
[ "$last" = perl ] || exec /usr/bin/dpkg-query "$@"
exit 1
S
chmod +x "$dir/shims/dpkg-query"
# fails PATTERN: ./serve fails, and one of its lines matches PATTERN.
fails() {
    local status=0
    "$copy/serve" "$dir/images/one" >"$dir/out" 2>"$dir/err" || status=$?
    [ $status = 1 ] && grep -q "$1" "$dir/err" || fail_with "$dir/err" "no '$1', status $status"
}
fails 'packages could not be installed: perl$'
grep -q 'update' "$dir/shims/apt-get.log" || fail "no apt-get update"
printf '#!/bin/sh\necho "$@" >>"${0%%/*}/apt-get.log"\n' >"$dir/shims/apt-get"
up installs "$dir/images/one"
grep -q 'install.* perl$' "$dir/shims/apt-get.log" ||
    fail_with "$dir/shims/apt-get.log" "./serve did not install exactly perl"
grep -q '== installing perl' "$err" || fail "./serve does not say what it installs"
interrupt installs
rm "$dir/shims/dpkg-query"
echo "not C" >>"$copy/plugin/plugin.c"
fails 'the plugin could not be built'
grep -q 'plugin.c:.*error' "$dir/err" || fail_with "$dir/err" "the compiler's message is missing"
