#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A server that is killed under load leaves every acknowledged write behind, a usable image, no lock, and clients that are
# told at once.  kill-server.sh [ROUNDS [BACKENDS...]]
# The page cache outlives the server, so this says nothing of power cuts; it says that nothing is acknowledged early.
. "$(dirname "$0")/../lib/functions.sh"
rounds=${1:-34}
shift || true
backends=("$@")
[ ${#backends[@]} -gt 0 ] || backends=(threads io_uring libaio)
truncate -s 16M "$dir/file.img" "$dir/loop.img"
make_loop "$dir/loop.img" --direct-io=on

cat >"$dir/kill-server.py" <<'P'
import mmap, nbd, os, random, select, signal, struct, subprocess, sys, time

plugin, backend, rounds, directory, *images = sys.argv[1:]
CONNECTIONS, DEPTH = 4, 16
SLOTS = CONNECTIONS * DEPTH
BLOCK = 64 << 10
PATTERN = b"\x5a"
HANG = 20  # seconds: a client that has not been told by then hangs


class Server:
    def __init__(self, image, *parameters):
        self.socket, pidfile = os.path.join(directory, "k.sock"), os.path.join(directory, "k.pid")
        for path in (self.socket, pidfile):
            if os.path.exists(path):
                os.unlink(path)
        self.process = subprocess.Popen(["nbdkit", "--exit-with-parent", "-f", "-U", self.socket, "-P", pidfile, plugin, image,
                                         "backend=" + backend, *parameters])
        while not (os.path.exists(pidfile) and os.path.getsize(pidfile)):
            assert self.process.poll() is None, "nbdkit did not start"
            time.sleep(0.002)

    def connect(self):
        h = nbd.NBD()
        h.connect_unix(self.socket)
        return h

    def kill(self):
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL, "nbdkit had died before it was killed"


def content(slot, version):
    """Each sector of a block says which version of which slot it is."""
    return struct.pack("QQ", slot, version) * (BLOCK // 16) if version else bytes(BLOCK)


class Load:
    """Keeps SLOTS requests in flight.  Each slot owns a block: one of four is read, the others written, one of these with FUA."""

    def __init__(self, server, asked):
        self.handles = [server.connect() for _ in range(CONNECTIONS)]
        self.asked, self.acknowledged = asked, dict(asked)
        self.ready = list(range(SLOTS))
        self.answered = self.flushed = self.failed = self.in_flight = 0

    def submit(self, slot):
        h = self.handles[slot // DEPTH]
        kind = slot % 4
        if kind == 0:
            h.aio_pread(nbd.Buffer(BLOCK), slot * BLOCK, lambda error: self.done(slot, error))
        else:
            self.asked[slot] += 1
            buf = nbd.Buffer.from_bytearray(bytearray(content(slot, self.asked[slot])))
            h.aio_pwrite(buf, slot * BLOCK, lambda error: self.done(slot, error), nbd.CMD_FLAG_FUA if kind == 3 else 0)
        self.in_flight += 1

    def done(self, slot, error):
        self.in_flight -= 1
        if error.value:
            self.failed += 1
        else:
            self.answered += 1
            self.acknowledged[slot] = self.asked[slot]
            self.ready.append(slot)
        return 1

    def poll(self):
        """Waits for any of the connections."""
        poller = select.poll()
        for h in self.handles:
            writing = h.aio_get_direction() & nbd.AIO_DIRECTION_WRITE
            poller.register(h.aio_get_fd(), select.POLLIN | (select.POLLOUT if writing else 0))
        poller.poll(1000)
        for h in self.handles:
            h.poll(0)

    def run_until(self, answers):
        end = time.monotonic() + HANG
        while self.answered < answers:
            assert time.monotonic() < end, f"only {self.answered} answers"
            while self.ready:
                self.submit(self.ready.pop(0))
            self.poll()
        while self.ready:
            self.submit(self.ready.pop(0))
        assert self.in_flight == SLOTS

    def see_it_die(self):
        """Every request in flight ends, and so does whatever is asked afterwards."""
        end = time.monotonic() + HANG
        for h in self.handles:
            while not (h.aio_is_dead() or h.aio_is_closed()):
                assert time.monotonic() < end, "the client hangs"
                try:
                    h.poll(1000)
                except nbd.Error:
                    pass
            try:
                h.flush()
                sys.exit("a dead server was heard to say ok")
            except nbd.Error:
                pass
        assert self.in_flight == 0 and self.failed > 0, f"{self.in_flight} are still in flight, {self.failed} failed"


def check(image, load):
    """Sector by sector: what was acknowledged, or what was in flight.  Read past the page cache's head, and by a new server."""
    fd = os.open(image, os.O_RDWR)
    server = Server(image, "cache=none")
    h = server.connect()
    for slot in range(SLOTS):
        block = os.pread(fd, BLOCK, slot * BLOCK)
        old, new = content(slot, load.acknowledged[slot]), content(slot, load.asked[slot])
        if block != old:
            for at in range(0, BLOCK, 512):
                assert block[at:at + 512] in (old[:512], new[:512]), \
                    f"{image}, slot {slot}, byte {at}: {block[at:at + 16].hex()}; " \
                    f"acknowledged {load.acknowledged[slot]}, asked for {load.asked[slot]}"
        if slot % 16 == 1:
            assert h.pread(BLOCK, slot * BLOCK) == block, f"{image}, slot {slot}: the next server reads something else"
            # Usable: the block is of one version again.
            h.pwrite(new, slot * BLOCK)
            assert os.pread(fd, BLOCK, slot * BLOCK) == new
        elif block != new:
            os.pwrite(fd, new, slot * BLOCK)
    os.fsync(fd)
    os.close(fd)
    h.shutdown()
    server.process.terminate()
    assert server.process.wait(HANG) == 0, "the server after the killed one ended badly"


def a_round(number):
    image = images[number % len(images)]
    server = Server(image, "cache=" + ("none", "default")[number // 2 % 2])
    load = Load(server, asked[image])
    load.run_until(random.randrange(1, 300))
    server.kill()
    load.see_it_die()
    check(image, load)
    return load.failed


def a_program(image, command, first, second):
    """A real client in the middle of its work."""
    with open(image, "r+b") as f:
        f.write(bytes(512))
    server = Server(image)
    program = subprocess.Popen([*command, "nbd+unix:///?socket=" + server.socket], stdin=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    program.stdin.write(first)
    program.stdin.flush()
    end = time.monotonic() + HANG
    while open(image, "rb").read(512) != PATTERN * 512:
        assert time.monotonic() < end and program.poll() is None, f"{command[0]} writes nothing"
        time.sleep(0.005)
    server.kill()
    try:
        program.communicate(second, HANG)
    except subprocess.TimeoutExpired:
        program.kill()
        sys.exit(f"{command[0]} hangs")
    assert program.returncode != 0, f"{command[0]} was told ok"


failed = 0
for image in images:
    with open(image, "r+b") as f:
        f.write(bytes(SLOTS * BLOCK))
        os.fsync(f.fileno())
asked = {image: dict.fromkeys(range(SLOTS), 0) for image in images}
for number in range(int(rounds)):
    failed += a_round(number)
print(f"{rounds} servers killed, and {failed} requests failed; none hung, and nothing that was acknowledged is missing")
a_program(images[0], ["qemu-io", "-f", "raw"], b"write -P 0x5a 0 1M\n", b"write 0 1M\nflush\n")
a_program(images[0], ["nbdcopy", "-"], PATTERN * (1 << 20), PATTERN * (1 << 20))
P
for backend in "${backends[@]}"; do
    say "backend=$backend: $rounds servers killed"
    "$python" "$dir/kill-server.py" "$plugin" "$backend" "$rounds" "$dir" "$dir/file.img" "$loop"
done
