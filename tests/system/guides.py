# SPDX-License-Identifier: BSD-3-Clause
"""Makes shell scripts of the commands in README.md, plugin/GUIDES.md and the man pages.

guides.py SOURCE SET DIRECTORY

Writes DIRECTORY/NAME.sh for each part of the documents that belongs to the SET (quick, slow or
readme).  A script runs the blocks of its part in order, as they are printed, with `set -e`, and
checks what they did.  Every block is run unless a table gives a reason for not running it.  An
entry of a table that fits nothing in the documents is an error, so no table becomes stale.
"""
import os
import re
import sys

README, GUIDES = "README.md", "plugin/GUIDES.md"
MAN, TOP = "plugin/nbdkit-aiodisk-plugin.pod", "plugin/top/aiodisk-top.pod"

# Blocks that are no commands, by document, section and, if some blocks of it are, first line.
NO_COMMANDS = {
    (MAN, "SYNOPSIS"): "a grammar",
    (MAN, "SLOW REQUESTS"): "lines of a log; fault/slow-request.sh checks them",
    (MAN, "METRICS"): "names of metrics; system/metrics.sh checks them",
    (MAN, "SERVICE"): "for systemd; system/service.sh does the same",
    (MAN, "Images in another directory"): "lines of a unit; system/service.sh",
    (MAN, "Block devices"): "lines of a unit; system/service.sh",
    (MAN, "backend=io_uring", r"SystemCallFilter|ARGUMENTS"): "lines of a unit; system/service.sh",
    (MAN, "nbdkit-file-plugin(1)"): "a table of options",
    (MAN, "qemu-nbd(8)", r"filename|-|without"): "a table of options",
    (MAN, "Cost of an open image"): "a table of figures",
    (TOP, "SYNOPSIS"): "a grammar",
    (TOP, "JSON OUTPUT"): "output; system/top.sh checks it",
}

# Commands that are not run: document, pattern of the first line, reason.
NOT_RUN = [
    (README, r"\./check", "system/bare-root.sh runs it"),
    (GUIDES, r"virsh define ", "needs a running libvirtd"),
    (README, r"nbdkit .*aiodisk rbd", "system/rbd.sh does the same on a cluster"),
    (MAN, r"nbdkit -U /run/disk.sock aiodisk rbd=", "system/rbd.sh does the same on a cluster"),
]

# Commands that stay in the foreground.  They run in the background here, in a terminal, and the
# condition says when the next command may follow.  $log is the file with their output.
FOREGROUND = [
    (README, r"\./serve ", "grep -q ^Ctrl-C $log"),
    (README, r"plugin/demo/guest ",
     "grep -q 'The disk is /dev/vda, 2097152 sectors' $log; stop_it"),
    (README, r"plugin/demo/prometheus ", "grep -q 'op=.write.*=> [0-9.]* @' $log; stop_it"),
    (README, r"plugin/demo/top ", "grep -q '(default)' $log; stop_it"),
    (README, r"qemu-system-x86_64 ", "connected /tmp/disk.sock; stop_it"),
    (MAN, r"qemu-nbd -t ", "nbdinfo 'nbd+unix:///?socket=/run/disk.sock'; stop_it"),
    (MAN, r"nbdkit -f -U ", "nbdinfo 'nbd+unix:///?socket=/run/disk.sock'"),
    (MAN, r"nbdkit -f -v ", "grep -q 'aiodisk: .*disk[.]img' $log"),
    (MAN, r"qemu-system-x86_64 ", "connected /run/disk.sock"),
    (TOP, r"aiodisk-top /run", "grep -q 'servers: 1 of 1' $log"),
]

# The set of a document or a section; the others are quick.
SETS = {
    (GUIDES, "Hotplug"): "slow",
    (GUIDES, "Compare with fio"): "slow",
    (GUIDES, "Metrics in Prometheus"): "slow",
}

# Paths that the sandbox of guides.sh does not make private.
PATHS = {"/dev/vg/guest": '"$LOOP"', "/var/lib/images": "images", "/dev/mapper": "mapper"}

# What exists before the first block of a section.
IMAGE = "truncate -s 64M disk.img"
BEFORE = {
    (MAN, "Serve every image in a directory, each under its file name"):
        "mkdir images; truncate -s 1M images/first.img",
    (MAN, "Serve a directory that the shell has opened"):
        "mkdir images; truncate -s 1M images/first.img",
    (MAN, "Serve a directory of symbolic links that lead anywhere"):
        'mkdir mapper; ln -s "$LOOP" mapper/guest',
    (TOP, "The exports whose oldest request is older than a second"):
        f"{IMAGE}; mkdir -p /run/aiodisk\n"
        "nbdkit -U /run/disk.sock aiodisk disk.img metrics=/run/aiodisk/disk.prom\n"
        "until_true test -e /run/aiodisk/disk.prom",
}

