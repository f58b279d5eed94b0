#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Reads and writes of every alignment, compared with a model in memory.

usage: unaligned.py URI IMAGE-SIZE [--full]

The reads use every offset modulo 4096 with a set of lengths, every length modulo 4096 with a set of
offsets, and random pairs; --full uses every pair.  Then many writes at once share blocks, each with
bytes of its own.  No byte of a neighbour is lost.
"""
import random
import sys

import nbd

BLOCK = 4096
DEPTH = 64
ODD = [0, 1, 511, 513, 4095]


class Client:
    """Keeps DEPTH requests in flight."""

    def __init__(self, uri):
        self.nbd = nbd.NBD()
        self.nbd.set_strict_mode(0)
        self.nbd.connect_uri(uri)
        self.left = 0

    def wait(self, limit):
        while self.left > limit:
            self.nbd.poll(-1)

    def _done(self, error, check):
        self.left -= 1
        if error:
            sys.exit(f"request failed: errno {error}")
        if check:
            check()
        return 1

    def read(self, length, offset, expected):
        self.wait(DEPTH - 1)
        buf = nbd.Buffer(length)

        def check():
            if bytes(buf.to_bytearray()) != expected:
                sys.exit(f"read of {length} at {offset}: wrong bytes")

        self.left += 1
        self.nbd.aio_pread(buf, offset, lambda error: self._done(error, check))

    def write(self, data, offset, flags=0):
        self.wait(DEPTH - 1)
        self.left += 1
        self.nbd.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset,
                            lambda error: self._done(error, None), flags)


def classes(full):
    if full:
        for offset in range(BLOCK):
            for length in range(1, BLOCK + 1):
                yield offset, length
        return
    for modulo in range(BLOCK):
        for odd in ODD:
            yield modulo, odd or BLOCK
            yield odd, modulo or BLOCK
    for _ in range(5000):
        yield random.randrange(BLOCK), random.randrange(1, BLOCK + 1)


def read_all(client, model, full):
    count = 0
    for offset, length in classes(full):
        # The reads are spread over the image; one in four is longer than a block.
        offset += random.randrange(len(model) // BLOCK - 20) * BLOCK
        length += random.choice([0, 0, 0, BLOCK * random.randrange(16)])
        client.read(length, offset, bytes(model[offset:offset + length]))
        count += 1
    client.wait(0)
    print(f"{count} reads agree with the model")


def write_neighbours(client, model):
    """Cuts ranges of the image into pieces of odd sizes; writes all pieces at once, shuffled."""
    count = 0
    for _ in range(40):
        start = random.randrange(len(model) - 64 * BLOCK)
        end = start + random.randrange(1, 32 * BLOCK)
        pieces = []
        while start < end:
            length = min(end - start, random.choice([1, 7, 100, 511, 512, 513, 1500, 4096, 9000]))
            pieces.append((start, random.randbytes(length)))
            start += length
        random.shuffle(pieces)
        for offset, data in pieces:
            model[offset:offset + len(data)] = data
            client.write(data, offset, nbd.CMD_FLAG_FUA if random.random() < 0.02 else 0)
            count += 1
        client.wait(0)
    for offset in range(0, len(model), 1 << 20):
        length = min(1 << 20, len(model) - offset)
        client.read(length, offset, bytes(model[offset:offset + length]))
    client.wait(0)
    print(f"{count} writes to shared blocks lost no neighbour's byte")


def main():
    uri, size = sys.argv[1], int(sys.argv[2])
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    random.seed(seed)
    client = Client(uri)
    if client.nbd.get_size() != size:
        sys.exit(f"size {client.nbd.get_size()}, expected {size}")
    model = bytearray(random.randbytes(size))
    for offset in range(0, size, 1 << 20):
        client.write(model[offset:offset + (1 << 20)], offset)
    client.wait(0)
    read_all(client, model, "--full" in sys.argv)
    write_neighbours(client, model)
    # The last bytes of the image.
    client.read(3, size - 3, bytes(model[-3:]))
    client.wait(0)
    client.nbd.flush()
    client.nbd.shutdown()


main()
