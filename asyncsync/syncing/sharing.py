"""Many nodes read one commit: its origin gives it to one of them, and they to one another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress

from ..clock import Clock
from ..concurrency import beside, quietly
from ..errors import AsyncSyncError, TransferError, TransientError
from ..events import FellBack, Observer
from ..names import new_attempt
from ..secrets import Secret
from ..storage import Backoff, Became, Share, TreeStore, Turn, Turns, retry
from .base import Receipt

__all__ = ["SharedRead"]

_AGAIN_S = 0.5
_ALIVE_S = 10.0


class SharedRead:
    """One read of a commit by turns. `run` may be called once.

    Args:
        turns: the head that says whose turn it is.
        tree, identity: the commit.
        origin: the store of that head.
        share: how others read it here then; None: they cannot.
        joined: opens the store behind a join string.
        read: reads the commit from a store, and nothing else if another one is there.
    """

    def __init__(  # noqa: PLR0913 - each has a use of its own
        self,
        turns: Turns,
        tree: str,
        identity: str,
        origin: TreeStore,
        share: Share | None,
        joined: Callable[[Secret], AbstractAsyncContextManager[TreeStore]],
        read: Callable[[TreeStore, str], Awaitable[Receipt]],
        *,
        clock: Clock,
        observe: Observer,
    ) -> None:
        self._turns, self._tree, self.identity = turns, tree, identity
        self._origin, self._share, self._joined, self._read = origin, share, joined, read
        self._clock, self._observe = clock, observe
        self._reader = new_attempt()

    async def run(self) -> Receipt:
        """Read it where the head says; then say that others may read it here.

        Who did not give it is passed over, for all. Failed for another reason, or cancelled, it
        leaves its turn to the others.
        """
        while True:
            turn = await self._say("ask")
            if not turn.go:
                await self._clock.sleep(_AGAIN_S)
                continue
            try:
                async with beside(self._keep_alive):
                    receipt = await self._read_at(turn)
            except BaseException as exc:
                if not turn.line or not isinstance(exc, AsyncSyncError) or _is_local(exc):
                    await quietly(lambda: self._say("done"))
                    raise
                await self._say("failed")
                used = "another node that has it, or the origin"
                self._observe(FellBack(damaged="a node", used=used, reason=str(exc)))
                continue
            # It is here, whether or not others hear of it.
            await quietly(lambda: self._say("done", self._share))
            return receipt

    async def _read_at(self, turn: Turn) -> Receipt:
        if not turn.line:
            return await self._read(self._origin, self._tree)
        async with self._joined(Secret(turn.line)) as holder:
            return await self._read(holder, turn.held)

    async def _keep_alive(self) -> None:
        while True:
            await self._clock.sleep(_ALIVE_S)
            with suppress(TransientError):  # whoever gives it may go on while the head is away
                await self._say("ask")

    async def _say(self, became: Became, share: Share | None = None) -> Turn:
        line, held = (share.line, share.tree) if share else ("", "")

        async def say() -> Turn:
            return await self._turns.turn(
                self._tree, self.identity, self._reader, became, line=line, held=held
            )

        return await retry(
            say, Backoff(), self._clock, what="ask for a turn", observe=self._observe
        )


def _is_local(error: AsyncSyncError) -> bool:
    """Whether it is the directory here, or its disk: then nobody else is to blame.

    What another node says passes as an error of its own end, whatever that says.
    """
    if isinstance(error, TransferError):
        return any(map(_is_local, error.failures))
    return error.side == "target"
