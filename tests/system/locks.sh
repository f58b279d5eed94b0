#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The image's locks: between the plugin and QEMU's programs in both directions, and between servers.
#
# locks.sh file|loop
#
# The locks belong to the inode, so hard links share them.  Two loop devices on one file do not
# share them, and neither do two device nodes of one disk.  QEMU's own locks behave the same.
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
make_target "$kind" 4M

# connect: starts a client that stays connected until leave; sets $client.
cat >"$dir/client.py" <<'P'
import nbd, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
h = nbd.NBD()
h.connect_uri(sys.argv[1])
open(sys.argv[2], "w").close()
signal.sigwait({signal.SIGUSR1})
h.shutdown()
P
connect() {
    rm -f "$dir/connected"
    "$python" "$dir/client.py" "$uri" "$dir/connected" &
    client=$!
    pids+=("$client")
    wait_for 10 test -e "$dir/connected"
}
leave() { kill -USR1 "$client"; wait "$client" || fail "the client ended with $?"; }

# refuses "WHAT" COMMAND...: a QEMU program does not get the lock.
refuses() {
    local what=$1
    shift
    ! timeout 20 "$@" >"$dir/out" 2>&1 || fail "not refused: $*"
    grep -q "Failed to get $what lock" "$dir/out" ||
        fail_with "$dir/out" "the error does not name the $what lock: $*"
}
works() { timeout 20 "$@" >"$dir/out" 2>&1 || fail_with "$dir/out" "failed: $*"; }
qemu_writes() { works qemu-io -f raw -c "write -P $1 1M 64k" "$target"; }
refuses_writers() {
    refuses '"write"' qemu-io -f raw -c 'write 0 512' "$target"
    refuses '"write"' qemu-img resize -f raw "$target" 8M
    refuses '"write"' qemu-img bench -w -c 1 -f raw "$target"
    refuses '"write"' qemu-nbd -f raw -k "$dir/refused.sock" "$target"
}

# serve NAME ARGUMENTS...: starts one of several servers and selects it.  use NAME: selects a server
# for connect, client_is_refused and stop.
declare -A server
serve() {
    start "$@"
    server[$1]=$pid
}
use() { select_server "$1" "${server[$1]}"; }
end() { use "$1" && stop; }

# client_is_refused WHAT [NAME]: the server refuses a client and logs the reason in one line.
client_is_refused() {
    local name=${2:-$target} before
    local reason="in use by another program, which excludes serving it read-write (locking=off"
    before=$(grep -c 'error: .*in use by' "$log") || true
    ! nbdinfo --size "$uri" >"$dir/out" 2>&1 || fail "not refused: $1"
    grep "error: $name: $reason" "$log" >"$dir/out" ||
        fail_with "$log" "the reason is not in the log: $1"
    [ $(($(grep -c 'error: .*in use by' "$log") - before)) = 1 ] ||
        fail_with "$log" "not exactly one line for: $1"
}
serves() { works nbdinfo --size "$uri"; }

say "without a client there is no lock"
serve writer "$target"
qemu_writes 1

say "with a client, QEMU's writers are refused; its readers may read if they share"
connect
refuses_writers
refuses 'shared "write"' qemu-img convert -f raw -O raw "$target" "$dir/copy.img"
works qemu-img convert -U -f raw -O raw "$target" "$dir/copy.img"
works qemu-img info -U -f raw "$target"
works qemu-io -r -U -f raw -c 'read -P 1 1M 64k' "$target"

say "a second read-write server is refused; a read-only one and one with locking=off are not"
serve second "$target"
client_is_refused "a second writer"
serve reader -r "$target"
serves
serve reader2 -r "$target" locking=on
serves
end reader2
serve off "$target" locking=off
works qemu-io -f raw -c 'write -P 2 2M 64k' "$uri"
end off
use writer
serves

say "another name of the same image"
if [ "$kind" = file ]; then ln "$target" "$dir/other"; else ln -s "$target" "$dir/other"; fi
refuses '"write"' qemu-io -f raw -c 'write 0 512' "$dir/other"
serve other "$dir/other"
client_is_refused "another name" "$dir/other"
end other

