#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# `meson install` under DESTDIR installs exactly what it should, what it installs works at its
# prefix, and `ninja uninstall` removes all of it.  The man pages pass podchecker and mandoc.
. "$(dirname "$0")/../lib/functions.sh"
: "${AIODISK_BUILD:?is not set: run the test through meson test, or set it to the build directory}"
command -v mandoc podchecker >/dev/null || skip "needs mandoc and podchecker"
cd "$dir"

# option NAME: the value of a meson option of the build.
option() {
    meson introspect "$AIODISK_BUILD" --buildoptions |
        jq -r --arg n "$1" '.[] | select(.name == $n).value'
}
prefix=$(option prefix)
plugins=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')

say "DESTDIR"
DESTDIR=$dir/root meson install -C "$AIODISK_BUILD" --no-rebuild >install.log 2>&1 ||
    fail_with install.log "meson install"
find root -type f -printf '/%P %m\n' | sort >found
units=$(pkg-config --variable=systemdsystemunitdir systemd) || units=''
users=$(pkg-config --variable=sysusersdir systemd) || users=''
if [ "$(option systemd)" = disabled ] || [ -z "$units" ]; then
    service=''
else
    service="$units/aiodisk@.service 644
$units/aiodisk@.socket 644
$users/aiodisk.conf 644
$prefix/share/doc/aiodisk/example.conf 644"
fi
grep . <<T | sort >expected
$service
$plugins/libnbdkit-corked.so 755
$plugins/nbdkit-aiodisk-plugin.so 755
$prefix/bin/aiodisk-top 755
$prefix/share/aiodisk/aiodisk_metrics.py 644
$prefix/share/man/man1/aiodisk-top.1 644
$prefix/share/man/man1/nbdkit-aiodisk-plugin.1 644
T
diff expected found >difference || fail_with difference "other files than expected"

say "the man pages"
for page in "root$prefix"/share/man/man1/*.1; do
    # What pod2man writes has long lines, which is a matter of style.
    mandoc -T lint -W warning "$page" >lint || fail_with lint "mandoc"
done
pods=("$source_root"/plugin/*.pod "$source_root"/plugin/*/*.pod)
podchecker "${pods[@]}" 2>lint || fail_with lint podchecker
version=$(meson introspect "$AIODISK_BUILD" --projectinfo | jq -r .version)
for page in "${pods[@]}"; do
    grep -qx "This page describes aiodisk $version." "$page" || fail "another version in $page"
done

say "aiodisk-top at its prefix"
"$python" "$source_root/tests/lib/fake_metrics.py" disk.prom 1 &
pids+=($!)
wait_for 20 test -e disk.prom
if [ "$(id -u)" = 0 ] && [ "$prefix" != /usr ] &&
    "$python" -c 'import rich, prometheus_client' 2>err; then
    # A private mount puts the files where they belong.
    mkdir -p "$prefix"
    unshare -m sh -ec 'mount --bind "$1" "$2"
        PATH=$2/bin:$PATH
        [ "$(command -v aiodisk-top)" = "$2/bin/aiodisk-top" ]
        aiodisk-top --version
        aiodisk-top --once disk.prom' - "root$prefix" "$prefix" >out || fail_with out "aiodisk-top"
    grep -qx "aiodisk-top $version" out || fail_with out "not version $version"
    grep -q '^disk0 ' out || fail_with out "no export"
fi

say "uninstall"
ninja -C "$AIODISK_BUILD" uninstall >uninstall.log 2>&1 || fail_with uninstall.log "ninja uninstall"
[ ! -e root ] || [ -z "$(find root -type f)" ] || fail "left: $(find root -type f)"

say "bash completes the parameters, by nbdkit's own script"
completions=$(pkg-config --variable=completionsdir bash-completion 2>/dev/null) ||
    completions=/usr/share/bash-completion/completions
if [ -e "$completions/nbdkit" ]; then
    # The package bash-completion has this function, and is not needed for anything else.
    _init_completion() { cur=${words[-1]} prev=${words[-2]}; }
    built=$plugin # the script has a variable `plugin`
    # shellcheck disable=SC2317
    nbdkit() { command nbdkit "${@/#aiodisk/$built}"; }
    # shellcheck source=/dev/null
    . "$completions/nbdkit"
    complete_words() {
        words=(nbdkit aiodisk "$1")
        local COMPREPLY=()
        # The script declares `words` itself.
        eval "$(declare -f _nbdkit | sed 's/local cur prev words cword split/local cur prev/')"
        _nbdkit || true # 1: nothing fits
        echo "${COMPREPLY[*]}"
    }
    [ "$(complete_words metrics)" = "metrics= metrics-server=" ] ||
        fail "metrics is completed to '$(complete_words metrics)'"
    command nbdkit "$plugin" nonsense=1 2>known || true
    known=$(sed -n 's/.*known are: //p' known | tr -d ,)
    for word in $known; do
        [[ $word != directory ]] || continue # the other spelling of dir
        [[ " $(complete_words "$word") " = *" $word= "* ]] || fail "$word= is not completed"
    done
    unset -f nbdkit
else
    say "skipped: nbdkit's completion script is not installed"
fi
