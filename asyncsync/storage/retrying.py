"""Trying again: after which errors, how often and after which wait."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from ..clock import Clock
from ..errors import TransientError
from ..events import Observer, Retrying, ignore

__all__ = ["Backoff", "retry"]

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


async def retry(
    operation: Callable[[], Awaitable[T]],
    backoff: Backoff,
    clock: Clock,
    *,
    what: str,
    observe: Observer = ignore,
    jitter: Callable[[], float] = random.random,
) -> T:
    """Await `operation()` until it succeeds or fails for good.

    Only a TransientError that nobody retried yet is retried, so nested retries do not multiply;
    `operation` must be safe to repeat. When it gives up, the error's `attempts` says how often it
    tried. Waits spread over the whole interval (full jitter), or last as long as the other side
    asked for.

    Args:
        what: the operation, as the events name it.
    """
    for attempt in count(1):
        try:
            return await operation()
        except TransientError as exc:
            if exc.attempts:
                raise
            if attempt >= backoff.attempts:
                exc.attempts = attempt
                raise
            wait_s = exc.retry_after_s
            if wait_s is None:
                wait_s = backoff.wait_s(attempt, jitter())
            observe(Retrying(what=what, reason=str(exc), attempt=attempt, wait_s=wait_s))
        await clock.sleep(wait_s)
    raise AssertionError("unreachable")
