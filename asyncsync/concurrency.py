"""Bounds: bytes in memory, tasks alive, threads at work; and cleanup that cannot hang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from .errors import StalledError

__all__ = ["ByteBudget", "Threads", "each_bounded", "quietly"]

T = TypeVar("T")


class ByteBudget:
    """Bytes one engine may hold in memory at once.

    A chunk larger than the whole budget is admitted alone, not refused.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._used = 0
        self._freed = anyio.Condition()

    @property
    def used_bytes(self) -> int:
        """What is lent out now."""
        return self._used

    @asynccontextmanager
    async def borrow(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold `size_bytes` for the length of the block; waits until they are free."""
        async with self._freed:
            while self._used and self._used + size_bytes > self._total:
                await self._freed.wait()
            self._used += size_bytes
        try:
            yield
        finally:
            self._used -= size_bytes
            with anyio.CancelScope(shield=True):
                async with self._freed:
                    self._freed.notify_all()


async def each_bounded(
    limit: int, items: Iterable[T], action: Callable[[T], Awaitable[None]]
) -> None:
    """Run `action(item)` for every item, at most `limit` tasks alive.

    The first failure cancels the others and is raised in an ExceptionGroup.
    """
    slots = anyio.Semaphore(limit)

    async def run(item: T) -> None:
        await action(item)
        slots.release()  # not on failure: the group is over, start nothing new

    async with anyio.create_task_group() as group:
        for item in items:
            await slots.acquire()
            group.start_soon(run, item)


class Threads:
    """A bounded pool of threads for work on disks.

    A thread cannot be cancelled. So a cancelled `run` waits until its function has returned and
    only then lets the cancellation go on: nothing works behind the caller's back while the caller
    cleans up. Only a function that shows no end within `stall_s` seconds is abandoned.

    Args:
        count: threads at most.
        stall_s: seconds one function may take; each handles at most a chunk or a batch.
    """

    def __init__(self, count: int = 8, *, stall_s: float = 300.0) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="asyncsync")
        self._stall_s = stall_s

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call `function(*args)` in a thread and return what it returns.

        Raises:
            StalledError: it did not end in time; its thread is lost until it does.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        future = asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        try:
            with anyio.CancelScope(shield=True):
                await _settled(future, self._stall_s)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.exception()  # seen: the cancellation is what the caller hears of
            raise
        if not future.done():
            raise StalledError(
                f"{getattr(function, '__name__', 'a disk operation')} has not ended within "
                f"{self._stall_s:g} s; the device or network mount does not answer"
            )
        await anyio.lowlevel.checkpoint_if_cancelled()
        return future.result()

    def close(self) -> None:
        """Start nothing more. Threads that are at work end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _settled(future: asyncio.Future[T], timeout_s: float) -> None:
    """Wait until `future` is done, however often this task is cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    cancelled: asyncio.CancelledError | None = None
    while not future.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait([future], timeout=left)
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled


async def quietly(cleanup: Callable[[], Awaitable[object]], *, grace_s: float = 5.0) -> None:
    """Best-effort cleanup: shielded, at most `grace_s` seconds, never raises an Exception.

    An error here must not replace the one being handled: it could be a cancellation, which would
    then be lost. What stays behind is swept by the next attempt.
    """
    with anyio.move_on_after(grace_s, shield=True):
        try:
            await cleanup()
        except Exception:  # noqa: BLE001 - the error that led here is the one to report
            return
