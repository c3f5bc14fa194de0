"""Processes that work on a tree in a cloud store until somebody kills them.

Started as a program it has everything imported, and forks a process for every line it reads:
loading an SDK takes longer than what is under test. A line is the scenario; the answers are the
process's id and, when it has ended, its status.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

from asyncsync.clock import SystemClock
from asyncsync.concurrency import Threads
from asyncsync.errors import NotFoundError
from asyncsync.storage import ObjectStore
from asyncsync.storage.committed import CommittedTrees, writer

__all__ = ["Victims"]

_ROOT = Path(__file__).parents[2]


class Victims:
    """Forks processes on demand, one at a time.

    Args:
        store: what they work on; environ: how they find it.
    """

    def __init__(self, store: str, environ: dict[str, str]) -> None:
        self._store, self._environ = store, environ
        self._process: asyncio.subprocess.Process | None = None
        self.pid = 0

    async def __aenter__(self) -> Self:
        path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.cloud_victims",
            self._store,
            env={**os.environ, **self._environ, "PYTHONPATH": path},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"ready\n"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def run(self, scenario: str) -> int:
        """Let a process do the scenario; how it ended: 0, or minus the signal that killed it."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{scenario}\n".encode())
        self.pid = int(await process.stdout.readline())
        process.stdin.write(b"go\n")
        return int(await process.stdout.readline())

    def kill(self) -> None:
        """End the process that runs, without a chance to tidy up."""
        os.kill(self.pid, 9)


def _objects(store: str, threads: Threads) -> ObjectStore:
    if store == "s3":
        from asyncsync.storage.s3 import S3Objects

        return S3Objects("bucket", {}, threads=threads, clock=SystemClock(), max_requests=8)
    from asyncsync.storage.gcs import GcsObjects

    return GcsObjects("bucket", {}, threads=threads, clock=SystemClock(), max_requests=8)


async def _work(store: str, scenario: str) -> None:
    from .committed_scenarios import CHUNK, SCENARIOS, Act
    from .group_scenarios import rank, small_chunks

    writer.CHUNK_BYTES = CHUNK  # type: ignore[attr-defined] # files of eleven bytes are big ones
    act: Act = SCENARIOS[scenario][1] if scenario in SCENARIOS else rank(int(scenario[-1]))
    if scenario not in SCENARIOS:
        small_chunks(setattr)
    threads = Threads(4)
    objects = _objects(store, threads)
    try:
        await act(CommittedTrees(objects, clock=SystemClock()))
    finally:
        await objects.aclose()
        threads.close()


async def _warm_up(store: str) -> None:
    """Load what every process would load, which takes far longer than what it does."""
    from . import committed_scenarios, group_scenarios

    del committed_scenarios, group_scenarios
    threads = Threads(4)
    objects = _objects(store, threads)
    with suppress(NotFoundError):
        await objects.head("nothing")
    async for _ in objects.scan_uploads("nothing/"):  # for what an SDK is needed
        raise AssertionError("nobody has begun anything")
    await objects.aclose()
    threads.close()


def _main() -> None:
    asyncio.run(_warm_up(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            sys.stdin.readline()
            asyncio.run(_work(sys.argv[1], line.strip()))
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _main()
