#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdkit refuses what the plugin cannot serve and every wrong parameter before any client connects:
# with exit status 1 and one line that names the file or the parameter.
. "$(dirname "$0")/../lib/functions.sh"
cd "$dir"
truncate -s 1M disk.img
mkfifo fifo
mkdir folder
touch empty.img

refused 'file: missing'
refused 'missing.img: cannot be opened: No such file' missing.img
refused 'file=: .*empty' file=
refused 'fifo: is a FIFO' fifo
refused '/dev/null: is a character device' /dev/null
refused 'folder/none: cannot be read as a directory: No such file' dir=folder/none
refused 'disk.img: cannot be read as a directory' dir=disk.img
refused 'colour=red: unknown parameter' disk.img colour=red
refused 'cache=fast: unknown value; allowed are: default, none' disk.img cache=fast
refused 'direct=yes: unknown value; allowed are: off, on' disk.img direct=yes
refused 'cache=none and direct=off contradict' disk.img cache=none direct=off
refused 'cache=default and direct=on contradict' disk.img direct=on cache=default
refused 'backend=magic: unknown value in this build; allowed are: auto, threads' disk.img \
    backend=magic
refused 'dispatch=never: unknown value' disk.img dispatch=never
refused 'locking=maybe: unknown value' disk.img locking=maybe
refused 'discard=off: unknown value; allowed are: unmap, ignore' disk.img discard=off
refused 'detect-zeroes=yes: unknown value; allowed are: off, on, unmap' disk.img \
    detect-zeroes=yes
refused 'detect-zeroes=unmap: contradicts discard=ignore' disk.img detect-zeroes=unmap \
    discard=ignore
refused 'fadvise=often: unknown value; allowed are: normal, random, sequential' disk.img \
    fadvise=often
refused 'symlinks=all: unknown value; allowed are: inside, anywhere, none' dir=folder symlinks=all
refused 'max-threads=0: out of range; allowed is 1 to 4096' disk.img max-threads=0
refused 'max-threads=4097: out of range' disk.img max-threads=4097
refused 'max-threads=99999999999999999999: out of range' disk.img max-threads=99999999999999999999
refused 'max-threads=many: not a number' disk.img max-threads=many
refused 'max-threads=: not a number' disk.img max-threads=
refused 'max-threads=-1: not a number' disk.img max-threads=-1
refused 'max-threads=8k: not a number' disk.img max-threads=8k
refused 'queue-depth=0: out of range' disk.img queue-depth=0
refused 'min-threads=9: more than max-threads=8' disk.img max-threads=8 min-threads=9
refused 'dispatch=pool: needs backend=threads' disk.img dispatch=pool backend=io_uring
refused 'only one of file=, dir=, fd=, dirfd=' disk.img dir=folder
refused 'only one of file=, dir=, fd=, dirfd=' disk.img file=disk.img
refused 'fd=77: Bad file descriptor' fd=77
refused 'fd=1: out of range' fd=1
refused 'fd=3: is a FIFO' fd=3 3<>fifo
refused 'fd=3: was opened for writing only' fd=3 3>>disk.img

say "metrics= replaces no file that holds anything but metrics, such as the image"
echo data >disk.img
refused 'metrics=.*disk.img: no server wrote this file, so it is not replaced' disk.img \
    metrics=disk.img
echo mine >m.prom.tmp
nbdkit -U - "$plugin" empty.img metrics=m.prom --run true 2>err || fail_with err "no server"
[ "$(cat disk.img m.prom.tmp)" = $'data\nmine' ] || fail "metrics= has replaced a file"
grep -q 'metrics=.*m.prom: not written: .* with .tmp' err || fail_with err "nothing about .tmp"

say "a file that the user of nbdkit cannot read is refused"
need_root "a server that runs as another user"
chmod 0 disk.img
chmod 755 "$dir"
cp "$plugin" plugin.so
status=0
setpriv --reuid=nobody --clear-groups nbdkit -f -U - ./plugin.so disk.img --run true 2>err ||
    status=$?
[ $status = 1 ] && [ "$(grep -c . err)" = 1 ] &&
    grep -q "disk.img: cannot be read by user $(id -u nobody), .*: Permission denied (.*mode 0000" \
        err ||
    fail_with err "an unreadable file: status $status"

say "an empty file is a disk of 0 bytes"
[ "$(nbdkit -U - "$plugin" empty.img --run 'nbdinfo --size "$uri"')" = 0 ] || fail "an empty file"
nbdkit -U - "$plugin" empty.img cache=none --run 'nbdcopy "$uri" null:'

say "cache= and direct= may both be given if they agree"
nbdkit -U - "$plugin" empty.img cache=none direct=on --run true
nbdkit -U - "$plugin" empty.img direct=off cache=default --run true
