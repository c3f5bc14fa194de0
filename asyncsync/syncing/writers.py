"""One writer of a target at a time, in the order in which they came."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import anyio

from ..location import Location

__all__ = ["Turn", "Writers"]

Turn = Callable[[str], AbstractAsyncContextManager[None]]
"""Waits until nobody outside of this syncer writes a location, for the length of a block."""


class Writers:
    """The writers of one syncer. What was held still first is committed first."""

    def __init__(self, turn: Turn | None) -> None:
        self._turn = turn or (lambda _: nullcontext())
        self._queues: dict[str, anyio.Lock] = {}

    @asynccontextmanager
    async def alone(self, location: Location, who: str = "") -> AsyncIterator[None]:
        """Wait for those that came before, and be the only one for the length of the block.

        Args:
            who: which of several writers that the store itself brings together.
        """
        name = f"{location} {who}" if who else str(location)
        queue = self._queues.setdefault(name, anyio.Lock())
        try:
            async with queue, self._turn(name):
                yield
        finally:
            if not (queue.locked() or queue.statistics().tasks_waiting):
                self._queues.pop(name, None)
