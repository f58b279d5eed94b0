# SPDX-License-Identifier: BSD-3-Clause
"""A gdb command that shows what every event loop and worker pool of a process does.

    pool/snapshot.py PID CORE && gdb -batch /proc/PID/exe CORE -x pool/gdb.py -ex aiodisk-pool
    gdb -batch -p PID -x pool/gdb.py -ex aiodisk-pool

The first way also works while threads are stuck in the kernel (state D); the second one waits for
such threads, but knows every register.

`aiodisk-pool` prints each loop, each pool with its slots, lanes and workers, and each thread that
is inside the plugin, with what that thread waits for.  `aiodisk-pool EXPRESSION` prints one pool or
loop only: EXPRESSION is a struct pool * or struct loop *, or the address of a pool as a number.

The command finds loops and pools in three places: the variables of every thread's frames, the
static variables named in STATIC_ROOTS, and the structs these point to.  So the command works for
any number of pools, and in a test program.  The plugin must have been built with debug information,
which is this project's default.  The command only reads memory.
"""

import os
import re
import textwrap

import gdb

# The frames and variables that matter are those of these directories.
OUR_SOURCE = re.compile(r"(?:^|/)((?:pool|backends|plugin/disk|plugin)/[^/]+\.[ch])$")

# The structs that a frame's variables are searched for.
FRAME_STRUCTS = {
    "loop", "pool", "task", "request", "image", "range", "range_lock", "flush_set", "backend",
    "room",
}

# Static variables of the plugin that lead to pools, and the structs whose pointers are followed.
STATIC_ROOTS = ("images",)
FOLLOWED_STRUCTS = {"loop", "pool", "backend", "room", "image", "image_entry"}

# The function in which a thread waits for something of the image: what that is, and the function
# in which another thread holds the same thing.
WAITS = {
    "wait_for_slot": ("a flush descriptor", "sync_slot"),
    "write_in_turn": ("a write turn", "write_in_turn"),
    "run_alone": ("the fallocate lock", "run_alone"),
}

MOST_LISTED = 1000000  # a longer list is taken for a damaged one
LOWEST_ADDRESS = 4096  # a smaller one comes from a register that a snapshot does not have
MOST_PRINTED = 16      # tasks of one lane


def show(line):
    """Prints the line, broken at 100 columns."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    print("\n".join(textwrap.wrap(line, 100, subsequent_indent=indent, break_long_words=False,
                                  break_on_hyphens=False)))


# --- Values ---

def struct_tag(gdb_type):
    """The tag of a struct type, or None."""
    gdb_type = gdb_type.strip_typedefs()
    return gdb_type.tag if gdb_type.code == gdb.TYPE_CODE_STRUCT else None


def struct_at(tag, address):
    """The struct `tag` at the address, as a value."""
    pointer = gdb.lookup_type("struct " + tag).pointer()
    return gdb.Value(int(address)).cast(pointer).dereference()


def container_of(address, tag, member):
    """The struct `tag` whose member lies at the address, as a value."""
    for field in gdb.lookup_type("struct " + tag).fields():
        if field.name == member:
            return struct_at(tag, int(address) - field.bitpos // 8)
    raise gdb.GdbError(f"struct {tag} has no member {member}")


def address_of(value):
    return int(value.address)


def function_name(pointer):
    """The name of the function that the pointer points to."""
    block = gdb.block_for_pc(int(pointer)) if int(pointer) else None
    return str(block.function) if block and block.function else hex(int(pointer))


def enum_name(tag, value, prefix):
    """TASK_QUEUED of enum task_state, as `queued`."""
    for field in gdb.lookup_type("enum " + tag).fields():
        if field.enumval == int(value):
            return field.name.removeprefix(prefix).lower().replace("_", " ")
    return str(int(value))


def links(first):
    """The addresses of the struct links of a list, from the first on."""
    address = int(first)
    for _ in range(MOST_LISTED):
        if not address:
            return
        yield address
        address = int(struct_at("link", address)["next"])
    raise gdb.GdbError("a list does not end")


def lane_tasks(lane):
    """The queued tasks of a lane, oldest first."""
    address = int(lane["head"])
    for _ in range(MOST_LISTED):
        if not address:
            return
        task = struct_at("task", address)
        yield task
        address = int(task["next"])
    raise gdb.GdbError("a lane does not end")


def semaphore_value(semaphore):
    """The value of a sem_t: the low 32 bits of the first word (glibc, 64-bit systems)."""
    return int(semaphore["__align"]) & 0xFFFFFFFF


# --- Threads ---

class Frame:
    """One frame of a function of ours."""

    def __init__(self, frame, source):
        sal = frame.find_sal()
        self.function = str(frame.function())
        self.place = f"{source}:{sal.line}"
        self.structs = {}  # tag: pointers, in the order of declaration
        try:
            block = frame.block()
        except RuntimeError:
            return
        while block:
            for symbol in block:
                if symbol.is_argument or symbol.is_variable:
                    self._add(frame, symbol)
            if block.function:
                break
            block = block.superblock

    def _add(self, frame, symbol):
        """Notes the struct that the variable is or points to, unless the compiler dropped it."""
        gdb_type = symbol.type.strip_typedefs()
        is_pointer = gdb_type.code == gdb.TYPE_CODE_PTR
        tag = struct_tag(gdb_type.target() if is_pointer else gdb_type)
        if tag not in FRAME_STRUCTS:
            return
        try:
            value = symbol.value(frame)
            if value.is_optimized_out:
                return
            pointer = value if is_pointer else value.address
            if int(pointer) >= LOWEST_ADDRESS:
                self.structs.setdefault(tag, []).append(pointer)
        except (gdb.error, TypeError):  # the value is in a register, or cannot be computed here
            return


def read_line(path):
    """The first line of a file under /proc, or an empty one when the process is gone."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


