"""Bounds: bytes in memory, tasks alive, threads at work; and cleanup that cannot hang."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import islice
from mmap import mmap
from typing import TypeVar

import anyio

from .errors import ConfigError, StalledError
from .units import KIB

__all__ = [
    "Budget",
    "ByteBudget",
    "Threads",
    "beside",
    "each",
    "each_bounded",
    "finish",
    "quietly",
    "settled",
]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_FEW = 16  # requests of one step at once; wrappers bound them over all steps
_BUFFERS = tuple(256 * KIB << doubled for doubled in range(7))  # up to a chunk


class _Request:
    """Somebody who waits for a share."""

    __slots__ = ("amount", "granted", "woken")

    def __init__(self, amount: int) -> None:
        self.amount, self.granted = amount, False
        self.woken = asyncio.get_running_loop().create_future()


class _Loan:
    """A share, held for the length of a block."""

    __slots__ = ("_amount", "_budget")

    def __init__(self, budget: Budget, amount: int) -> None:
        self._budget, self._amount = budget, amount

    async def __aenter__(self) -> None:
        await self._budget.take(self._amount)

    async def __aexit__(self, *_: object) -> None:
        self._budget.give_back(self._amount)


class Budget:
    """An amount of something that may be in use at once.

    Whoever asks first is served first, so that a large request does not starve behind small ones.
    One that is larger than the whole budget is admitted alone, not refused.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._waiting: deque[_Request] = deque()

    @property
    def used(self) -> int:
        """What is lent out now."""
        return self._used

    def resize(self, total: int) -> None:
        """Lend more or less from now on; what is lent out already stays so."""
        self._total = total
        self._lend()

    def borrow(self, amount: int = 1) -> _Loan:
        """Hold `amount` for the length of the block; waits until it is free."""
        return _Loan(self, amount)

    async def take(self, amount: int = 1) -> None:
        """Wait until `amount` is free and hold it until `give_back`. Cancelled, none is held."""
        if not self._waiting and self._has(amount):  # no turn of the loop is needed for that
            self._take(amount)
            return
        request = _Request(amount)
        self._waiting.append(request)
        try:
            await request.woken
        except BaseException:
            if request.granted:
                self._used -= amount
            else:
                self._waiting.remove(request)
            self._lend()
            raise

    def give_back(self, amount: int = 1) -> None:
        """What was taken is free again. Nothing here can be interrupted half way."""
        self._used -= amount
        self._lend()

    def _lend(self) -> None:
        while self._waiting:
            if not self._has(self._waiting[0].amount):
                return
            request = self._waiting.popleft()
            self._take(request.amount)
            request.granted = True
            if not request.woken.done():  # else its task is cancelled, and gives it back
                request.woken.set_result(None)

    def _has(self, amount: int) -> bool:
        return not self._used or self._used + amount <= self._total

    def _take(self, amount: int) -> None:
        self._used += amount


