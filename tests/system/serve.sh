#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# ./serve, in a copy of this tree without a build directory: it builds, serves whatever it is given, prints commands that
# work when pasted, and ends as it should.
. "$(dirname "$0")/../lib/functions.sh"
unset AIODISK_BUILD AIODISK_GRACE
need_root "a loop device"

# Spaces wherever a user may have them: in the checkout, the sockets and the images.
copy="$dir/a copy"
export XDG_RUNTIME_DIR="$dir/run time"
mkdir "$copy" "$XDG_RUNTIME_DIR" "$dir/shims" "$dir/images" "$dir/my images" "$dir/elsewhere"
for part in .ci serve meson.build meson_options.txt fio-jobs plugin backends pool tests; do cp -r "$source_root/$part" "$copy"; done
sed -i 's/^runtime=10$/runtime=1/' "$copy"/fio-jobs/*.fio
cd "$dir/elsewhere"

# nbdkit has a session of its own, so it has to be found by the pid that serve has noted.
leftovers() {
    local file
    for file in "$XDG_RUNTIME_DIR"/aiodisk.*/pid; do
        [ ! -s "$file" ] || kill -9 "$(cat "$file")" || true
    done
}
trap 'status=$?; leftovers; set +e; (exit $status); cleanup' EXIT

# Whoever calls this has nothing to install.
cat >"$dir/shims/apt-get" <<'S'
#!/bin/sh
echo "$@" >>"${0%/*}/apt-get.log"
exit 100
S
chmod +x "$dir/shims/apt-get"
cp "$dir/shims/apt-get" "$dir/shims/sudo"
export PATH="$dir/shims:$PATH"

# launch NAME ARGUMENTS...: a serve, in a session of its own as a terminal has, where Ctrl-C is not ignored.
declare -A served
launch() {
    local name=$1
    shift
    setsid env --default-signal=INT "$copy/serve" "$@" >"$dir/$name.out" 2>"$dir/$name.err" &
    served[$name]=$!
    pids+=($!)
}
# use NAME: it is the one that is meant from now on; waits until it serves.  Sets $uri, $image, $out and $err.
use() {
    pid=${served[$1]} out="$dir/$1.out" err="$dir/$1.err"
    wait_for 100 serving
    grep -q '^Ctrl-C' "$out" || { cat "$out" "$err"; fail "serve does not serve ($1)"; }
    uri=$(sed -n 's/^URI: //p' "$out")
    image=$(sed -n 's/^Serving //p' "$out")
}
serving() { grep -q '^Ctrl-C' "$out" || ! kill -0 "$pid" 2>/dev/null; }
up() {
    launch "$@"
    use "$1"
}