class Thread:
    """One thread: our frames, innermost first, and the bounds of the stack."""

    def __init__(self, thread, pid):
        self.number = thread.num
        self.lwp = thread.ptid[1] or thread.ptid[2]
        self.proc = f"/proc/{pid}/task/{self.lwp}"
        self.name = thread.name or read_line(f"{self.proc}/comm") or "?"
        thread.switch()
        frame = gdb.newest_frame()
        self.innermost = frame.name() or "?"
        self.stack_low = self.stack_high = int(frame.read_register("sp"))
        self.frames = []
        while frame:
            self.stack_high = int(frame.read_register("sp"))
            symtab = frame.find_sal().symtab
            match = OUR_SOURCE.search(symtab.fullname()) if symtab else None
            if match and frame.function():
                self.frames.append(Frame(frame, match.group(1)))
            try:
                frame = frame.older()
            except gdb.error:
                break

    def __str__(self):
        return f"thread {self.number} (LWP {self.lwp}, {self.name})"

    def owns(self, address):
        """Whether the address lies on this thread's stack."""
        return self.stack_low <= int(address) < self.stack_high

    def is_in(self, function):
        return any(frame.function == function for frame in self.frames)

    def find(self, tag, function=None):
        """The innermost struct `tag` of the frames (of that function only), or None."""
        for frame in self.frames:
            if tag in frame.structs and function in (None, frame.function):
                return frame.structs[tag][0].dereference()
        return None

    def place(self):
        """The innermost function, and the kernel's where the process is there and not stopped."""
        kernel = read_line(f"{self.proc}/wchan")
        return self.innermost + (f" (kernel: {kernel})" if kernel not in ("", "0", "ptrace_stop")
                                 else "")

    def path(self):
        """The functions of ours, outermost first, and the line that is being executed."""
        names = " > ".join(frame.function for frame in reversed(self.frames))
        return f"{names} ({self.frames[0].place})"


class Process:
    """All threads, and the loops and pools that were found."""

    def __init__(self):
        selected = gdb.selected_thread()
        frame = gdb.selected_frame()
        inferior = gdb.selected_inferior()
        self.pid = inferior.pid
        threads = sorted(inferior.threads(), key=lambda thread: thread.num)
        self.threads = [Thread(thread, self.pid) for thread in threads]
        selected.switch()
        frame.select()
        self.loops, self.pools = {}, {}  # address: None, as ordered sets
        self._follow(self._roots())

    def _roots(self):
        for thread in self.threads:
            for frame in thread.frames:
                for tag, pointers in frame.structs.items():
                    if tag in FOLLOWED_STRUCTS:
                        yield from pointers
        for name in STATIC_ROOTS:
            symbol = gdb.lookup_static_symbol(name)
            if symbol:
                yield symbol.value()

    def _follow(self, roots):
        """Visits every struct that can be reached, and notes loops and pools."""
        pending, visited = list(reversed(list(roots))), set()
        while pending:
            value = pending.pop()
            gdb_type = value.type.strip_typedefs()
            try:
                if gdb_type.code == gdb.TYPE_CODE_PTR:
                    tag, address = struct_tag(gdb_type.target()), int(value)
                    if tag not in FOLLOWED_STRUCTS or not address or (tag, address) in visited:
                        continue
                    visited.add((tag, address))
                    if tag == "loop":
                        self.loops[address] = None
                        continue
                    if tag == "pool":
                        self.pools[address] = None
                    value = value.dereference()
                    value.fetch_lazy()
                elif gdb_type.code != gdb.TYPE_CODE_STRUCT:
                    continue
                pending += [value[field] for field in value.type.strip_typedefs().fields()]
            except gdb.error:  # a variable without a value yet
                continue

    def owner(self, address):
        """The thread on whose stack the address lies, or None."""
        return next((thread for thread in self.threads if thread.owns(address)), None)

    def descriptor(self, fd):
        """The descriptor with the file's name, where the process is alive on this machine."""
        try:
            return f"fd {int(fd)} ({os.readlink(f'/proc/{self.pid}/fd/{int(fd)}')})"
        except OSError:
            return f"fd {int(fd)}"


