#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A fast zero that a block device cannot do changes nothing, not even in the page cache: data that
# were written and not yet flushed are read back, and are on the disk after the next flush.  The
# device is a loop device on ramfs, which cannot punch holes.
. "$(dirname "$0")/../lib/functions.sh"
need_root "mounts"
mkdir "$dir/ram"
mount -t ramfs aiodisk-test "$dir/ram"
mounts+=("$dir/ram")
truncate -s 32M "$dir/ram/backing"
make_loop "$dir/ram/backing"

for parameters in cache=default cache=none backend=io_uring dispatch=pool; do
    say "$parameters"
    start fast "$loop" $parameters
    "$python" - "$uri" "$loop" <<'P'
import errno, nbd, os, sys
MiB = 1 << 20
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"o" * MiB, 0)
h.flush()
h.pwrite(b"n" * MiB, 0)
try:
    h.zero(65536, 65536, nbd.CMD_FLAG_FAST_ZERO)
    sys.exit("the device can do a fast zero, so this test proves nothing")
except nbd.Error as e:
    assert e.errnum == errno.ENOTSUP, e
assert h.pread(MiB, 0) == b"n" * MiB, "the refused zero discarded data that were written before"
h.flush()
h.shutdown()
P
    stop
    [ "$(dd if="$loop" bs=1M count=1 iflag=direct status=none | tr -d n | wc -c)" = 0 ] ||
        fail "the data are not on the disk after the flush"
done
