#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The section "COMING FROM NBDKIT FILE OR QEMU-NBD" of the man page: it has every option of the
# qemu-nbd that is installed, every parameter of nbdkit's file plugin is a parameter here, and what
# the section says to write does what the option does.
. "$(dirname "$0")/../lib/functions.sh"
cd "$dir"
pod=$source_root/plugin/nbdkit-aiodisk-plugin.pod
sed -n '/^=head1 COMING FROM/,/^=head1 NOTES/p' "$pod" >page
head -c 4M /dev/urandom >disk.img

say "every option is in the section"
mapfile -t options < <(qemu-nbd --help | grep -oE '^ +(-[A-Za-z], )?--[a-z-]+' | sed 's/^ *//')
[ ${#options[@]} -gt 25 ] || fail "qemu-nbd --help lists these options only: ${options[*]}"
for option in "${options[@]}"; do
    grep -q -- "^ .*$option\b" page || fail "the section does not have: $option"
done
mapfile -t keys < <(nbdkit --dump-plugin "$plugin" | sed -n 's/^aiodisk_\(.*\)=.*/\1/p')
for key in file dir fd dirfd cache fadvise; do
    grep -q "^ .*\b$key=" page || fail "the section does not have: $key="
done
[[ " ${keys[*]} " = *" fadvise "* ]] || fail "--dump-plugin does not have fadvise: ${keys[*]}"

# on WORDS...: the section has the words in one row, or at the end of the row before; starts a
# server with them in place of the option.  Words in upper case are replaced by their values.
declare -A value=([OFFSET]=1M [SIZE]=2M [N]=1 [NAME]=disk [TEXT]='a disk' [FILE]=nbdkit.log
    [MODE]=ignore)
on() {
    local word arguments=()
    grep -qE -- "^ .* $*([;, ]|$)" page || fail "the section does not say: $*"
    for word; do
        if [[ $word =~ ^(.*[=:])?([A-Z]+)$ ]]; then
            word=${BASH_REMATCH[1]}${value[${BASH_REMATCH[2]}]}
        fi
        arguments+=("$word")
    done
    say "${arguments[*]}"
    start server "${arguments[@]}" disk.img
}
# python_client: runs the program on stdin with a handle `h` on the selected server.
python_client() {
    { printf 'import nbd, os, sys\nh = nbd.NBD()\nh.connect_uri(sys.argv[1])\n' && cat; } >client.py
    "$python" client.py "$uri" || fail "the client failed: $*"
}

on --filter=offset offset=OFFSET range=SIZE
nbdcopy "$uri" copy
cmp copy <(tail -c +$((1 + (1 << 20))) disk.img | head -c 2M) || fail "wrong bytes"
stop

on --filter=cow
before=$(checksum disk.img)
qemu-io -f raw -c 'write 0 1M' -c flush "$uri" >out || fail_with out "qemu-io failed"
[ "$(checksum disk.img)" = "$before" ] || fail "the image has changed"
stop

on --filter=fua fuamode=force
python_client <<'P'
h.pwrite(b"x" * 4096, 0)
P
stop
grep -q 'aiodisk: pwrite count=4096 offset=0 fua=1' "$log" || fail_with "$log" "no write with FUA"
on --filter=fua fuamode=discard
python_client <<'P'
h.pwrite(b"y" * 4096, 0, nbd.CMD_FLAG_FUA)
h.flush()
P
stop
grep -q 'aiodisk: pwrite count=4096 offset=0 fua=0' "$log" && ! grep -q 'aiodisk: flush' "$log" ||
    fail_with "$log" "a FUA or a flush has reached the plugin"

on --filter=limit limit=N
python_client <<'P'
other = nbd.NBD()
try:
    other.connect_uri(sys.argv[1])
    sys.exit("a second client is served")
except nbd.Error:
    pass
P
stop

on --filter=exitlast
nbdinfo --size "$uri" >out
wait_for 20 ended "$pid"

on --filter=exportname exportname=NAME exportname-strict=true
nbdinfo --size "nbd+unix:///disk?socket=$socket" >out
! nbdinfo --size "nbd+unix:///other?socket=$socket" 2>out || fail "another name is accepted"
stop
on --filter=exportname exportdesc=fixed:TEXT
[ "$(nbdinfo --json "$uri" | jq -r '.exports[0].description')" = "a disk" ] ||
    fail "not the description"
stop

on --filter=log logfile=FILE
python_client <<'P'
h.zero(65536, 0)
P
stop
grep -q ' Zero .*count=0x10000' nbdkit.log || fail_with nbdkit.log "no line about the zero request"

for backend in $(working_backends); do
    case $backend in
    libaio) words=(backend=libaio cache=none) ;;
    *) words=("backend=$backend") ;;
    esac
    on "${words[@]}"
    nbdcopy "$uri" copy
    cmp copy disk.img || fail "wrong bytes"
    stop
done
for words in cache=default cache=none discard=MODE; do
    on $words
    nbdcopy "$uri" copy
    cmp copy disk.img || fail "wrong bytes"
    stop
done
value[MODE]=unmap
on detect-zeroes=MODE
stop

say "the example"
mapfile -t example < <(sed -n '/^For example/,/^=/{/^ /p}' page)
[[ ${example[0]} = " qemu-nbd "* ]] && [[ ${example[1]} = " nbdkit "* ]] || fail "no example"
for i in 0 1; do
    command=${example[i]//\/run\/disk.sock/$dir/example.sock}
    command=${command/ aiodisk / $plugin }
    if [[ " $(working_backends) " != *" libaio "* ]]; then
        command=${command/--aio=native/} command=${command/backend=libaio/}
    fi
    rm -f example.sock
    # shellcheck disable=SC2086 # several words
    $command 2>err &
    pids+=($!)
    wait_for 20 test -S example.sock
    wait_for 20 nbdinfo "nbd+unix:///?socket=$dir/example.sock" >out
    nbdcopy "nbd+unix:///?socket=$dir/example.sock" copy
    cmp copy disk.img || fail "wrong bytes: $command"
    kill "${pids[-1]}"
    wait "${pids[-1]}" || true
done