# --- What is printed of a request, a task ---

def describe_request(process, request):
    """`write of 4096 bytes at 8192, fd 9 (/images/a.img)`"""
    op = enum_name("request_op", request["op"], "REQUEST_")
    if op == "call":
        return f"call of {function_name(request['call'])}, {process.descriptor(request['fd'])}"
    extent = "" if op == "fdatasync" else f" of {int(request['length'])} bytes " \
                                          f"at {int(request['offset'])}"
    fua = ", FUA" if int(request["flags"]) & 1 and op == "write" else ""
    return f"{op}{extent}{fua}, {process.descriptor(request['fd'])}"


def describe_task(process, task):
    """The function that the task runs, and the request where backends/request.c made the task."""
    name = function_name(task["run"])
    if name == "perform_task":
        return describe_request(process, container_of(address_of(task), "request", "task"))
    return f"task {address_of(task):#x}, {name}"


def describe_running(process, thread):
    """What a worker, or a caller in a slot, runs: the task, or else the request."""
    task, request = thread.find("task"), thread.find("request")
    if task:
        return describe_task(process, task)
    return describe_request(process, request) if request else "a task"


def task_state(process, task):
    """Where the task of a waiting pool_run caller is."""
    state = enum_name("task_state", task["state"], "TASK_")
    lane = enum_name("pool_lane", task["lane"], "POOL_")
    if state == "queued":
        token = "with a token" if task["has_token"] else "no token"
        return f"queued in the {lane} lane, {token}"
    for thread in process.threads:
        running = thread.is_in("worker_main") and thread.find("task")
        if running and address_of(running) == address_of(task):
            return f"run by worker thread {thread.number}"
    return state


# --- The loop ---

def print_loop(process, address):
    loop = struct_at("loop", address)
    thread = next((t for t in process.threads if t.is_in("loop_main") and t.find("loop")
                   and address_of(t.find("loop")) == address), None)
    asleep = "asleep in epoll_wait" if loop["asleep"] else "awake"
    stopping = ", stopping" if loop["stopping"] else ""
    show(f"loop {address:#x}, {thread or 'no thread found'}: {asleep}{stopping}")
    # The stack is newest first, the queue oldest first.
    scheduled = list(links(loop["ready"]["oldest"]))
    scheduled += reversed(list(links(loop["scheduled"]["newest"])))
    names = [function_name(container_of(link, "bh", "link")["fn"]) for link in scheduled]
    timers = 0
    timer = loop["timers"]
    while int(timer):
        timers += 1
        timer = timer.dereference()["next"]
    show(f"  scheduled bottom halves: {', '.join(names) or 'none'}; armed timers: {timers}")
    if thread and not loop["asleep"]:
        show(f"  runs {thread.path()}")


# --- The pool ---

