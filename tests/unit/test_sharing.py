"""Reading by turns: whom a reader blames, what it leaves behind, and what it survives."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from asyncsync.errors import (
    AsyncSyncError,
    BusyError,
    ClashError,
    NoSpaceError,
    TransferError,
    TransientError,
    os_errors,
)
from asyncsync.events import Event, FellBack
from asyncsync.storage import Became, Share, Turn
from asyncsync.syncing import Receipt
from asyncsync.syncing.sharing import SharedRead
from asyncsync.testing import FakeClock

ORIGIN, HOLDER = Turn(go=True), Turn(go=True, line="line", held="there")
MINE = Share(line="mine", tree="here")
RECEIPT = Receipt(location="here", identity="i", kind="sealed", files=1, size_bytes=1)


class Head:
    """Gives out these turns, and notes what it was told; `away` it fails."""

    def __init__(self, *turns: Turn) -> None:
        self._turns, self.said = list(turns), list[tuple[str, str]]()
        self.away = False

    async def turn(
        self,
        tree: str,
        identity: str,
        reader: str,
        became: Became,
        *,
        line: str = "",
        held: str = "",
    ) -> Turn:
        if self.away:
            raise TransientError("away")
        self.said.append((became, line))
        return self._turns.pop(0) if became == "ask" and self._turns else Turn(go=False)


def full() -> AsyncSyncError:
    """As the disk of the reader fails."""
    try:
        with os_errors("target", "/here"):
            raise OSError(errno.ENOSPC, "full")
    except AsyncSyncError as exc:
        return exc


class Reader:
    """Reads by turns; the n-th time that it reads, `steps[n]` happens."""

    def __init__(self, head: Head, *steps: Callable[[], Any] | AsyncSyncError | None) -> None:
        self._steps, self.clock, self.heard = list(steps), FakeClock(), list[Event]()
        store: Any = None

        @asynccontextmanager
        async def joined(line: Any) -> AsyncIterator[Any]:
            yield store

        self.read = SharedRead(
            head,
            "t",
            "i",
            store,
            MINE,
            joined,
            self._once,
            clock=self.clock,
            observe=self.heard.append,
        )

    async def _once(self, store: Any, tree: str) -> Receipt:
        step = self._steps.pop(0)
        if isinstance(step, AsyncSyncError):
            raise step
        if step is not None:
            await step()
        return RECEIPT


@pytest.mark.parametrize(
    "error",
    [
        full(),
        TransferError("two", failures=[full(), full()]),
        ClashError("the directory here holds other files", side="target"),
        BusyError("another program restores here", side="target"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whose_own_disk_or_directory_fails_blames_nobody(error: AsyncSyncError) -> None:
    head = Head(HOLDER)
    reader = Reader(head, error)

    with pytest.raises(type(error)):
        await reader.read.run()
    assert head.said == [("ask", ""), ("done", "")]
    assert reader.heard == []


async def test_who_fails_to_give_it_is_passed_over_for_all() -> None:
    head = Head(HOLDER, ORIGIN)
    reader = Reader(head, NoSpaceError("full", side="source"), None)

    assert await reader.read.run() == RECEIPT
    assert head.said == [("ask", ""), ("failed", ""), ("ask", ""), ("done", "mine")]
    assert isinstance(reader.heard[0], FellBack)


async def test_who_is_cancelled_leaves_its_turn_at_once() -> None:
    head = Head(ORIGIN)
    with anyio.CancelScope() as scope:

        async def cancelled() -> None:
            scope.cancel()
            await anyio.sleep_forever()

        await Reader(head, cancelled).read.run()

    assert head.said == [("ask", ""), ("done", "")]


async def test_what_is_here_is_restored_also_if_the_head_has_gone_meanwhile() -> None:
    head = Head(HOLDER)

    async def gone() -> None:
        head.away = True

    reader = Reader(head, gone)
    async with anyio.create_task_group() as group:
        group.start_soon(_tick, reader.clock)
        assert await reader.read.run() == RECEIPT
        group.cancel_scope.cancel()


async def test_a_head_that_is_away_for_a_while_does_not_end_a_read_from_another_node() -> None:
    head = Head(HOLDER)
    reader = Reader(head, None)

    async def away() -> None:
        head.away = True
        for _ in range(60):
            await reader.clock.advance(1)
        head.away = False

    reader._steps[0] = away

    assert await reader.read.run() == RECEIPT
    assert head.said[-1] == ("done", "mine")


async def _tick(clock: FakeClock) -> None:
    while True:
        await clock.advance(1)
