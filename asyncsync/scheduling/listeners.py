"""Who hears of what happens: each at its own pace, and nobody holds up the syncs or the loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from queue import SimpleQueue
from weakref import WeakSet

import anyio

from ..errors import StalledError
from .values import Missed, Notice, Watcher

__all__ = ["Feed", "Listeners"]

_KEPT = 10_000
_GRACE_S = 10.0


class Feed(AsyncIterator[Notice]):
    """Events, one after the other, from the moment it was asked for until the scheduler is closed.

    For one task at a time. Who reads too slowly loses the oldest, and is told how many by `Missed`.
    A pickled copy is at its end.
    """

    def __init__(self) -> None:
        self._events: deque[Notice] = deque(maxlen=_KEPT)
        self._missed, self._closed = 0, False
        self._more = anyio.Event()

    def __reduce__(self) -> tuple[Callable[[], Feed], tuple[()]]:
        return _at_its_end, ()

    async def __anext__(self) -> Notice:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._more = anyio.Event()
            await self._more.wait()
        if self._missed:
            count, self._missed = self._missed, 0
            return Missed(count=count)
        return self._events.popleft()

    def _put(self, notice: Notice) -> None:
        self._missed += len(self._events) == _KEPT
        self._events.append(notice)
        self._more.set()

    def _close(self) -> None:
        self._closed = True
        self._more.set()


def _at_its_end() -> Feed:
    feed = Feed()
    feed._close()
    return feed


class Listeners:
    """Those who read events, and the function that is called with them, in a thread of its own.

    Args:
        observe: what to call. What it raises, or that it does not return, is kept in `error`, and
            it is not called again.
    """

    def __init__(self, observe: Watcher | None) -> None:
        self._observe = observe
        self.error: BaseException | None = None
        self._feeds: WeakSet[Feed] = WeakSet()
        self._queue: SimpleQueue[Notice | Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._begun = 0
        self._closed = False

    def feed(self) -> Feed:
        """What happens from now on."""
        feed = Feed()
        self._feeds.add(feed)
        if self._closed:
            feed._close()
        return feed

    def tell(self, notice: Notice) -> None:
        """Something has happened. Never waits, never raises."""
        for feed in self._feeds:
            feed._put(notice)
        if self._observe is None or self.error is not None or self._closed:
            return
        if self._queue.qsize() >= _KEPT:
            self.error = StalledError(f"the observer is {_KEPT} events behind")
            return
        if self._thread is None:
            thread = threading.Thread(
                target=self._call, args=(self._observe,), name="asyncsync-observer", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as exc:  # the machine has no more threads
                self.error = exc
                return
            self._thread = thread
        self._queue.put(notice)

    def _call(self, observe: Watcher) -> None:
        while (item := self._queue.get()) is not None:
            if callable(item):
                item()
            elif self.error is None:
                self._begun += 1
                try:
                    observe(item)
                except BaseException as exc:  # noqa: BLE001 - kept: status shows it, drain raises it
                    self.error = exc

    async def heard(self) -> None:
        """Wait until what was told was heard, or until nobody can wait any longer."""
        if self._thread is None or self.error is not None:
            return
        loop, reached = asyncio.get_running_loop(), anyio.Event()

        def reach() -> None:
            with suppress(RuntimeError):  # it returned at last, and nobody is left to be told
                loop.call_soon_threadsafe(reached.set)

        self._queue.put(reach)
        while not reached.is_set() and self.error is None:
            begun = self._begun
            with anyio.move_on_after(_GRACE_S):
                await reached.wait()
            if not reached.is_set() and begun == self._begun:
                self.error = StalledError(f"the observer has not returned for {_GRACE_S:g} s")

    def close(self) -> None:
        """Nothing more will be told."""
        self._closed = True
        for feed in self._feeds:
            feed._close()
        if self._thread is not None:
            self._queue.put(None)
