#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What nbdkit's own tests test-fua and test-luks-copy check of the file plugin holds for this plugin
# too.  Below the fua filter the plugin gets the same requests as the file plugin in each mode, and
# an encrypted image that is written through the luks filter is what QEMU reads.
#
# nbdkit-tests.sh fua|luks PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
kind=$1
shift
parameters=("$@")
cd "$dir"

# requests NAME PLUGIN ARGUMENTS...: stores what the log filter saw of two clients, in NAME.
requests() {
    local name=$1 plugin=$2 fua
    start "$name" logfile="$dir/$name.requests" fua.img "${@:3}"
    for fua in '' -f; do
        qemu-io -f raw -t none -c flush -c "write $fua 0 64k" -c "write -z $fua 64k 64k" \
            "$uri" >out 2>&1 || fail_with out "qemu-io failed: $name"
    done
    stop
    # Without time, answers and sizes of blocks, which the plugins choose.
    sed -n 's/^[^ ]* [^ ]* \(connection=[0-9]* \(Write\|Zero\|Flush\|Trim\).* \.\.\.\).*/\1/p' \
        "$name.requests" | sed 's/ id=[0-9]*//' | sort >"$name"
    [ -s "$name" ] || fail_with "$name.requests" "the log filter saw nothing"
}

test_fua() {
    local n=0 mode
    truncate -s 1M fua.img
    for mode in "--filter=log --filter=fua" \
        "--filter=blocksize --filter=log --filter=fua fuamode=emulate maxdata=4k maxlen=4k" \
        "--filter=blocksize --filter=log --filter=fua fuamode=native maxdata=4k maxlen=4k" \
        "--filter=fua --filter=log fuamode=force"; do
        say "$mode"
        n=$((n + 1))
        # shellcheck disable=SC2086 # several words
        requests expected$n file $mode
        # shellcheck disable=SC2086
        requests found$n "$plugin" $mode "${parameters[@]}"
        diff expected$n found$n >diff || fail_with diff "other requests than with the file plugin"
    done
    ! grep -q fua=1 found1 || fail "fuamode=none: a request has FUA"
    [ "$(grep -c 'connection=1 Flush' found1)" -lt "$(grep -c 'connection=2 Flush' found1)" ] ||
        fail "fuamode=none: QEMU sent no flush in place of FUA"
    grep -q 'connection=2 .*fua=1' found3 || fail "fuamode=native: no request has FUA"
    ! grep -q fua=0 found4 || fail "fuamode=force: a request has no FUA"
    ! grep -q Flush found4 || fail "fuamode=force: the plugin got a flush"
}

secret=(--object secret,data=123456,id=sec0)
luks=driver=luks,file.filename=$dir/encrypted.img,key-secret=sec0

qemu_reads() { qemu-img convert --image-opts "${secret[@]}" "$luks" copy.img 2>out; }

test_luks() {
    say "an image that QEMU encrypted"
    # iter-time is in ms; the default of 2 s is for security.
    qemu-img create -q -f luks "${secret[@]}" -o key-secret=sec0,iter-time=10 encrypted.img 1M
    truncate -s 1M plain.img # qemu-img create leaves random data
    qemu-img convert --target-image-opts -n "${secret[@]}" plain.img "$luks"
    start luks --filter=luks passphrase=123456 encrypted.img "${parameters[@]}"
    nbdcopy "$uri" copy.img
    cmp plain.img copy.img || fail "the copy of an image of zeros has other bytes"
    "$python" - "$uri" plain.img <<'P'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
with open(sys.argv[2], "r+b") as plain:
    for length, offset in (65536, 0), (65536, 131072), (65536, 900 << 10), (1024, 77824):
        data = os.urandom(length)
        h.pwrite(data, offset)
        os.pwrite(plain.fileno(), data, offset)
    assert h.pread(1 << 20, 0) == os.pread(plain.fileno(), 1 << 20, 0)
h.flush()
h.shutdown()
P
    say "QEMU reads what was written, once the client has left"
    # nbdkit closes the client's socket before it closes the image, which holds the lock.
    wait_for 20 qemu_reads
    cmp plain.img copy.img || fail "QEMU reads other bytes"
    nbdcopy "$uri" copy.img
    cmp plain.img copy.img || fail "nbdcopy reads other bytes"
    stop
}

case $kind in
fua | luks) "test_$kind" ;;
*) fail "usage: nbdkit-tests.sh fua|luks PARAMETERS..." ;;
esac
