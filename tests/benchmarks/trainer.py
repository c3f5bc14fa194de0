"""A caller's loop: blocking steps of 50 ms on it, or a watch over how late it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["Lag", "Trainer"]

STEP_S = 0.05
_PERIOD_S = 0.005


class Trainer:
    """Does steps of a fixed amount of work, each of 50 ms on the idle machine.

    Args:
        kind: `numpy`, which lets go of the GIL, or `python`, which holds it.
    """

    def __init__(self, kind: str) -> None:
        self.steps = 0
        self._do = _numpy() if kind == "numpy" else _python
        self._rounds = 1
        while (took_s := self._once()) < STEP_S / 4:
            self._rounds *= 2
        self._rounds = max(1, round(self._rounds * STEP_S / took_s))

    def _once(self) -> float:
        began = time.perf_counter()
        self._do(self._rounds)
        return time.perf_counter() - began

    async def train(self) -> None:
        """Step after step; the loop gets its turn between two."""
        while True:
            self._once()
            self.steps += 1
            await asyncio.sleep(0)

    async def speed(self, seconds: float) -> float:
        """Steps per second when nothing else runs."""
        began, done = time.perf_counter(), 0
        while (took_s := time.perf_counter() - began) < seconds:
            self._once()
            done += 1
        return done / took_s


def _numpy() -> Callable[[int], None]:
    import numpy as np

    left = np.random.default_rng(0).random((256, 256))

    def do(rounds: int) -> None:
        for _ in range(rounds):
            left @ left

    return do


def _python(rounds: int) -> None:
    total = 0
    for _ in range(rounds):
        for number in range(1000):
            total += number


class Lag:
    """How late the loop runs what it should run every 5 ms."""

    def __init__(self) -> None:
        self._late_s: list[float] = []

    async def watch(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_PERIOD_S)
            self._late_s.append(max(0.0, time.perf_counter() - began - _PERIOD_S))

    def forget(self) -> None:
        """Begin anew."""
        self._late_s.clear()

    def summary(self) -> dict[str, float]:
        """The 99th percentile and the maximum."""
        late = sorted(self._late_s)
        if not late:
            return {}
        return {"lag_p99_s": late[int(len(late) * 0.99)], "lag_max_s": late[-1]}
