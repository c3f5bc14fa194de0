"""FakeClock: time that moves only when the test says so."""

from __future__ import annotations

import heapq
from itertools import count

import anyio
from anyio.lowlevel import checkpoint

__all__ = ["FakeClock", "settle"]

_TURNS = 50


async def settle(turns: int = _TURNS) -> None:
    """Let every task that can run do so, a fixed number of times.

    Costs microseconds; waiting until all tasks are blocked costs 0.1 s on asyncio whenever one
    was still running.
    """
    for _ in range(turns):
        await checkpoint()


class FakeClock:
    """A Clock whose sleepers wake when `advance` has passed their time, in order.

    Args:
        start: what `monotonic` says first; `now` runs beside it from 1,700,000,000.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._time = start
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
        self._order = count()

    def monotonic(self) -> float:
        return self._time

    def now(self) -> float:
        return 1_700_000_000.0 + self._time

    async def sleep(self, seconds: float) -> None:
        """Wait until the test has advanced that far; not at all for 0 or less."""
        if seconds <= 0:
            await checkpoint()
            return
        woken = anyio.Event()
        heapq.heappush(self._sleepers, (self._time + seconds, next(self._order), woken))
        await woken.wait()

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: who sleeps wakes at its own moment, and runs before time goes on."""
        end = self._time + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._time, _, woken = heapq.heappop(self._sleepers)
            woken.set()
            await settle()
        self._time = end
