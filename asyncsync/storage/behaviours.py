"""What may be put around each call to a store: trying again, bounds, and haste."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

import anyio

from ..clock import Clock
from ..concurrency import Budget
from ..errors import SlowDownError, StalledError
from ..events import Observer, Retrying, ignore
from ..units import MIB
from .retrying import Backoff, RetryBudget, retry

__all__ = ["Around", "Hastened", "Limited", "Pace", "Rate", "Retried", "Stacked", "Throttled"]

T = TypeVar("T")


class Around(Protocol):
    """What a behaviour does around one call to a store."""

    async def __call__(self, what: str, size_bytes: int, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call()`, which is named `what` and moves `size_bytes` bytes."""
        ...


class Stacked:
    """Several behaviours around one call, the first outermost."""

    def __init__(self, *behaviours: Around) -> None:
        self._inside_out = behaviours[::-1]

    async def __call__(self, what: str, size_bytes: int, call: Callable[[], Awaitable[T]]) -> T:
        for behaviour in self._inside_out:
            call = partial(behaviour, what, size_bytes, call)
        return await call()


class Retried:
    """Transient failures are tried again; see `retry`."""

    def __init__(
        self,
        backoff: Backoff,
        clock: Clock,
        observe: Observer = ignore,
        budget: RetryBudget | None = None,
    ) -> None:
        self._backoff, self._clock, self._observe = backoff, clock, observe
        self._budget = budget

    async def __call__(self, what: str, size_bytes: int, call: Callable[[], Awaitable[T]]) -> T:
        return await retry(
            call,
            self._backoff,
            self._clock,
            what=what,
            observe=self._observe,
            budget=self._budget,
        )


class Pace:
    """How fast large requests have been of late: tells which one is stuck. Pure."""

    _ENOUGH = 16
    _TIMES = 4.0
    _LEAST_S = 5.0

    def __init__(self) -> None:
        self._s_per_byte: deque[float] = deque(maxlen=64)

    def note(self, size_bytes: int, seconds: float) -> None:
        """A request took so long."""
        self._s_per_byte.append(seconds / size_bytes)

    def limit_s(self, size_bytes: int) -> float | None:
        """Longer than this takes only who is stuck: four times what nine of ten need at most.

        None as long as too little is known.
        """
        if len(self._s_per_byte) < self._ENOUGH:
            return None
        slow = sorted(self._s_per_byte)[len(self._s_per_byte) * 9 // 10]
        return max(self._LEAST_S, self._TIMES * slow * size_bytes)


class Hastened:
    """A large request that takes far longer than others is dropped and made again, once.

    A connection may be stuck behind a bad path or a busy server while all others run. The second
    time it may take as long as it likes: perhaps everything is slow by now.
    """

    _LARGE_BYTES = 1 * MIB

    def __init__(self, pace: Pace, clock: Clock, observe: Observer = ignore) -> None:
        self._pace, self._clock, self._observe = pace, clock, observe

    async def __call__(self, what: str, size_bytes: int, call: Callable[[], Awaitable[T]]) -> T:
        if size_bytes < self._LARGE_BYTES:
            return await call()
        limit_s = self._pace.limit_s(size_bytes)
        if limit_s is not None:
            with anyio.move_on_after(limit_s):
                return await self._timed(size_bytes, call)
            reason = f"not done within {limit_s:.1f} s, by far slower than the others"
            self._observe(Retrying(what=what, reason=reason, attempt=1, wait_s=0.0))
        return await self._timed(size_bytes, call)

    async def _timed(self, size_bytes: int, call: Callable[[], Awaitable[T]]) -> T:
        started = self._clock.monotonic()
        result = await call()
        self._pace.note(size_bytes, self._clock.monotonic() - started)
        return result


class Limited:
    """At most `count` calls at once; the others wait in the order they came.

    When the other side cannot keep up, the number is halved, once for all calls that were under
    way; every call that succeeds after that brings it up again a little.
    """

    def __init__(self, count: int) -> None:
        self._most, self._allowed, self._cuts = count, float(count), 0
        self._slots = Budget(count)

    async def __call__(self, what: str, size_bytes: int, call: Callable[[], Awaitable[T]]) -> T:
        async with self._slots.borrow():
            cuts = self._cuts
            try:
                result = await call()
            except (SlowDownError, StalledError):
                if cuts == self._cuts:
                    self._cuts += 1
                    self._resize(max(1.0, min(self._allowed, self._slots.used) / 2))
                raise
            if self._allowed < self._most:
                self._resize(min(self._most, self._allowed + 1 / self._allowed))
            return result

    def _resize(self, allowed: float) -> None:
        self._allowed = allowed
        self._slots.resize(int(allowed))


class Rate:
    """Bytes per second, shared by all who pay: a bucket of tokens that holds one second's worth.

    A payment larger than the bucket is let through and leaves a debt that the next ones wait out.
    Who comes first pays first.
    """

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self._bytes_per_s, self._clock = bytes_per_s, clock
        self._tokens = bytes_per_s
        self._filled_at = clock.monotonic()
        self._turn = anyio.Lock()

    async def pay(self, size_bytes: int) -> None:
        """Wait until no debt is left, then take `size_bytes`. Cancelled, nothing was taken."""
        if not size_bytes:
            return
        async with self._turn:  # anyio's lock is fair
            self._fill()
            if self._tokens < min(size_bytes, self._bytes_per_s):
                missing = min(size_bytes, self._bytes_per_s) - self._tokens
                await self._clock.sleep(missing / self._bytes_per_s)
                self._fill()
            self._tokens -= size_bytes

    def _fill(self) -> None:
        now = self._clock.monotonic()
        earned = (now - self._filled_at) * self._bytes_per_s
        self._tokens = min(self._bytes_per_s, self._tokens + earned)
        self._filled_at = now


class Throttled:
    """Calls wait until the rate allows their bytes, in both directions."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate

    async def __call__(self, what: str, size_bytes: int, call: Callable[[], Awaitable[T]]) -> T:
        await self._rate.pay(size_bytes)
        return await call()
