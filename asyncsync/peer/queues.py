"""One token does not keep the others waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..concurrency import Budget

__all__ = ["Queues"]


class _Queue:
    """Of one token."""

    __slots__ = ("budget", "requests")

    def __init__(self, most: int) -> None:
        self.budget, self.requests = Budget(most), 0


class Queues:
    """Of each token at most `most` requests are answered at once; the others wait, in order."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queues: dict[str, _Queue] = {}

    @property
    def tokens(self) -> int:
        """Of how many there is a request."""
        return len(self._queues)

    @asynccontextmanager
    async def turn(self, token: str) -> AsyncIterator[None]:
        """Be answered for the length of the block."""
        queue = self._queues.setdefault(token, _Queue(self._most))
        queue.requests += 1
        try:
            async with queue.budget.borrow():
                yield
        finally:
            queue.requests -= 1
            if not queue.requests:
                del self._queues[token]
