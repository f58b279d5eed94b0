#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The rules of this source tree that a program can check, so that reviews can talk about design.
#
# tidy.sh SOURCE-DIRECTORY
#
# The test is skipped, after all other rules are checked, if clang-format-19 is not installed.
# ./check installs that package and sets AIODISK_CHECK, which makes its absence an error.
set -euo pipefail
export LC_ALL=C.UTF-8 # line widths count characters
cd "$1"
status=0
complain() {
    echo "$*"
    status=1
}
# none_of RULE GREP-ARGUMENTS...: no line may match.
none_of() {
    local rule=$1 found
    shift
    if found=$(grep -nHE "$@"); then complain "$rule:" "$found"; fi
}
# at_most_one RULE PATTERN: at most one file of the program may have a matching line.
at_most_one() {
    local found
    found=$(grep -lE "$2" "${program[@]}") || return 0
    [ "$(wc -l <<<"$found")" = 1 ] || complain "$1:" "$found"
}

# --- The files ---

# Git knows the files of the source.  Without git, build directories are left out by their name.
mapfile -t files < <(git -c safe.directory='*' ls-files --cached --others --exclude-standard \
    2>/dev/null | sort -u || true)
if [ ${#files[@]} = 0 ]; then
    mapfile -t files < <(find . -mindepth 1 \( -name .git -o -name '*build*' -type d \) -prune \
        -o -type f ! -name '*.img' -printf '%P\n' | sort)
fi
text=() sources=() c=() program=() scripts=() python=()
for file in "${files[@]}"; do
    [ -f "$file" ] || continue
    case $file in
    *.[ch] | *.sh | *.py | *.pml | *.bt | serve | check | .ci/* | plugin/demo/* | \
        fio-jobs/compare | */aiodisk-top)
        sources+=("$file")
        text+=("$file")
        ;;
    *.build | *.fio | *.pod | *.md | meson_options.txt | plugin/service/*) text+=("$file") ;;
    esac
    case $file in *.[ch]) c+=("$file") ;; esac
    case $file in pool/*.[ch] | backends/*.[ch] | plugin/*.[ch]) program+=("$file") ;; esac
    case $file in *.sh | serve | check | .ci/* | plugin/demo/[!q]*) scripts+=("$file") ;; esac
    case $file in *.py | fio-jobs/compare | */aiodisk-top | */qmp) python+=("$file") ;; esac
done
[ ${#program[@]} -gt 20 ] || complain "the list of the program's files is incomplete: ${program[*]}"

# --- Text ---

# A row of a Markdown table cannot be broken, and neither can a URL.
if wide=$(grep -nHE '^.{101,}$' "${text[@]}" | grep -vE '^[^:]*[.]md:[0-9]+: *[|]|https?://'); then
    complain "lines of more than 100 columns:" "$wide"
fi
for file in "${sources[@]}"; do
    [ "$(wc -l <"$file")" -le 500 ] || complain "$file has more than 500 lines"
done
for file in "${text[@]}"; do
    case $file in *.md | *.pod | meson_options.txt) continue ;; esac
    head -2 "$file" | grep -q "SPDX-License-Identifier: BSD-3-Clause" ||
        complain "$file does not name its licence in its first two lines"
done
none_of "trailing white space" '[[:space:]]+$' "${text[@]}"
none_of "things left for later" '\b(TO''DO|FIX''ME|XX''X)\b' "${text[@]}"
for folder in . pool backends plugin tests fio-jobs; do
    [ -f $folder/README.md ] || complain "$folder/README.md is missing"
done
for file in "${files[@]}"; do
    case $file in
    tests/*/*.[ch] | tests/*/*.sh | tests/*/*.py | tests/*/*.pml)
        grep -qF "${file##*/}" tests/README.md || complain "tests/README.md does not list $file"
        ;;
    esac
done
[ "$(wc -c <README.md)" -le 8400 ] || complain "README.md has more than 8400 bytes"

# --- The layers: plugin -> plugin/watch -> plugin/disk -> backends -> pool ---

for rule in "pool:pool" "backends:backends pool" "plugin/disk:plugin/disk backends pool" \
    "plugin/watch:plugin/watch plugin/disk backends pool" \
    "plugin:plugin plugin/watch plugin/disk backends pool"; do
    mapfile -t own < <(printf '%s\n' "${program[@]}" | grep -E "^${rule%:*}/[^/]*$")
    allowed=${rule#*:}
    if found=$(grep -nHE '^#include "' "${own[@]}" |
        grep -vE "#include \"(${allowed// /|})/[^/]*\""); then
        complain "${rule%:*} may include headers of these layers only: $allowed:" "$found"
    fi
done
mapfile -t without_nbdkit < <(printf '%s\n' "${files[@]}" | grep -E '[.][ch]$' |
    grep -vE '^plugin/[^/]*$')
none_of "only files directly in plugin/ include nbdkit's header" '#include <nbdkit' \
    "${without_nbdkit[@]}"
at_most_one "only one file includes liburing.h" '#include <liburing[.]h>'
at_most_one "only one file includes libaio.h" '#include <libaio[.]h>'
at_most_one "only one file includes rbd/librbd.h" '#include <rbd/librbd[.]h>'

# --- C ---

for header in "${c[@]}"; do
    case $header in *.h) ;; *) continue ;; esac
    echo "#include \"$header\"" |
        "${CC:-cc}" -std=c11 -D_GNU_SOURCE -I. -fsyntax-only -Wall -Wextra -Werror -x c - ||
        complain "$header does not compile alone"
done
mapfile -t no_errors < <(printf '%s\n' "${program[@]}" | grep -vE '^plugin/log[.]c$')
none_of "only log.c calls nbdkit_error and nbdkit_debug: it escapes control characters" \
    'nbdkit_v?(error|debug) *\(' "${no_errors[@]}"
none_of "no thread is ever detached" 'pthread_detach|PTHREAD_CREATE_DETACHED' "${c[@]}"
if command -v clang-format-19 >/dev/null; then
    clang-format-19 --dry-run --Werror "${c[@]}" || complain "clang-format-19 would change C files"
elif [ -n "${AIODISK_CHECK:-}" ]; then
    complain "clang-format-19 is not installed"
fi

# --- Scripts ---

for file in "${scripts[@]}"; do bash -n "$file" || complain "$file does not parse"; done
/usr/bin/python3 - "${python[@]}" <<'P' || complain "a Python file does not parse"
import ast, sys
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as f:
        ast.parse(f.read(), path)
P

[ $status = 0 ] || exit 1
if ! command -v clang-format-19 >/dev/null; then
    echo "skipped: clang-format-19 is not installed, so the format of C files was not checked;" \
        "all other rules hold"
    exit 77
fi
