#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With libnbdkit-corked.so preloaded, nbdkit answers each read on a unix socket with one system
# call, and a map of 4000 extents with a few.  Clients get the same bytes on unix sockets, TCP and
# TLS.  Programs that nbdkit starts do not get the library.
. "$(dirname "$0")/../lib/functions.sh"
: "${AIODISK_CORKED:?is not set: run the test through meson test, or set it to the path of the .so}"

# Random data, 2000 holes between 2000 blocks, and a size that is no multiple of anything.
size=$(((64 << 20) + 1234))
"$python" - "$dir/source" $size <<'P'
import os, sys
with open(sys.argv[1], "wb") as f:
    f.write(os.urandom(20 << 20))
    for i in range(2000):
        f.seek((24 << 20) + i * 8192)
        f.write(bytes([i % 255 + 1]) * 4096)
    f.truncate(int(sys.argv[2]))
P
cp --sparse=always "$dir/source" "$dir/disk.img"

# The client makes 100 reads with each kind of reply, reads a map, and expects an error.
cat >"$dir/client.py" <<'P'
import nbd, sys
with open(sys.argv[2], "rb") as f:
    source = f.read()
for structured in True, False:
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(sys.argv[1])
    for i in range(100):
        assert h.pread(4096, i * 4097) == source[i * 4097:i * 4097 + 4096], i
    if structured:
        extents = []
        h.block_status(16 << 20, 24 << 20, lambda context, offset, entries, error:
                       extents.extend(entries))
        assert sum(extents[::2]) == 16 << 20 and len(extents) > 4000, len(extents)
    h.shutdown()
P

# serve_at WHERE...: starts the server there, by the command in $nbdkit, and selects it.
serve_at() {
    rm -f "$dir/server.pid" "$dir/server.sock"
    "${nbdkit[@]}" -f -P "$dir/server.pid" "$@" "$plugin" "$dir/disk.img" 2>"$dir/server.log" &
    pids+=($!)
    select_server server $!
    wait_for 20 started "$pid_file" "$pid"
    [ -e "$pid_file" ] || fail_with "$log" "nbdkit did not start"
}
unix=(-U "$dir/server.sock")
port=$("$python" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
tcp=(-i 127.0.0.1 -p "$port")

# --- System calls ---

# sends PATTERN: how many of the server's system calls match.
sends() { grep -cE "$1" "$dir/strace" || true; }
nbdkit=(strace -D -f --seccomp-bpf -qq -s 0 -o "$dir/strace" -e trace=sendto,sendmsg nbdkit)

say "unix socket: one call for each read, and a few for a map"
serve_at "${unix[@]}"
"$python" "$dir/client.py" "$uri" "$dir/source"
stop
[ "$(sends 'sendmsg.* = 4124$')" = 100 ] || fail_with "$dir/strace" "not 100 structured replies"
[ "$(sends 'sendmsg.* = 4112$')" = 100 ] || fail_with "$dir/strace" "not 100 simple replies"
[ "$(sends MSG_MORE)" -le 3 ] || fail_with "$dir/strace" "marked pieces were sent alone"
[ "$(sends .)" -le 250 ] || fail_with "$dir/strace" "more than 250 calls"

say "TCP: the pieces pass through"
serve_at "${tcp[@]}"
"$python" "$dir/client.py" "nbd://127.0.0.1:$port" "$dir/source"
stop
[ "$(sends 'sendto.* = 4096$')" = 200 ] && [ "$(sends 'sendto.*MSG_MORE')" -ge 4300 ] ||
    fail_with "$dir/strace" "the library sends on a TCP socket"

# --- Copies ---

# copies URI WHERE...: nbdcopy in and out gives the same bytes.
copies() {
    local from=$1
    shift
    rm -f "$dir/disk.img"
    truncate -s "$size" "$dir/disk.img"
    serve_at "$@"
    nbdcopy --flush "$dir/source" "$from"
    nbdcopy "$from" "$dir/copy"
    stop
    cmp "$dir/copy" "$dir/source" || fail "nbdcopy out differs from what was copied in: $from"
    cmp "$dir/disk.img" "$dir/source" || fail "the image differs: $from"
}

say "nbdcopy in and out on unix sockets and TCP"
nbdkit=(nbdkit)
copies "$uri" "${unix[@]}"
copies "nbd://127.0.0.1:$port" "${tcp[@]}"
say "the same with TLS"
printf 'user:%s\n' "$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')" >"$dir/keys"
nbdkit=(nbdkit --tls=require --tls-psk="$dir/keys")
copies "nbds+unix://user@/?socket=$socket&tls-psk-file=$dir/keys" "${unix[@]}"
copies "nbds://user@127.0.0.1:$port/?tls-psk-file=$dir/keys" "${tcp[@]}"

# --- The environment ---

say "a program that nbdkit starts has only the other entries of LD_PRELOAD"
real=$(PATH=${PATH#*:} command -v nbdkit) # without the wrapper that preloads the library
# left EXPECTED LIST: what a child of nbdkit sees if nbdkit was started with LIST.
left() {
    local seen
    seen=$(LD_PRELOAD=$2 "$real" -U - "$plugin" "$dir/disk.img" --run 'echo "${LD_PRELOAD-unset}"')
    [ "$seen" = "$1" ] || fail "LD_PRELOAD is '$seen', not '$1'"
}
left unset "$AIODISK_CORKED"
left libm.so.6 "libm.so.6:$AIODISK_CORKED"
left libm.so.6:libdl.so.2 "  libm.so.6 $AIODISK_CORKED libdl.so.2"
left unset ":$AIODISK_CORKED $AIODISK_CORKED"
