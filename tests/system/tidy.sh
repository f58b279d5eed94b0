#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The rules of the house, so that reviews can talk about design.  tidy.sh SOURCE-DIRECTORY
set -euo pipefail
cd "$1"
status=0
complain() {
    echo "$*"
    status=1
}
# none_of WHAT GREP-ARGUMENTS...: nothing may match.
none_of() {
    local what=$1 found
    shift
    if found=$(grep -rnE "$@"); then complain "$what:" "$found"; fi
}

for header in pool/*.h backends/*.h plugin/*.h plugin/disk/*.h; do
    # shellcheck disable=SC2046 # several words
    echo "#include \"$header\"" | "${CC:-cc}" -std=c11 -D_GNU_SOURCE -I. -fsyntax-only -Wall -Wextra -Werror -x c - ||
        complain "$header does not compile alone"
done
none_of "pool/ knows neither disks nor nbdkit" '#include "(backends|plugin)/' pool
none_of "backends/ know no plugin" '#include "plugin/' backends
none_of "only plugin/ knows nbdkit" '#include <nbdkit' pool backends
none_of "only backends/io_uring.c knows liburing" --exclude=io_uring.c '#include <liburing' pool backends plugin
none_of "only backends/libaio.c knows libaio" --exclude=libaio.c '#include <libaio' pool backends plugin
none_of "nbdkit_error is called in plugin.c and config.c alone" --include=*.c --exclude=plugin.c --exclude=config.c \
    'nbdkit_error *\(' plugin pool backends
none_of "no thread is ever detached" 'pthread_detach|PTHREAD_CREATE_DETACHED' pool backends plugin
none_of "things left for later" 'TO''DO|FIX''ME' pool backends plugin fio-jobs serve check --exclude-dir=.git
for file in */*.[ch] */*/*.[ch] */*/*.sh */*/*.py serve check fio-jobs/compare; do
    [ "$(wc -l <"$file")" -le 500 ] || complain "$file is longer than 500 lines"
    head -2 "$file" | grep -q "SPDX-License-Identifier: BSD-3-Clause" || complain "$file does not name its licence at the top"
    ! grep -nE '^.{131,}$' "$file" || complain "$file has lines longer than 130"
done
for script in serve check .ci/* tests/*/*.sh; do bash -n "$script" || complain "$script does not parse"; done
exit $status