say "the lock ends with the last client, and a server without clients stands in nobody's way"
leave
# nbdkit closes the client's socket before it closes the image.
can_write() { qemu-io -f raw -c "write -P $1 1M 64k" "$target" >"$dir/out" 2>&1; }
wait_for 10 can_write 3
use second
works qemu-io -f raw -c 'read -P 3 1M 64k' "$uri"
end second
use writer
connect

say "the lock of a killed server is gone"
kill -9 "$pid" "$client"
wait "$pid" "$client" 2>/dev/null || true
qemu_writes 4
use reader
works qemu-io -r -f raw -c 'read -P 4 1M 64k' "$uri"
end reader

# A QEMU program holds the lock and the server wants it.
hold_with_nbd() {
    qemu-nbd -t -f raw -k "$dir/qemu.sock" --fork --pid-file="$dir/qemu.pid" "$target"
    holder=$(cat "$dir/qemu.pid")
    pids+=("$holder")
}
release_nbd() {
    kill "$holder"
    wait_for 10 ended "$holder"
}
hold_with_io() {
    mkfifo "$dir/commands"
    qemu-io -f raw "$target" <"$dir/commands" >"$dir/answers" 2>&1 &
    holder=$!
    pids+=("$holder")
    exec 9>"$dir/commands"
    echo "write -P 5 1M 64k" >&9
    wait_for 10 grep -q 'wrote 65536' "$dir/answers"
}
release_io() {
    exec 9>&-
    wait "$holder" || fail "qemu-io ended with $?"
}

for by in nbd io; do
    say "while qemu-$by holds the lock, only read-only and locking=off servers accept clients"
    hold_with_$by
    serve "late-$by" "$target" 9>&-
    client_is_refused "an image that qemu-$by holds"
    client_is_refused "the same image again"
    serve "on-$by" "$target" locking=on 9>&-
    client_is_refused "an image that qemu-$by holds, with locking=on"
    end "on-$by"
    serve "reader-$by" -r "$target" 9>&-
    serves
    end "reader-$by"
    serve "off-$by" "$target" locking=off 9>&-
    works qemu-io -f raw -c 'write -P 6 3M 64k' "$uri"
    end "off-$by"
    release_$by
    say "once qemu-$by has ended, the server that refused clients accepts them"
    use "late-$by"
    works qemu-io -f raw -c 'read -P 6 3M 64k' -c 'write -P 7 0 64k' "$uri"
    end "late-$by"
done

say "locking=off takes no lock, so QEMU may write too"
serve unlocked "$target" locking=off
connect
qemu_writes 8
leave
end unlocked

say "dir=: the lock ends with the last client"
serve many dir="$(dirname "$target")"
uri="nbd+unix:///$(basename "$target")?socket=$dir/many.sock"
connect
first=$client
connect
refuses_writers
leave
refuses '"write"' qemu-io -f raw -c 'write 0 512' "$target"
client=$first
leave
unlocked() { qemu-io -f raw -c 'write -P 9 1M 64k' "$target" >"$dir/out" 2>&1; }
wait_for 10 unlocked
hold_with_nbd
client_is_refused "an export that qemu-nbd holds" "$(basename "$target")"
release_nbd
serves
end many

say "fd= takes the lock too"
serve inherited fd=7 7<>"$target"
connect
refuses '"write"' qemu-io -f raw -c 'write 0 512' "$target"
leave
end inherited
qemu_writes 10

say "the lock ends before the threads and the ring of the image do, which may take long"
nbdkit=(strace -f -qq -o "$dir/trace" -e trace=io_destroy -e "inject=io_destroy:delay_enter=2000000"
    nbdkit)
serve slow "$target" cache=none backend=libaio
connect
refuses_writers
leave
before=$EPOCHREALTIME
wait_for 10 unlocked
[ "$(milliseconds_since "$before")" -lt 1000 ] ||
    fail "the lock was held for $(milliseconds_since "$before") ms after the last client had left"
end slow
