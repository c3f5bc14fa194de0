"""Trying again: after which errors, how often, after which wait, and out of which budget."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import anyio

from ..clock import Clock
from ..errors import TransientError
from ..events import Observer, Retrying, ignore

__all__ = ["Backoff", "RetryBudget", "retry"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How patiently a transient failure is met.

    Attributes:
        attempts: tries in all, the first one counted.
        first_s: longest wait after the first failure; each further one is `factor` times longer,
            up to `cap_s`.
    """

    attempts: int = 4
    first_s: float = 0.5
    factor: float = 2.0
    cap_s: float = 30.0

    def wait_s(self, failure: int, jitter: float) -> float:
        """Seconds to wait after failure number `failure` (from 1); `jitter` is from 0 to 1."""
        return jitter * min(self.cap_s, self.first_s * self.factor ** (failure - 1))


_ONE = 1.0 - 1e-6  # a token, whatever sums of fractions come to


class RetryBudget:
    """What all retries of one syncer share, so that an outage is not met by a storm of them.

    A retry costs one token and waits, in its turn, until there is one. Every success earns a part
    of a token: as long as most requests succeed, no retry waits. Time earns them slowly, so that
    the end of an outage is noticed.

    Attributes:
        tokens: how many there are.
    """

    def __init__(
        self, clock: Clock, *, most: float = 100.0, per_success: float = 0.2, per_s: float = 10.0
    ) -> None:
        self._clock, self._most = clock, most
        self._per_success, self._per_s = per_success, per_s
        self.tokens = most
        self._filled_at = clock.monotonic()
        self._turn = anyio.Lock()

    def succeeded(self) -> None:
        """A request got through."""
        self.tokens = min(self._most, self.tokens + self._per_success)

    async def pay(self) -> None:
        """Take a token, waiting for it if need be. Cancelled, none was taken."""
        async with self._turn:  # anyio's lock is fair
            self._fill()
            while self.tokens < _ONE:
                await self._clock.sleep((1.0 - self.tokens) / self._per_s)
                self._fill()
            self.tokens -= 1.0

    def _fill(self) -> None:
        now = self._clock.monotonic()
        self.tokens = min(self._most, self.tokens + (now - self._filled_at) * self._per_s)
        self._filled_at = now


async def retry(
    operation: Callable[[], Awaitable[T]],
    backoff: Backoff,
    clock: Clock,
    *,
    what: str,
    observe: Observer = ignore,
    jitter: Callable[[], float] = random.random,
    budget: RetryBudget | None = None,
) -> T:
    """Await `operation()` until it succeeds or fails for good.

    Only a TransientError that nobody retried yet is retried, so nested retries do not multiply;
    `operation` must be safe to repeat. When it gives up, the error's `attempts` says how often it
    tried. Waits spread over the whole interval (full jitter), or last as long as the other side
    asked for.

    Args:
        what: the operation, as the events name it.
        budget: what others retry out of, too; None: there is no bound.
    """
    for attempt in count(1):
        try:
            result = await operation()
        except TransientError as exc:
            wait_s = _wait_s(exc, attempt, backoff, jitter)
            if wait_s is None:
                raise
            observe(Retrying(what=what, reason=str(exc), attempt=attempt, wait_s=wait_s))
        else:
            if budget is not None:
                budget.succeeded()
            return result
        await clock.sleep(wait_s)
        if budget is not None:
            await budget.pay()
    raise AssertionError("unreachable")


def _wait_s(
    error: TransientError, attempt: int, backoff: Backoff, jitter: Callable[[], float]
) -> float | None:
    """Seconds until the next try after failure number `attempt`; None: that was the last one."""
    if error.attempts:
        return None
    if attempt >= backoff.attempts:
        error.attempts = attempt
        return None
    asked = error.retry_after_s
    return backoff.wait_s(attempt, jitter()) if asked is None else asked