# down NAME [SIGNAL]: as Ctrl-C does it, to the whole group; then nothing is left.
down() {
    local status=0
    pid=${served[$1]} out="$dir/$1.out" err="$dir/$1.err"
    kill -"${2:-INT}" -- "-$pid"
    wait_for 30 ended
    wait "$pid" || status=$?
    [ $status = 0 ] || { cat "$err"; fail "serve ended with status $status"; }
    [ "$(tail -1 "$err")" = "${3:-serve: stopped}" ] || { cat "$err"; fail "it did not say how it ended"; }
    [ "$(grep -c . "$err")" = 1 ] || { cat "$err"; fail "it said more than how it ended"; }
    unset "served[$1]"
    [ "$(find "$XDG_RUNTIME_DIR" -mindepth 1 -maxdepth 1 | wc -l)" = ${#served[@]} ] ||
        fail "left behind: $(ls -R "$XDG_RUNTIME_DIR")"
}

ended() { ! kill -0 "$pid" 2>/dev/null; }

# printed: the commands, as they are to be pasted.
printed() { sed -n 's/^  //p' "$out"; }
# paste PATTERN [SED-EXPRESSION]: runs the one that matches.
paste() {
    local line
    line=$(printed | grep -- "$1") || { cat "$out"; fail "no command matches '$1'"; }
    [ "$(echo "$line" | wc -l)" = 1 ] || { echo "$line"; fail "several commands match '$1'"; }
    [ $# = 1 ] || line=$(echo "$line" | sed "$2")
    echo "   \$ $line"
    timeout 60 bash -c "$line" >"$dir/pasted" 2>&1 || { cat "$dir/pasted"; fail "it does not work when pasted: $line"; }
}

say "two at once, built from nothing: each has a sample and a socket of its own"
launch sample
launch second
use sample
first_uri=$uri first_image=$image
use second
[ "$uri" != "$first_uri" ] || fail "both on $uri"
[ "$(printf '%s\n' "$first_image" "$image" | sort)" = "$copy/sample-2.img"$'\n'"$copy/sample.img" ] ||
    fail "the samples are $first_image and $image"
for n in sample second; do
    use $n
    [ "$(stat -c %s "$image")" = $((1 << 30)) ] && [ "$(nbdinfo --size "$uri")" = $((1 << 30)) ] || fail "no sample of 1 GiB"
    [ ! -s "$err" ] || { cat "$err"; fail "it complains"; }
done
qemu-io -f raw -c 'write -P 2 0 64k' "$uri" >"$dir/out"
qemu-io -f raw -c 'read -P 0 0 64k' -c 'write -P 1 0 64k' "$first_uri" >"$dir/out" ||
    { cat "$dir/out"; fail "one disk for both"; }
cmp -n 65536 "$image" <(head -c 65536 /dev/zero | tr '\0' '\2') || fail "the second's sample has not what was written to it"
down second TERM
[ "$(nbdinfo --size "$first_uri")" = $((1 << 30)) ] || fail "the first has ended with the second"
down sample

say "the next one keeps the sample of last time"
up again
[ "$image" = "$copy/sample.img" ] || fail "another sample: $image"
qemu-io -f raw -c "read -P $([ "$first_image" = "$image" ] && echo 1 || echo 2) 0 64k" "$uri" >"$dir/out" ||
    { cat "$dir/out"; fail "the sample is not the one of last time"; }
down again

say "an image, and every command it prints"
head -c 8000000 /dev/urandom >"$dir/my images/disk one.img"
truncate -s 1G "$dir/my images/disk one.img"
up image "$dir/my images/disk one.img"
paste '^nbdinfo'
paste '^nbdcopy'
cmp copy.img "$dir/my images/disk one.img" || fail "the copy differs"
paste '^URI=.*fio'
grep -q 'err= 0' "$dir/pasted" || { cat "$dir/pasted"; fail "fio"; }
paste '^fio --name'
grep -q 'err= 0' "$dir/pasted" || { cat "$dir/pasted"; fail "fio"; }
paste '^qemu-img info'
grep -q 'virtual size: 1 GiB' "$dir/pasted" || { cat "$dir/pasted"; fail "qemu-img"; }
paste '^qemu-io'
# The machine itself takes too long: does QEMU understand the drive?
paste '^qemu-system-x86_64' 's/^qemu-system-x86_64.* -drive \(.*\),if=virtio"$/qemu-img info --image-opts \1"/'
grep -q 'virtual size: 1 GiB' "$dir/pasted" || { cat "$dir/pasted"; fail "-drive"; }
[ "$(printed | wc -l)" = 7 ] || { printed; fail "there are commands here that this test does not know"; }

say "the same image once more is refused, in the log and to the client, and the first goes on"
up rival "$dir/my images/disk one.img"
! nbdinfo "$uri" >/dev/null 2>&1 || fail "two writers"
grep -q 'in use by another program' "$dir/rival.err" || fail "nothing says why"
kill -INT "$pid" # serve alone, not the group
wait "$pid" || fail "it ended with $?"
unset "served[rival]"
use image
paste '^nbdinfo'
down image

say "a directory"
truncate -s 1M "$dir/images/one" "$dir/images/two words"
up directory "$dir/images"
paste '^nbdinfo --list'
grep -q 'two words' "$dir/pasted" || { cat "$dir/pasted"; fail "an export is missing"; }
paste '^nbdinfo "' s/NAME/one/
paste '^nbdcopy' 's/NAME/two%20words/'
cmp copy.img "$dir/images/two words" || fail "the copy differs"
[ "$(printed | wc -l)" = 3 ] || { printed; fail "there are commands here that this test does not know"; }
down directory

say "a block device, read-only, through TCP"
make_loop "$dir/my images/disk one.img"
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
up device -r "$loop" --port "$port"
[ "$uri" = "nbd://127.0.0.1:$port" ] || fail "the URI is $uri"
paste '^nbdinfo'
grep -q 'is_read_only: true' "$dir/pasted" || { cat "$dir/pasted"; fail "it is not read-only"; }
paste '^qemu-img info'
paste '^qemu-system-x86_64' 's/^qemu-system-x86_64.* -drive \(.*\),if=virtio"$/qemu-img info --image-opts \1"/'
! nbdinfo "nbd://[::1]:$port" >/dev/null 2>&1 || fail "it listens on more than 127.0.0.1"
down device

say "parameters, and nbdkit's own arguments"
up parameters "$dir/images/one" --cache=none --max-threads=7 --socket "$dir/my socket" -- -v -D aiodisk.stats=1 --filter=noextents
nbdinfo --size "$uri" >/dev/null
[ -S "$dir/my socket" ] || fail "no such socket"
grep -q 'read-write, O_DIRECT' "$err" || { cat "$err"; fail "no --cache=none"; }
grep -q 'filter=.*noextents\|registered filter.*noextents' "$err" || { cat "$err"; fail "no --filter"; }
grep -q 'max-threads, value=7' "$err" || { cat "$err"; fail "no --max-threads"; }
kill -INT -- "-$pid"
wait "$pid" || fail "it ended with $?"
unset "served[parameters]"
grep -q 'aiodisk: counters:' "$err" || { cat "$err"; fail "no -D"; }

say "Ctrl-C with a client that stays: it gives it its time, ends, and says so"
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
took=$(((${EPOCHREALTIME/./} - ${started/./}) / 1000))
[ $took -lt 8000 ] || fail "it took $took ms"
[ ! -e /proc/"$nbdkit_pid" ] || fail "nbdkit lives on"
wait "$client" || fail "the client ended with $?"

say "nbdkit dies: serve says so by its status, and leaves nothing"
up dies "$dir/images/one"
kill -9 "$(cat "$XDG_RUNTIME_DIR"/aiodisk.*/pid)"
status=0
wait "$pid" || status=$?
[ $status = 137 ] || fail "status $status"
unset "served[dies]"
[ -z "$(ls -A "$XDG_RUNTIME_DIR")" ] || fail "left behind: $(ls -R "$XDG_RUNTIME_DIR")"

say "what is wrong is said in one line"
# wrong PATTERN ARGUMENTS...
wrong() {
    local pattern=$1 status=0
    shift
    timeout 60 "$copy/serve" "$@" >"$dir/out" 2>"$dir/err" || status=$?
    [ $status = 1 ] && [ "$(grep -c . "$dir/err")" = 1 ] && grep -q -- "$pattern" "$dir/err" && [ ! -s "$dir/out" ] ||
        { cat "$dir/out" "$dir/err"; fail "status $status, for: serve $*"; }
    [ -z "$(ls -A "$XDG_RUNTIME_DIR")" ] || fail "left behind: $(ls -R "$XDG_RUNTIME_DIR"), by: serve $*"
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
[ $status = 1 ] && grep -q 'Address already in use' "$dir/err" && [ -z "$(ls -A "$XDG_RUNTIME_DIR")" ] ||
    { cat "$dir/out" "$dir/err"; fail "a port that is taken: status $status"; }
"$copy/serve" --help >"$dir/out"
grep -q '^usage: ./serve' "$dir/out" || fail "--help"

say "--socket PATH again and again, and where a server that was killed left its own"
for i in 1 2; do
    up again "$dir/images/one" --socket "$dir/again.sock"
    down again
    [ ! -e "$dir/again.sock" ] || fail "its socket is still there"
done
"$python" -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$dir/again.sock"
up again "$dir/images/one" --socket "$dir/again.sock"
down again

say "a second Ctrl-C does not wait for the clients"
AIODISK_GRACE=60 up twice "$dir/images/one"
"$python" -c 'import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
print("connected", flush=True)
time.sleep(60)' "$uri" >"$dir/client" &
pids+=($!)
wait_for 10 test -s "$dir/client"
kill -INT -- "-$pid"
sleep 0.5 # the first is being handled
kill -INT -- "-$pid"
wait_for 10 ended
wait "$pid" || true
unset "served[twice]"
[ -z "$(ls -A "$XDG_RUNTIME_DIR")" ] || fail "left behind: $(ls -R "$XDG_RUNTIME_DIR")"

say "what is missing is installed, and only that; a failure of that, and of the build, is told"
[ ! -e "$dir/shims/apt-get.log" ] || { cat "$dir/shims/apt-get.log"; fail "it wanted to install what is there"; }
cat >"$dir/shims/dpkg-query" <<'S'
#!/bin/sh
for last; do :; done
[ "$last" = perl ] || exec /usr/bin/dpkg-query "$@"
exit 1
S
chmod +x "$dir/shims/dpkg-query"
wrong_in_two() {
    local status=0
    "$copy/serve" "$dir/images/one" >"$dir/out" 2>"$dir/err" || status=$?
    [ $status = 1 ] && grep -q "$1" "$dir/err" || { cat "$dir/err"; fail "status $status"; }
}
wrong_in_two 'packages could not be installed: perl$'
grep -q 'update' "$dir/shims/apt-get.log" || fail "no apt-get update"
printf '#!/bin/sh\necho "$@" >>"${0%%/*}/apt-get.log"\n' >"$dir/shims/apt-get"
up installs "$dir/images/one"
grep -q 'install.* perl$' "$dir/shims/apt-get.log" ||
    { cat "$dir/shims/apt-get.log"; fail "perl was to be installed, and nothing else"; }
grep -q '== installing perl' "$err" || fail "it does not say that it installs"
kill -INT -- "-$pid"
wait "$pid" || fail "it ended with $?"
rm "$dir/shims/dpkg-query"
echo "not C" >>"$copy/plugin/plugin.c"
wrong_in_two 'the plugin could not be built'
grep -q 'plugin.c:.*error' "$dir/err" || { cat "$dir/err"; fail "the compiler's message is missing"; }