def print_lane(process, pool, index):
    lane = pool["lanes"][index]
    name = enum_name("pool_lane", index, "POOL_")
    most = int(pool["max_threads"])
    share = most if name == "fast" else max(1, most // 2)
    show(f"  {name} lane: {int(lane['running'])} running + {int(lane['granted'])} with a token, "
          f"of at most {share}; {int(lane['queued'])} queued")
    for position, task in enumerate(lane_tasks(lane)):
        if position == MOST_PRINTED:
            show(f"    and {int(lane['queued']) - MOST_PRINTED} more")
            break
        owner = process.owner(task["waiter"]) if int(task["waiter"]) else None
        waiter = f"thread {owner.number} waits" if owner else "nobody waits"
        token = "token" if task["has_token"] else "no token"
        show(f"    #{int(task['sequence'])}, {token}: {describe_task(process, task)}; {waiter}")


def print_workers(process, address):
    """The pool's workers, and the pool_run callers that run their own task in a slot."""
    for thread in process.threads:
        worker = thread.is_in("worker_main")
        running = thread.is_in("pool_run_and_complete" if worker else "run_in_own_slot")
        pool = thread.find("pool")
        if not (worker or running) or not pool or address_of(pool) != address:
            continue
        name = f"  {'worker' if worker else 'caller'} {thread}"
        if running:
            show(f"{name} runs {describe_running(process, thread)}, in {thread.place()}")
        elif thread.is_in("wait_for_token"):
            show(f"{name} is idle: waits for a token")
        else:
            show(f"{name} is in {thread.path()}")


def print_pool(process, address):
    pool = struct_at("pool", address)
    ending = ", stopping" if pool["stopping"] else ", closing" if pool["closing"] else ""
    helping = "callers may run their tasks" if pool["helping"] else "only workers run tasks"
    show(f"pool {address:#x} on loop {int(pool['loop']):#x}{ending}: {helping}")
    show(f"  slots: {int(pool['running'])} running ({int(pool['helpers'])} by callers) + "
          f"{int(pool['granted'])} with a token, of at most {int(pool['max_threads'])}; "
          f"{int(pool['queued'])} queued, {int(pool['undelivered'])} not delivered")
    show(f"  workers: {int(pool['threads'])} ({int(pool['starting'])} starting, "
          f"{int(pool['idle'])} idle), kept when idle: {int(pool['min_threads'])}")
    show(f"  semaphore: {semaphore_value(pool['tokens'])}, surplus tokens: {int(pool['surplus'])}")
    if pool["spawn_blocked"]:
        retry = "armed" if pool["retry_armed"] else "not armed"
        show(f"  the last pthread_create failed; the retry timer is {retry}")
    for index in range(2):
        print_lane(process, pool, index)
    print_workers(process, address)


# --- Who waits for what ---

def print_range_wait(process, thread):
    """The older ranges that the thread's range conflicts with, and their threads."""
    mine, lock = thread.find("range", "range_acquire"), thread.find("range_lock", "range_acquire")
    if not mine or not lock:
        return
    show(f"    waits for the range lock of [{int(mine['start'])}, {int(mine['end'])})")
    other = lock["first"]
    while int(other) and int(other) != address_of(mine):
        overlaps = other["start"] < mine["end"] and mine["start"] < other["end"]
        if overlaps and (other["exclusive"] or mine["exclusive"]):
            verb = "awaits" if other["waiting"] else "holds"
            show(f"      {process.owner(other) or hex(int(other))} {verb} "
                  f"[{int(other['start'])}, {int(other['end'])})")
        other = other["next"]


def print_image_wait(process, thread):
    """What of the image the thread waits for, and the threads that hold the same."""
    what, holding = WAITS[thread.frames[0].function]
    image = thread.find("image")
    holders = []
    for other in process.threads:
        # A thread that is deeper in the function than the waiting one holds what the latter wants.
        if other.is_in(holding) and other.frames[0].function != thread.frames[0].function:
            theirs = other.find("image")
            if theirs and image and address_of(theirs) == address_of(image):
                holders.append(str(other.number))
    show(f"    waits for {what}; held by thread {', '.join(holders) or '?'}")


def print_thread(process, thread):
    show(f"  {thread}: {thread.path()}")
    image = thread.find("image")
    if image and int(image["name"]):
        show(f"    image {image['name'].string()}")
    if thread.is_in("range_acquire"):
        print_range_wait(process, thread)
    elif thread.frames[0].function in WAITS:
        print_image_wait(process, thread)
    elif thread.is_in("run_in_own_slot"):
        show(f"    runs its own task: {describe_running(process, thread)}")
    elif thread.is_in("pool_run") and thread.find("task"):
        task = thread.find("task")
        show(f"    waits in pool_run: {task_state(process, task)}")
    elif thread.find("request"):
        show(f"    waits for {describe_request(process, thread.find('request'))}")


def print_threads(process):
    show("threads inside the plugin:")
    for thread in process.threads:
        if thread.frames and not thread.is_in("loop_main") and not thread.is_in("worker_main"):
            print_thread(process, thread)


class PoolCommand(gdb.Command):
    """Show loops, pools, lanes, workers, and which thread waits for what: aiodisk-pool [POINTER]"""

    def __init__(self):
        super().__init__("aiodisk-pool", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        try:
            gdb.lookup_type("struct pool")  # fails without debug information
            self._print(argument)
        except gdb.error as error:
            raise gdb.GdbError(f"aiodisk-pool: {error}")

    def _print(self, argument):
        process = Process()
        if argument:
            value = gdb.parse_and_eval(argument)
            target = value.type.strip_typedefs()
            is_loop = target.code == gdb.TYPE_CODE_PTR and struct_tag(target.target()) == "loop"
            (print_loop if is_loop else print_pool)(process, int(value))
            return
        for address in process.loops:
            print_loop(process, address)
        for address in process.pools:
            print_pool(process, address)
        print_threads(process)


PoolCommand()
