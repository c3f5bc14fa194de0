"""SHA-256 or BLAKE3: the figures behind docs/decisions/0001-digest.md.

Run it on a quiet machine: `python tests/benchmarks/digest.py`. It needs 2.5 GiB in /dev/shm and a
minute. Nothing of it runs in the test suite.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import anyio
from blake3 import blake3

import asyncsync
from asyncsync import digest

GIB = 1024**3
CHUNK = os.urandom(16 * 1024**2)
MESSAGE = CHUNK[:1024]
HASHES: dict[str, Callable[..., object]] = {"sha256": hashlib.sha256, "blake3": blake3}


class Cost(NamedTuple):
    """Of the cheapest of several runs. CPU seconds are of all threads; load disturbs them less."""

    wall_s: float
    cpu_s: float


def best(action: Callable[[], object], times: int = 5) -> Cost:
    costs = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        costs.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Cost(min(wall for wall, _ in costs), min(cpu for _, cpu in costs))


def hash_chunks(new: Callable[..., object], count: int) -> None:
    for _ in range(count):
        new(CHUNK).hexdigest()  # type: ignore[attr-defined]


def hashing(new: Callable[..., object], threads: int) -> Cost:
    """1 GiB in chunks of 16 MiB, each hashed by one thread."""
    counts = [64 // threads] * threads
    with ThreadPoolExecutor(threads) as pool:
        return best(lambda: list(pool.map(hash_chunks, [new] * threads, counts)))


def latency_us(new: Callable[..., object]) -> float:
    """CPU microseconds for a message of 1 KiB."""
    times = 20_000

    def many() -> None:
        for _ in range(times):
            new(MESSAGE).hexdigest()  # type: ignore[attr-defined]

    return best(many).cpu_s / times * 1e6


def sync_up(new: Callable[..., object], source: Path, folder: Path) -> Cost:
    """A whole sync of 1 GiB: every byte read, hashed, written and flushed."""

    def once() -> None:
        target = Path(tempfile.mkdtemp(dir=folder)) / "ckpt"
        with patch.object(digest, "blake3", new):
            receipt = anyio.run(asyncsync.sync_up, source, target)
        assert receipt.sent_bytes == GIB
        shutil.rmtree(target.parent)

    return best(once)


def main() -> None:
    print(f"Python {sys.version.split()[0]}, {ssl.OPENSSL_VERSION}, {os.cpu_count()} cores")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        source = folder / "source"
        source.mkdir()
        for number in range(4):
            with (source / f"{number}.bin").open("wb") as file:
                for _ in range(16):
                    file.write(os.urandom(len(CHUNK)))
        print("1 GiB by: 1 thread        2 threads       1 KiB     sync_up of 4 x 256 MiB")
        for name, new in [*HASHES.items(), *HASHES.items()]:  # twice: do the figures agree?
            costs = (hashing(new, 1), hashing(new, 2), sync_up(new, source, folder))
            one, two, sync = (f"{c.wall_s:5.2f} s, CPU {c.cpu_s:5.2f} s" for c in costs)
            print(f"{name}: {one} | {two} | {latency_us(new):4.1f} us | {sync}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
