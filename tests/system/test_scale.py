"""Many small files and one huge sparse one: memory stays bounded, holes stay holes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KIB, MIB, GIB = 1024, 1024**2, 1024**3

SMALL_FILES = 100_000
SPARSE_BYTES = 20 * GIB
MAX_RESIDENT_BYTES = 300 * MIB

# Where there is data: at the start, across the border of two chunks, in the middle, at the end.
ISLANDS = {
    0: b"start" * 1000,
    16 * MIB - 3000: b"border" * 1000,
    7 * GIB + 12_345: os.urandom(3 * MIB),
    SPARSE_BYTES - 4096: b"end!" * 1024,
}

# A process of its own: its peak says what a call needs, and not what a test session has used.
CALL = """
import asyncio, dataclasses, json, re, sys, time
import asyncsync

begun = time.perf_counter()
result = asyncio.run(getattr(asyncsync, sys.argv[1])(*sys.argv[2:]))
seconds = time.perf_counter() - begun
peak_kib = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps({**dataclasses.asdict(result), "took": seconds, "peak": peak_kib * 1024}))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """100,000 files of 1 KiB in 100 directories, and a sparse file."""
    directory = tmp_path / "source"
    for number in range(SMALL_FILES):
        if number % 1000 == 0:
            folder = directory / f"{number // 1000:02}"
            folder.mkdir(parents=True)
        (folder / f"{number:06}").write_bytes(number.to_bytes(8, "big") * (KIB // 8))
    with open(directory / "sparse", "wb") as file:
        os.truncate(file.fileno(), SPARSE_BYTES)
        for offset, data in ISLANDS.items():
            os.pwrite(file.fileno(), data, offset)
    return directory


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of a process")
def test_100_000_small_files_and_a_sparse_one_of_20_gib_need_less_than_300_mib(
    source: Path, tmp_path: Path
) -> None:
    target, back = tmp_path / "store" / "ckpt_1", tmp_path / "back"
    up = _call("sync_up", source, target)
    report = _call("verify", target)
    down = _call("sync_down", target, back)

    for receipt in (up, down):
        assert (receipt["files"], receipt["sent_files"]) == (SMALL_FILES + 1, SMALL_FILES + 1)
        assert receipt["size_bytes"] == receipt["sent_bytes"] == SMALL_FILES * KIB + SPARSE_BYTES
    assert (report["files"], report["failures"]) == (SMALL_FILES + 1, [])
    assert max(result["peak"] for result in (up, report, down)) < MAX_RESIDENT_BYTES
    for arrived in (target, back):
        _assert_small_files_arrived(source, arrived)
        _assert_sparse_file_arrived(source / "sparse", arrived / "sparse")


def _call(name: str, *places: Path) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-c", CALL, name, *map(str, places)],
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )
    result: dict[str, Any] = json.loads(ran.stdout)
    print(f"{name}: {result['took']:.1f} s, peak {result['peak'] / MIB:.0f} MiB")
    return result


def _assert_small_files_arrived(source: Path, target: Path) -> None:
    arrived = {path for path in target.rglob("[0-9]*/*") if path.is_file()}
    assert len(arrived) == SMALL_FILES
    for number in range(0, SMALL_FILES, 997):
        path = f"{number // 1000:02}/{number:06}"
        assert (target / path).read_bytes() == (source / path).read_bytes()


def _assert_sparse_file_arrived(before: Path, after: Path) -> None:
    stored = after.stat()
    assert stored.st_size == SPARSE_BYTES
    assert stored.st_blocks * 512 <= before.stat().st_blocks * 512 + MIB
    with open(after, "rb") as file:
        for offset, data in ISLANDS.items():
            assert os.pread(file.fileno(), len(data), offset) == data
        assert os.pread(file.fileno(), MIB, 3 * GIB) == bytes(MIB)
