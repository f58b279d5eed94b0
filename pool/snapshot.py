#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes a core file of a running process without stopping the process.

    pool/snapshot.py PID CORE
    gdb -batch /proc/PID/exe CORE -x pool/gdb.py -ex aiodisk-pool

A debugger has to stop every thread, and the kernel does not stop a thread in uninterruptible sleep
(state D): gdb -p then waits for as long as the thread does.  Threads of a disk server that hang are
nearly always in that state.  So this script uses no ptrace(2).  It reads the memory from
/proc/PID/mem, and each thread's stack pointer and program counter from /proc/PID/task/TID/syscall,
which the kernel gives for every thread that sleeps in a system call.

The price: the other registers are not known, so gdb cannot show every variable, and a thread that
runs at that moment has no backtrace.  The threads are not stopped, so the memory of a busy process
is not consistent; that of a hanging process is.  x86-64 only.  Needs the permission to trace the
process (the same user, or root).
"""

import os
import struct
import sys

PAGE = 4096
CHUNK = 256 * PAGE
ELF_HEADER, PROGRAM_HEADER = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
ET_CORE, EM_X86_64, PT_LOAD, PT_NOTE, PN_MAX = 4, 62, 1, 4, 0xFFFF
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV = 1, 3, 6

# struct user_regs_struct of x86-64: places of the registers in /proc/PID/task/TID/syscall.
REGISTERS = 27
RIP, RSP, ORIG_RAX = 16, 19, 15
ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi, rsi, rdx, r10, r8, r9


def read(path):
    with open(path, "rb") as file:
        return file.read()


def note(kind, content):
    """One ELF note of the owner CORE."""
    padding = b"\0" * (-len(content) % 4)
    return struct.pack("<III8s", 5, len(content), kind, b"CORE") + content + padding


def registers_of(task):
    """The registers of a thread that sleeps in a system call; zeros for one that runs."""
    registers = [0] * REGISTERS
    words = read(f"{task}/syscall").split()
    if words[0] == b"running":
        return registers
    # NUMBER ARGUMENTS... SP PC; for a thread that sleeps outside a system call: -1 SP PC.
    registers[ORIG_RAX] = int(words[0]) & 0xFFFFFFFFFFFFFFFF
    registers[RSP], registers[RIP] = int(words[-2], 16), int(words[-1], 16)
    for place, word in zip(ARGUMENTS, words[1:-2]):
        registers[place] = int(word, 16)
    return registers


def thread_note(pid, tid):
    """struct elf_prstatus: pid at 32, registers at 112."""
    registers = registers_of(f"/proc/{pid}/task/{tid}")
    layout = struct.Struct(f"<32sI76s{REGISTERS}Q2I")
    return note(NT_PRSTATUS, layout.pack(b"", tid, b"", *registers, 0, 0))


def process_note(pid):
    """struct elf_prpsinfo: pid at 24, program at 40, arguments at 56."""
    program = read(f"/proc/{pid}/comm").strip()[:15]
    arguments = read(f"/proc/{pid}/cmdline").replace(b"\0", b" ")[:79]
    return note(NT_PRPSINFO, struct.pack("<24sI12s16s80s", b"", pid, b"", program, arguments))


def mappings(pid):
    """(start, end, flags) of every readable mapping; flags as in an ELF program header."""
    for line in read(f"/proc/{pid}/maps").decode().splitlines():
        bounds, modes, *rest = line.split()
        if modes[0] == "r" and rest[-1] not in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            yield start, end, 4 | 2 * (modes[1] == "w") | (modes[2] == "x")


def copy(memory, start, end, core):
    """Copies the memory to the core file's end; pages of zeros become a hole."""
    offset = core.tell()
    for address in range(start, end, CHUNK):
        size = min(CHUNK, end - address)
        try:
            data = os.pread(memory, size, address)
        except OSError:  # a mapping without pages behind it, as past the end of a mapped file
            data = b""
        if data.strip(b"\0"):
            core.seek(offset + address - start)
            core.write(data)
    core.seek(offset + end - start)


def write_core(pid, core):
    tids = sorted(int(tid) for tid in os.listdir(f"/proc/{pid}/task"))
    # gdb selects the thread of the first note.
    notes = process_note(pid) + b"".join(thread_note(pid, tid) for tid in tids)
    notes += note(NT_AUXV, read(f"/proc/{pid}/auxv"))
    maps = list(mappings(pid))
    if len(maps) + 1 >= PN_MAX:
        sys.exit(f"snapshot.py: {pid}: {len(maps)} mappings are too many for a core file")

    headers_end = ELF_HEADER.size + PROGRAM_HEADER.size * (len(maps) + 1)
    data = -(-(headers_end + len(notes)) // PAGE) * PAGE
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    core.write(ELF_HEADER.pack(ident, ET_CORE, EM_X86_64, 1, 0, ELF_HEADER.size, 0, 0,
                               ELF_HEADER.size, PROGRAM_HEADER.size, len(maps) + 1, 0, 0, 0))
    core.write(PROGRAM_HEADER.pack(PT_NOTE, 0, headers_end, 0, 0, len(notes), len(notes), 4))
    for start, end, flags in maps:
        size = end - start
        core.write(PROGRAM_HEADER.pack(PT_LOAD, flags, data, start, 0, size, size, PAGE))
        data += size
    core.write(notes)

    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    core.seek(-(-core.tell() // PAGE) * PAGE)
    for start, end, _ in maps:
        copy(memory, start, end, core)
    core.truncate(core.tell())


def main():
    if len(sys.argv) != 3 or not sys.argv[1].isdecimal():
        sys.exit("usage: snapshot.py PID CORE")
    if os.uname().machine != "x86_64":
        sys.exit(f"snapshot.py: {os.uname().machine} is not supported, only x86_64")
    try:
        # The core file holds the memory of the process: nobody else may read the file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(os.open(sys.argv[2], flags, 0o600), "wb") as core:
            write_core(int(sys.argv[1]), core)
    except OSError as error:
        sys.exit(f"snapshot.py: {error.filename or sys.argv[1]}: {error.strerror}")


main()
