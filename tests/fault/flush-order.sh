#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# No flush is answered before the writes before it are durable.
#
# flush-order.sh PARAMETERS...
. "$(dirname "$0")/../lib/functions.sh"
. "$source_root/tests/lib/logged-disk.sh"

make_logged_disk 64M
start ordered "$logged" "$@"
"$python" "$here/flush-order.py" "$uri" "$write_log"
stop