# What is true after a block, by document, section and number.  $out is the output of the block.
# Commands are separated by semicolons: `set -e` ignores the first of two that && connects.
AFTER = {
    (README, "See it work", 1): "[ -s compare.png ]; until_true fails ls -d /tmp/aiodisk-demo.*",
    (README, "Without the scripts", 1):
        "nbdinfo 'nbd+unix:///?socket=/tmp/direct.sock'; command -v aiodisk-top | grep /local/\n"
        "nbdkit -U /tmp/installed.sock aiodisk disk.img -r --run 'nbdinfo $uri'",
    (README, "Attach a disk to QEMU", 1): "grep -q 'virtual size: 1 GiB' $out",
    (README, "Benchmark with fio", 1): "grep -q 'err= 0' $out; grep -q qemu-nbd $out",
    (README, "Many disks from one server", 1):
        "grep -q 'export=\"guest2.img\"' $out; grep -q 'virtual size: 1 GiB' $out",
    (MAN, "Serve an image", 1): "nbdinfo nbd://localhost",
    (MAN, "Serve a block device without the page cache", 1):
        '[ $(nbdinfo --size nbd://localhost) = $(blockdev --getsize64 "$LOOP") ]',
    (MAN, "Serve every image in a directory, each under its file name", 1):
        "grep -q 'export=\"first.img\"' $out; grep -q 'export-size: 1048576' $out",
    (MAN, "Serve a descriptor that the shell has opened", 1): "nbdinfo nbd://localhost",
    (MAN, "Serve a directory that the shell has opened", 1): "nbdinfo nbd://localhost/first.img",
    (MAN, "Serve a directory of symbolic links that lead anywhere", 1):
        "nbdinfo nbd://localhost/guest",
    (MAN, "Use O_DIRECT below nbdkit's cache filter", 1): "nbdinfo nbd://localhost",
    (MAN, "Replies on unix sockets", 1): "nbdinfo 'nbd+unix:///?socket=/run/disk.sock'",
    (MAN, "DUMP-PLUGIN OUTPUT", 1): "grep -q ^aiodisk_backends= $out",
    (TOP, "Watch one server", 1): "until_true test -e /run/disk.prom",
    (GUIDES, "Attach to QEMU", 1): "until_true connected /tmp/disk.sock",
    (GUIDES, "Attach to QEMU", 2): "until_true connected_to_port 10809",
    (GUIDES, "Hotplug", 1): "until_true grep -q 'GUEST: ready' /tmp/guest.log",
    (GUIDES, "Hotplug", 2): "until_true grep -q 'GUEST: vdb appeared' /tmp/guest.log",
    (GUIDES, "Hotplug", 3): "until_true grep -q 'GUEST: vdb is gone' /tmp/guest.log",
    (GUIDES, "libvirt", 1): "grep -q 'guest.xml validates' $out",
    (GUIDES, "Convert with qemu-img", 1): "qemu-io -c 'write -P 7 3M 5M' guest.qcow2",
    (GUIDES, "Convert with qemu-img", 2):
        "qemu-img compare -F raw guest.qcow2 disk.img; grep -q 'Images are identical' $out",
    # The guest writes between the two backups.
    (GUIDES, "Back up a running machine", 1):
        "guest_writes() { plugin/demo/qmp /tmp/qmp.sock '{\"execute\": \"human-monitor-command\","
        ' "arguments": {"command-line": "qemu-io -d '
        '/machine/peripheral-anon/device[0]/virtio-backend \\"write -P \'"$1"\'\\""}}\'; }\n'
        "guest_writes '0x11 0 8M'; guest_writes '0x22 100M 1M'",
    (GUIDES, "Back up a running machine", 2):
        "cmp images/disk.img images/full.img; cp images/full.img kept\n"
        "[ $(tr -d '\\0' <kept | wc -c) = $((9 << 20)) ]; guest_writes '0x33 4M 1M'",
    (GUIDES, "Back up a running machine", 3):
        "cmp images/disk.img images/later.img; cmp images/full.img kept\n"
        "fails cmp -s images/full.img images/later.img",
    (GUIDES, "Mount with nbdfuse", 1):
        "debugfs -R 'cat /os-release' disk.img | cmp - /etc/os-release",
    (GUIDES, "A directory of links", 1):
        "qemu-io -f raw -c 'write -P 5 0 4k' 'nbd+unix:///sda?socket=/tmp/disk.sock'",
    (GUIDES, "A directory of links", 2):
        "grep -q 'export=\"sdb\"' $out; cmp storage/0451.img sda.raw\n"
        "[ $(tr -d '\\0' <sda.raw | wc -c) = 4096 ]",
    (GUIDES, "Compare with fio", 1): "[ $(grep -c 'err= 0' $out) = 2 ]",
    (GUIDES, "Compare with fio", 2): "[ -s comparison.png ]; grep -q nbdkit-file $out",
    (GUIDES, "Metrics in Prometheus", 2): "grep -q 'op=\"write\".*=> [0-9.]* @' $out",
    (GUIDES, "TLS", 1): "grep -q 'protocol: .*TLS' $out; grep -q 'virtual size: 256 MiB' $out",
    (GUIDES, "TLS", 2): "grep -q 'protocol: .*TLS' $out\n"
        "fails nbdinfo nbd://localhost:10810; fails nbdinfo nbd://localhost:10809",
}

