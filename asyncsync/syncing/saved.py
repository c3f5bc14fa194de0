"""Saved: a sync that goes on after its caller has control back, and what keeps it going."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import anyio

from ..concurrency import settled
from ..errors import AsyncSyncError, ConfigError, TransferError, TransientError
from ..events import Event, Observer, Snapshotted
from .base import Receipt

__all__ = ["Saved", "Saves"]

_CLEANUP_S = 120.0


class Saved:
    """A `sync_up` from a snapshot, on its way. The directory may change; it is not durable yet.

    It belongs to the event loop it was begun on.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._free, self._ended = anyio.Event(), anyio.Event()
        self._receipt: Receipt | None = None
        self._error: BaseException | None = None
        self._told = False

    def __repr__(self) -> str:
        state = "on its way" if not self.done else "failed" if self._error else "durable"
        return f"<Saved {self._what}: {state}>"

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not: `durable` returns or raises at once."""
        return self._ended.is_set()

    async def durable(self) -> Receipt:
        """Wait until the commit stands. Any number of tasks may, any number of times.

        Cancelled, only the waiting ends.

        Raises:
            AsyncSyncError: what `sync_up` raises; TransientError if the syncer was left before it
                was done.
        """
        await self._ended.wait()
        return self._outcome()

    def _outcome(self) -> Receipt:
        if self._receipt is not None:
            return self._receipt
        self._told = True
        assert self._error is not None, "it has ended"
        raise self._error

    async def _run(self, call: Callable[[Observer], Awaitable[Receipt]], observe: Observer) -> None:
        freed = self._free

        def told(event: Event) -> None:
            observe(event)
            if isinstance(event, Snapshotted):
                freed.set()

        self._receipt = await call(told)

    def _settle(self, task: asyncio.Task[None]) -> None:
        """Its task has ended, perhaps without ever having had a turn."""
        if self._receipt is None:
            self._error = (None if task.cancelled() else task.exception()) or TransientError(
                f"{self._what}: stopped before it was done, because its StorageSyncer was "
                "left; run it again, and wait for what you need"
            )
        self._ended.set()
        self._free.set()

    def _is_lost(self) -> bool:
        """Whether it failed and nobody has heard of it."""
        return self._error is not None and not self._told


class Saves:
    """The saves of one syncer: a task each, which ends with the syncer or with its event loop.

    Args:
        observe: hears of those that have no observer of their own.
    """

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self._tasks: dict[asyncio.AbstractEventLoop, set[asyncio.Task[None]]] = {}
        self._begun: list[Saved] = []
        self._program = os.getpid()
        self._closed = False

    async def begin(
        self,
        what: str,
        call: Callable[[Observer], Awaitable[Receipt]],
        observe: Observer | None = None,
    ) -> Saved:
        """Run `call`; returns when it says that its source may change, or when it has ended.

        Raises what it raises until then. Cancelled, it cancels the call and waits for its end.
        """
        if self._closed:
            raise ConfigError("this StorageSyncer is closed; open a new one")
        saved, told = Saved(what), self._observe if observe is None else observe
        tasks = self._tasks.setdefault(asyncio.get_running_loop(), set())
        task = asyncio.create_task(saved._run(call, told))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(saved._settle)
        try:
            await saved._free.wait()
        except BaseException:
            await _stop({task})
            raise
        if saved.done:
            saved._outcome()
        self._begun = [one for one in self._begun if not one.done or one._is_lost()]
        self._begun.append(saved)
        return saved

    def _running(self) -> set[asyncio.Task[None]]:
        self._tasks = {k: v for k, v in self._tasks.items() if not k.is_closed()}
        return set(self._tasks.get(asyncio.get_running_loop(), ()))

    async def drain(self) -> None:
        """Accept no more and wait for those that were begun on this loop. Cancelled, stop them."""
        self._closed = True
        try:
            if tasks := self._running():
                await asyncio.wait(tasks)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Accept no more and cancel those that were begun on this loop."""
        self._closed = True
        await _stop(self._running())

    def raise_lost(self) -> None:
        """Raise, once, what went wrong and nobody has heard of.

        Raises:
            TransferError: names those that failed; `failures` has the errors.
        """
        ours = self._begun if os.getpid() == self._program else ()  # not a forked child's
        lost = [(one._what, one._error) for one in ours if one._is_lost()]
        self._begun = []
        if lost:
            texts = "; ".join(f"{what}: {error}" for what, error in lost)
            failures = [error for _, error in lost if isinstance(error, AsyncSyncError)]
            raise TransferError(
                f"{len(lost)} save(s) failed that nobody waited for: {texts}", failures=failures
            ) from lost[0][1]


async def _stop(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    with anyio.CancelScope(shield=True):
        for task in tasks:
            await settled(task, _CLEANUP_S)
