"""Which tree is carried on next, and when."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from itertools import count

import anyio

from ..clock import Clock

__all__ = ["Agenda"]

_FIRST_S, _LONGEST_S = 1.0, 600.0


class Agenda:
    """Trees with the moment at which they are due; each is given to one worker at a time.

    A tree has one entry: the last that was made.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due = list[tuple[float, int, str]]()
        self._at: dict[str, int] = {}  # the entry of `_due` that counts for a tree
        self._running = set[str]()
        self._failures = Counter[str]()
        self._order, self._changed = count(), anyio.Event()

    @property
    def running(self) -> frozenset[str]:
        """What workers have."""
        return frozenset(self._running)

    def has(self, tree: str) -> bool:
        """Whether it has an entry."""
        return tree in self._at

    def plan(self, tree: str, wait_s: float = 0.0) -> None:
        """It is due in `wait_s` seconds, whatever was planned before."""
        number = next(self._order)
        self._at[tree] = number
        heapq.heappush(self._due, (self._clock.monotonic() + wait_s, number, tree))
        self._changed.set()

    async def next(self) -> str:
        """Wait for the tree that is due first; nobody else gets it until `release`."""
        while True:
            while self._due and self._at.get(self._due[0][2]) != self._due[0][1]:
                heapq.heappop(self._due)
            due_s = self._due[0][0] if self._due else math.inf
            if due_s <= self._clock.monotonic():
                tree = heapq.heappop(self._due)[2]
                del self._at[tree]
                if tree not in self._running:  # else it is planned anew when that ends
                    self._running.add(tree)
                    return tree
                continue
            await self._wait(due_s - self._clock.monotonic())

    def release(self, tree: str) -> None:
        """A worker is done with it, for now."""
        self._running.discard(tree)

    # -- failures in a row

    def has_failed(self, tree: str) -> bool:
        """Whether it failed the last time."""
        return self._failures[tree] > 0

    def failed(self, tree: str) -> float:
        """Seconds to wait now: longer and longer."""
        self._failures[tree] += 1
        return min(_LONGEST_S, _FIRST_S * 2.0 ** min(self._failures[tree] - 1, 30))

    def recovered(self, tree: str) -> None:
        """What failed before does not count any more."""
        self._failures.pop(tree, None)

    async def _wait(self, seconds: float) -> None:
        if self._changed.is_set():
            self._changed = anyio.Event()
        changed = self._changed

        async def alarm() -> None:
            await self._clock.sleep(seconds)
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            if seconds < math.inf:
                group.start_soon(alarm)
            await changed.wait()
            group.cancel_scope.cancel()
