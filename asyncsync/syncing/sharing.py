"""Many nodes read one commit: its origin gives it to one of them, and they to one another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..clock import Clock
from ..concurrency import beside
from ..errors import AsyncSyncError
from ..events import FellBack, Observer
from ..names import new_attempt
from ..secrets import Secret
from ..storage import Became, Share, TreeStore, Turn, Turns
from .base import Receipt

__all__ = ["SharedRead"]

_AGAIN_S = 0.5
_ALIVE_S = 10.0


class SharedRead:
    """One read of a commit by turns. `run` may be called once.

    Args:
        turns: the head that says whose turn it is.
        tree, identity: the commit.
        joined: the store behind a join string.
        read: reads the commit from a store, and nothing else if another one is there.
    """

    def __init__(
        self,
        turns: Turns,
        tree: str,
        identity: str,
        share: Share,
        joined: Callable[[Secret], Awaitable[TreeStore]],
        read: Callable[[TreeStore, str], Awaitable[Receipt]],
        clock: Clock,
        observe: Observer,
    ) -> None:
        self._turns, self._tree, self._identity = turns, tree, identity
        self._share, self._joined, self._read = share, joined, read
        self._clock, self._observe = clock, observe
        self._reader = new_attempt()

    async def run(self, origin: TreeStore) -> Receipt:
        """Read it where the head says; then say that others may read it here."""
        while True:
            turn = await self._say("ask")
            if not turn.go:
                await self._clock.sleep(_AGAIN_S)
                continue
            try:
                async with beside(self._keep_alive):
                    receipt = await self._read_at(turn, origin)
            except AsyncSyncError as exc:
                await self._say("failed")
                if not turn.line:
                    raise
                used = "another node that has it, or the origin"
                self._observe(FellBack(damaged="a node", used=used, reason=str(exc)))
                continue
            await self._say("done", self._share)
            return receipt

    async def _read_at(self, turn: Turn, origin: TreeStore) -> Receipt:
        if not turn.line:
            return await self._read(origin, self._tree)
        return await self._read(await self._joined(Secret(turn.line)), turn.held)

    async def _keep_alive(self) -> None:
        while True:
            await self._clock.sleep(_ALIVE_S)
            await self._say("ask")

    async def _say(self, became: Became, share: Share | None = None) -> Turn:
        return await self._turns.turn(
            self._tree,
            self._identity,
            self._reader,
            became,
            line=share.line if share else "",
            held=share.tree if share else "",
        )
