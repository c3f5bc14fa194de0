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
from unittest.mock import patch

import anyio
from blake3 import blake3

import asyncsync
from asyncsync import digest

GIB = 1024**3
CHUNK = os.urandom(16 * 1024**2)
MESSAGE = CHUNK[:1024]
HASHES: dict[str, Callable[..., object]] = {"sha256": hashlib.sha256, "blake3": blake3}


def best(action: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def hash_chunks(new: Callable[..., object], count: int) -> None:
    for _ in range(count):
        new(CHUNK).hexdigest()  # type: ignore[attr-defined]


def rate(new: Callable[..., object], threads: int) -> float:
    """GiB per second of 16 MiB chunks, each hashed by one thread."""
    count = 16
    with ThreadPoolExecutor(threads) as pool:
        seconds = best(lambda: list(pool.map(hash_chunks, [new] * threads, [count] * threads)))
    return threads * count * len(CHUNK) / GIB / seconds


def latency_us(new: Callable[..., object]) -> float:
    """Microseconds for a message of 1 KiB."""
    times = 20_000

    def many() -> None:
        for _ in range(times):
            new(MESSAGE).hexdigest()  # type: ignore[attr-defined]

    return best(many) / times * 1e6


def sync_up(new: Callable[..., object], source: Path, folder: Path) -> float:
    """GiB per second of a whole sync, every byte read, hashed, written and flushed."""

    def once() -> None:
        target = Path(tempfile.mkdtemp(dir=folder)) / "ckpt"
        with patch.object(digest, "blake3", new):
            receipt = anyio.run(asyncsync.sync_up, source, target)
        assert receipt.sent_bytes == GIB
        shutil.rmtree(target.parent)

    return 1 / best(once, times=3)


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
        print("hash    1 thread  2 threads  1 KiB    sync_up of 4 x 256 MiB")
        for name, new in [*HASHES.items(), *HASHES.items()]:  # twice: do the figures agree?
            print(
                f"{name}  {rate(new, 1):4.2f} GiB/s  {rate(new, 2):4.2f} GiB/s "
                f"{latency_us(new):5.1f} us  {sync_up(new, source, folder):4.2f} GiB/s"
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