class ByteBudget(Budget):
    """Bytes one engine may hold in memory at once, and the buffers for them.

    Args:
        total: the budget.
        buffers: the sizes of buffers that are kept to be lent again, each twice the one before.
    """

    def __init__(self, total: int, *, buffers: Sequence[int] = _BUFFERS) -> None:
        super().__init__(total)
        self._idle: dict[int, list[mmap]] = {size: [] for size in buffers}

    @asynccontextmanager
    async def buffer(self, size_bytes: int) -> AsyncIterator[memoryview]:
        """Hold `size_bytes` and get the memory for them, with whatever is in it.

        Fresh memory for every chunk would be zeroed page by page, and much of it never given back.
        Pages of a map that nobody writes to, because a hole is read, take no room.
        After a failure the memory is not used again: a connection may still be sending from it.
        """
        room = next((size for size in self._idle if size // 2 < size_bytes <= size), 0)
        if not room:
            async with self.borrow(size_bytes):
                yield memoryview(bytearray(size_bytes))
            return
        await super().take(room)
        try:
            idle = self._idle[room]
            memory = idle.pop() if idle else self._map(room)
            yield memoryview(memory)[:size_bytes]
            idle.append(memory)
        finally:
            self.give_back(room)

    async def take(self, amount: int = 1) -> None:
        """See `Budget.take`."""
        await super().take(amount)
        self._trim()

    def _map(self, room: int) -> mmap:
        self._trim()
        return mmap(-1, room)

    def _trim(self) -> None:
        """What lies idle counts as well: it makes room for what is lent."""
        excess = sum(size * len(idle) for size, idle in self._idle.items())
        excess -= max(0, self._total - self._used)
        for size, idle in self._idle.items():
            while idle and excess > 0:
                idle.pop()
                excess -= size


async def each_bounded(
    limit: int, items: Iterable[T], action: Callable[[T], Awaitable[object]]
) -> None:
    """Run `action(item)` for every item, at most `limit` tasks alive.

    The first failure cancels the others and is raised in an ExceptionGroup. No item starts after
    it.
    """
    left = iter(items)
    failed = False

    async def run(item: T) -> None:
        nonlocal failed
        try:
            if not failed:
                await action(item)
            for following in left:  # a task for each would cost as much as a small request
                if failed:  # another task's failure, of which the group has not heard yet
                    return
                await action(following)
        except BaseException:
            failed = True
            raise

    async with anyio.create_task_group() as group:
        for item in islice(left, limit):
            group.start_soon(run, item)


async def each(
    items: Iterable[T], action: Callable[[T], Awaitable[object]], *, limit: int = _FEW
) -> None:
    """Run `action(item)` for every item, a few at a time; raises the first failure itself."""
    try:
        await each_bounded(limit, items, action)
    except ExceptionGroup as group:
        one = _first(group)
        raise one from one.__cause__


def _first(group: BaseExceptionGroup[E]) -> E:
    one = group.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


@asynccontextmanager
async def beside(work: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run `work` for as long as the block lasts; if it fails, the block ends with its error."""
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_awaited, work)
            yield
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        # The block's own error passes as it is: nobody asked for a group.
        one = _first(errors)
        raise one from one.__cause__


async def _awaited(work: Callable[[], Awaitable[object]]) -> None:
    await work()


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
        self._closed = False

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call `function(*args)` in a thread and return what it returns.

        Raises:
            StalledError: it did not end in time; its thread is lost until it does.
            ConfigError: closed before it began.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise _closed()
        future = asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        future.add_done_callback(_notice)
        with anyio.CancelScope(shield=True):
            await settled(future, self._stall_s)
        if future.cancelled():  # by close: nobody has cancelled the caller
            raise _closed()
        if not future.done():
            raise StalledError(
                f"{getattr(function, '__name__', 'a disk operation')} has not ended within "
                f"{self._stall_s:g} s; the device or network mount does not answer"
            )
        await anyio.lowlevel.checkpoint_if_cancelled()
        return future.result()

    def close(self) -> None:
        """Start nothing more. Threads that are at work end by themselves. Again: no effect."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)


def _closed() -> ConfigError:
    return ConfigError("closed while work was going on or after; close when it has ended")


def _notice(future: asyncio.Future[T]) -> None:
    """Take note of an error, which else is logged when the caller only hears of a cancellation."""
    if not future.cancelled():
        future.exception()


async def settled(future: asyncio.Future[T], timeout_s: float) -> None:
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


async def finish(
    call: Callable[[], Awaitable[T]],
    *,
    grace_s: float = 5.0,
) -> T:
    """Await `call()`, which cannot be taken back: cancelled, it gets `grace_s` more to end.

    A server may act on a request long after its sender has hung up, and so after what the sender
    did next. The cancellation goes on all the same.
    """
    task = asyncio.ensure_future(call())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            try:
                await asyncio.wait([task], timeout=grace_s)
            finally:
                task.cancel()
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # not to be reported as lost: the cancellation is what counts
        raise


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
