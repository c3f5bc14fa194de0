"""Time as a parameter: whatever waits takes a Clock."""

from __future__ import annotations

import time
from typing import Protocol

import anyio

__all__ = ["Clock", "SteadyClock", "SystemClock"]


class Clock(Protocol):
    """What the package knows of time."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean something."""
        ...

    def now(self) -> float:
        """Unix seconds of this machine's wall clock."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; cancelled, it ends at once."""
        ...


class SystemClock:
    """The real clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class SteadyClock:
    """Another clock, whose `monotonic` goes on from where it was if that one's goes back."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.now, self.sleep = clock, clock.now, clock.sleep
        self._ahead_s, self._last = 0.0, clock.monotonic()

    def monotonic(self) -> float:
        time_s = self._clock.monotonic() + self._ahead_s
        if time_s < self._last:
            self._ahead_s, time_s = self._ahead_s + self._last - time_s, self._last
        self._last = time_s
        return time_s
