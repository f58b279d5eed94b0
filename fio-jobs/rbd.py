# SPDX-License-Identifier: BSD-3-Clause
"""What `compare` needs for Ceph RBD: a cluster, an image, and fio's own rbd engine as a peer.

All servers of a cell use one image, one after the other, so they see the same objects.  Each mode
has a ceph.conf of its own, which all of them read, so librbd's settings are equal on all sides.
"""
import os
import select
import shutil
import subprocess

from process import Failed, Process, pause

MODES = {"rbd": "cache=none", "rbd-cached": "cache=default"}
SETTINGS = {  # the same for every program that opens the image
    "rbd": "rbd_cache = false",
    # Until a client flushes, librbd would write through its cache.
    "rbd-cached": "rbd_cache = true\nrbd_cache_writethrough_until_flush = false",
}
ENGINE = "fio-rbd"  # fio with librbd, without NBD: a peer that is its own server
PEERS = {
    "qemu-nbd-rbd": {"rbd": ["--cache=none"], "rbd-cached": ["--cache=writeback"]},
    ENGINE: {"rbd": [], "rbd-cached": []},
}
POOL, IMAGE = "rbd", "compare"
CHUNK = 4 << 20  # bytes


class Cluster(Process):
    """A Ceph cluster with one image of random data."""

    def __init__(self, tmp, size):
        self.tmp, log = tmp, f"{tmp}/cluster.log"
        for program in ("ceph-osd", "rbd"):
            if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
                raise Failed(f"rbd: {program} is not installed")
        self.stdin, self.until_end = os.pipe2(os.O_CLOEXEC)
        cluster = os.path.join(os.path.dirname(os.path.realpath(__file__)), "cluster")
        super().__init__("the Ceph cluster", [cluster, tmp], log, stdin=self.stdin)
        os.close(self.stdin)
        self.conf = self.wait_for_conf(log)
        self.settings = {mode: self.add_settings(mode) for mode in MODES}
        self.make_image(size)

    def wait_for_conf(self, log):
        for _ in range(1200):
            if pause(0.1, self.fd):
                raise self.failed(f"ended with status {self.reap()[0]}")
            with open(log) as f:
                conf = f.read()
            if conf.endswith("ceph.conf\n"):
                return conf.splitlines()[-1]
        raise self.failed("does not run after 120 s")

    def add_settings(self, mode):
        path = f"{self.tmp}/{mode}.conf"
        with open(self.conf) as conf, open(path, "w") as copy:
            copy.write(conf.read().replace("[client]\n", f"[client]\n{SETTINGS[mode]}\n"))
        return path

    def environment(self, mode):
        return {**os.environ, "CEPH_CONF": self.settings[mode]}

    def make_image(self, size):
        data = f"{self.tmp}/data"
        with open(data, "wb", buffering=0) as f:
            for offset in range(0, size, CHUNK):
                f.write(os.urandom(min(CHUNK, size - offset)))
        done = subprocess.run(
            ["rbd", "--conf", self.conf, "import", "--no-progress", data, f"{POOL}/{IMAGE}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        os.unlink(data)
        if done.returncode:
            raise Failed(f"rbd import: {done.stderr}")

    def stop(self):
        os.close(self.until_end)
        # The cluster's own clean-up kills its daemons and waits for them.  Not pause(), which ends
        # at once after Ctrl-C.
        if not select.select([self.fd], [], [], 30)[0]:
            raise self.failed("has not ended after 30 s")
        self.reap()


def qemu_name(image, conf):
    return f"rbd:{image}:conf={conf}"


class Engine:
    """fio's rbd engine in the place of a server: fio itself opens the image."""

    def __init__(self, bench, mode):
        self.env = bench.cluster.environment(mode)
        self.engine = ["ioengine=rbd", "clientname=admin", f"pool={POOL}", f"rbdname={IMAGE}"]
        self.log = None

    @staticmethod
    def connections(cell):
        """Depth and jobs: one client of the cluster has all in flight, as in a server."""
        return cell.depth * cell.connections, 1

    def client(self, argv, log, seconds):
        """As Server.client."""
        client = Process(ENGINE, argv, log, self.env)
        ready = pause(seconds, client.fd)
        status, usage = client.reap() if ready else (f"none after {seconds:.0f} s", None)
        if status:
            raise client.failed(f"exit status {status}")
        return usage

    @staticmethod
    def failed(what):
        return Failed(f"{ENGINE}: {what}")

    @staticmethod
    def stop():
        """As Server.stop: no server used anything."""
        return 0, 0, 0
