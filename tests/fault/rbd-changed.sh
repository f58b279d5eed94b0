#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Others change an image while it is served, with requests in flight: a clone is resized,
# snapshotted, copied from its parent (flatten), changed in its features, and removed.  The clients'
# data stay right, each snapshot is one state of the image, and an image that is served is not
# removed.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/ceph.sh"
nbdkit --dump-plugin "$plugin" | grep -q '^aiodisk_rbd=yes' || skip "the plugin has no Ceph"
start_ceph

# A parent with data, holes, and half an object at its end.
head -c 40M /dev/urandom >"$dir/parent"
truncate -s 62M "$dir/parent"
head -c 500K /dev/urandom >>"$dir/parent"
rbd import --no-progress "$dir/parent" rbd/parent
rbd snap create --no-progress rbd/parent@base
rbd clone --rbd-default-clone-format 2 rbd/parent@base rbd/image

start server rbd=rbd/image "$@"
"$python" "$here/rbd-changed.py" "$socket" "$dir/parent" || fail_with "$log" "rbd-changed.py failed"
stop
say "what was written is in the image"
rbd export --no-progress rbd/image - | cmp - "$dir/parent.model"

say "an image without a lock can be removed while it is served: an error, and no hang"
rbd create rbd/simple --size 8M --image-feature layering
start simple rbd=rbd/simple locking=off
"$python" "$here/rbd-changed.py" "$socket" removed
stop
