"""What ten thousand trials cost that report once a second, with a syncer that costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from timeit import timeit
from typing import Any

__all__ = ["schedule"]

TRIALS = 10_000
SECONDS = 30
EMPTY_SECONDS = 10
_SLICES = 100
_DECISIONS = 200_000


class _Instant:
    """Is done at once."""

    def __init__(self) -> None:
        self.synced, self.all = 0, asyncio.Event()

    async def sync_up(
        self, local_dir: Any, remote_dir: Any, *, exclude: Sequence[str] = ()
    ) -> None:
        self.synced += 1
        if self.synced == TRIALS:
            self.all.set()

    async def sync_down(
        self, remote_dir: Any, local_dir: Any, *, exclude: Sequence[str] = ()
    ) -> None: ...
    async def delete(self, remote_dir: Any) -> None: ...
    async def aclose(self) -> None: ...


def _nothing(trial: str, *, training_iteration: float, time_total_s: float) -> None:
    """What the measurement itself costs."""


async def _reporting(
    report: Callable[..., None], names: Sequence[str], seconds: int
) -> tuple[float, list[int]]:
    """Each trial reports once a second. The share of a core, and how long each report took."""
    took: list[int] = []
    began, used = time.perf_counter(), time.process_time()
    for turn in range(seconds * _SLICES):
        now = time.perf_counter_ns()
        for name in names[turn % _SLICES :: _SLICES]:
            report(name, training_iteration=3 + turn // _SLICES, time_total_s=turn)
            before, now = now, time.perf_counter_ns()
            took.append(now - before)
        await asyncio.sleep(max(0.0, began + (turn + 1) / _SLICES - time.perf_counter()))
    used, wall = time.process_time() - used, time.perf_counter() - began
    return used / wall, sorted(took)


async def schedule() -> dict[str, float]:
    """Shares of a core, seconds of a decision and a report, once every trial has been synced."""
    from asyncsync import SyncConfig, SyncScheduler
    from asyncsync.scheduling import Facts, decide

    syncer = _Instant()
    async with SyncScheduler(syncer, SyncConfig(sync_period=300)) as scheduler:
        names = [f"trial_{number:05}" for number in range(TRIALS)]
        for name in names:
            scheduler.add(name, local_dir=f"/work/{name}", remote_dir=f"x://{name}")
            scheduler.report(name, training_iteration=2, time_total_s=0)
        await syncer.all.wait()
        empty, _ = await _reporting(_nothing, names, EMPTY_SECONDS)
        ratio, took = await _reporting(scheduler.report, names, SECONDS)
    facts = Facts(False, True, True, 5.0, False, False)
    one = timeit(lambda: decide(facts, "coalesce"), number=_DECISIONS) / _DECISIONS
    return {
        "cpu_ratio": ratio,
        "empty_cpu_ratio": empty,
        "report_p99_s": took[len(took) * 99 // 100] / 1e9,
        "decision_s": one,
    }
