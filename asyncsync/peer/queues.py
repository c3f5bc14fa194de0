"""One token does not keep the others waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..concurrency import Budget

__all__ = ["Queue", "Queues"]


_WALKS = 2


class Queue:
    """Of one token.

    Attributes:
        memory: what its bodies may hold.
        walks: through directories, of which each may take a thread for long.
        turns, requests: for and of all its requests.
    """

    __slots__ = ("memory", "requests", "turns", "walks")

    def __init__(self, most: int, memory_bytes: int) -> None:
        self.turns, self.memory, self.walks = Budget(most), Budget(memory_bytes), Budget(_WALKS)
        self.requests = 0


class Queues:
    """Of each token at most `most` requests are answered at once; the others wait, in order.

    Args:
        memory_bytes: what all bodies of one token may hold: who sends slowly holds it for long.
    """

    def __init__(self, most: int, memory_bytes: int) -> None:
        self._most, self._memory_bytes = most, memory_bytes
        self._queues: dict[str, Queue] = {}

    @property
    def tokens(self) -> int:
        """Of how many there is a request."""
        return len(self._queues)

    @asynccontextmanager
    async def turn(self, token: str) -> AsyncIterator[Queue]:
        """Be answered for the length of the block; yields what that token shares."""
        queue = self._queues.setdefault(token, Queue(self._most, self._memory_bytes))
        queue.requests += 1
        try:
            async with queue.turns.borrow():
                yield queue
        finally:
            queue.requests -= 1
            if not queue.requests:
                del self._queues[token]
