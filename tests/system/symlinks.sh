#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# symlinks=: which symbolic links in the directory of dir= are exports.  Exactly the names that the
# server lists can be opened, and a client reads and writes the file that the link leads to.  With
# symlinks=anywhere the exports are those of nbdkit's file plugin, also for a directory of links
# like that of virt-v2v, and for links to block devices like those in /dev/mapper.
. "$(dirname "$0")/../lib/functions.sh"
need_root "a loop device"
cd "$dir"
mkdir exports exports/folder other
for file in exports/plain exports/folder/inner other/outer; do truncate -s 1M $file; done
truncate -s 1M device.img
make_loop "$dir/device.img"
mknod exports/node b "$(stat -c 0x%t "$loop")" "$(stat -c 0x%T "$loop")"
ln -s plain exports/in
ln -s folder/inner exports/in-folder
ln -s in exports/in-twice
ln -s ../other/outer exports/out
ln -s "$dir/other/outer" exports/absolute
ln -s ../other/back exports/in-by-out
ln -s ../exports/plain other/back
ln -s "$loop" exports/device
exec 8<>other/outer
ln -s /proc/self/fd/8 exports/descriptor
# These lead to nothing that can be served.
ln -s nowhere exports/dangling
ln -s endless exports/endless
ln -s folder exports/to-folder
ln -s /dev/null exports/null
mkfifo other/fifo
ln -s ../other/fifo exports/fifo

# serves EXPORT...: the selected server lists exactly these exports, and opens no other name.
serves() {
    local name
    printf '%s\n' "$@" | sort >expected
    timeout 20 nbdinfo --list --json "$uri" | jq -r '.exports[]."export-name"' | sort >listed
    cmp listed expected || fail "listed: $(paste -sd' ' listed); expected: $(paste -sd' ' expected)"
    for name in $(ls exports); do
        uri_of "$name"
        if grep -qx -- "$name" expected; then
            [ "$(timeout 20 nbdinfo --size "$export")" = $((1 << 20)) ] || fail "$name: not served"
        else
            ! timeout 20 nbdinfo "$export" >out 2>&1 || fail "$name: served, and not listed"
        fi
    done
}
uri_of() { export="nbd+unix:///$1?socket=$socket"; }

# writes_through EXPORT FILE: what a client writes to the export is in the file.
mark=0
writes_through() {
    mark=$((mark + 1))
    uri_of "$1"
    qemu-io -f raw -c "write -P $mark 4096 512" -c flush "$export" >out || fail_with out "$1"
    cmp -n 512 -i 4096:0 "$2" <(head -c 512 /dev/zero | tr '\0' "\\$mark") ||
        fail "$2 does not have what was written to $1"
}

inside=(plain node in in-folder in-twice)
say "symlinks=inside is the default"
start default exports
serves "${inside[@]}"
stop
start inside exports symlinks=inside
serves "${inside[@]}"
writes_through in-folder exports/folder/inner
stop

say "symlinks=none"
start none dir=exports symlinks=none
serves plain node
uri_of in
! nbdinfo "$export" >out 2>&1 || fail "a link is served"
grep -q 'error: .*in: is a symbolic link' "$log" || fail_with "$log" "no line names the link"
stop

say "symlinks=anywhere"
start anywhere dir=exports symlinks=anywhere
serves "${inside[@]}" out absolute in-by-out device descriptor
writes_through out other/outer
writes_through in-by-out exports/plain
writes_through device "$loop"
stop

say "the same exports as nbdkit's file plugin"
mv listed ours
# shellcheck disable=SC2016 # nbdkit sets $uri
timeout 20 nbdkit -U - file dir=exports --run 'nbdinfo --list --json "$uri"' |
    jq -r '.exports[]."export-name"' | sort >theirs
cmp ours theirs || fail "nbdkit file lists other exports: $(paste -sd' ' theirs)"