used = set()


def look_up(table, key):
    """The entry of a table, which is then no stale one."""
    if key in table:
        used.add((id(table), key))
    return table.get(key)


def match(table, document, command):
    """The last field of the first row that matches the command."""
    for row in table:
        if row[0] == document and re.match(row[1], command):
            used.add((id(table), row))
            return row[2]
    return None


def no_command(document, section, block):
    """The reason why the block is no command, or None."""
    for key in NO_COMMANDS:
        if key[:2] == (document, section) and re.match((*key, "")[2], block):
            return look_up(NO_COMMANDS, key)
    return None


def blocks_of(document, text):
    """Yields (section, block): each run of indented lines, without the indentation."""
    indent, title = (" ", r"=(?:head\d|item) (.*)") if document.endswith(".pod") else \
        ("    ", r"##+ (.*)")
    section, block = "", []
    for line in text.splitlines() + [""]:
        if line.startswith(indent):
            block.append(line[len(indent):])
            continue
        if block:
            yield section, "\n".join(block)
            block = []
        heading = re.match(title, line)
        if heading:
            section = re.sub(r"\b[A-Z]<([^<>]*)>", r"\1", heading[1])


def script_of(document, block):
    """The lines of a script that run the block."""
    for path, private in PATHS.items():
        block = block.replace(path, private)
    result, lines = [], iter(block.splitlines())
    for line in lines:
        reason, ready = match(NOT_RUN, document, line), match(FOREGROUND, document, line)
        command = [line]
        while (reason or ready) and command[-1].endswith("\\"):
            command.append(next(lines))
        if reason:
            print(f"not run: {document}: {line.split('#')[0].strip()}: {reason}")
        elif ready:
            quoted = "\n".join(command).replace("'", "'\\''")
            ready, *then = ready.split("; ")
            result += [f"in_background '{quoted}'", f"ready \"{ready}\"", *then]
        else:
            result += command
    return result


def parts_of(source):
    """Yields (set, name, lines of the script)."""
    for document in (README, GUIDES, MAN, TOP):
        with open(os.path.join(source, document), encoding="utf-8") as f:
            text = f.read()
        parts = {}
        for section, block in blocks_of(document, text):
            if reason := no_command(document, section, block):
                print(f"not run: {document}: {section}: {reason}")
                continue
            part = parts.setdefault("" if document == README else section, [])
            if not part:
                part += [look_up(BEFORE, (document, section)) or
                         (IMAGE if document in (MAN, TOP) else "")]
            title = section.replace("'", "")
            number = sum(re.match(rf"block \d+ '{re.escape(title)}'", line) is not None
                         for line in part) + 1
            part.append(f"block {number} '{title}'")
            part += script_of(document, block)
            if check := look_up(AFTER, (document, section, number)):
                part += ["check", check]
        for section, part in parts.items():
            name = re.sub(r"[^a-z0-9]+", "-", f"{os.path.basename(document)} {section}".lower())
            yield "readme" if document == README else \
                look_up(SETS, (document, section)) or "quick", name.strip("-"), part


def main():
    source, wanted, directory = sys.argv[1:]
    for kind, name, lines in parts_of(source):
        if kind == wanted:
            with open(os.path.join(directory, name + ".sh"), "w", encoding="utf-8") as f:
                f.write("\n".join(lines) + "\n")
    for table in (NO_COMMANDS, NOT_RUN, FOREGROUND, SETS, BEFORE, AFTER):
        for key in table:
            if (id(table), key) not in used:
                sys.exit(f"guides.py: no document has what this entry describes: {key}")


main()
