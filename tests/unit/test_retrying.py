from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable

import anyio

from asyncsync.errors import PermanentError, TransientError
from asyncsync.events import Event, Retrying
from asyncsync.storage.retrying import Backoff, retry
from asyncsync.testing import FakeClock, settle


class Flaky:
    """Fails with the given errors, one after the other, then succeeds."""

    def __init__(self, clock: FakeClock, *errors: Exception) -> None:
        self._clock, self._errors = clock, list(errors)
        self.tries: list[float] = []

    async def __call__(self) -> str:
        self.tries.append(self._clock.monotonic())
        if self._errors:
            raise self._errors.pop(0)
        return "done"


async def run(
    clock: FakeClock,
    operation: Callable[[], Awaitable[str]],
    *,
    backoff: Backoff | None = None,
    jitter: Callable[[], float] = lambda: 1.0,
    observe: Callable[[Event], None] = lambda event: None,
) -> list[object]:
    """Retry it while an hour passes; what it returned or raised."""
    results: list[object] = []

    async def act() -> None:
        try:
            results.append(
                await retry(
                    operation,
                    backoff or Backoff(),
                    clock,
                    what="put k",
                    observe=observe,
                    jitter=jitter,
                )
            )
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            results.append(exc)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(act)
            await clock.advance(3600)
    return results


def lost(count: int) -> list[Exception]:
    return [TransientError(f"lost {n}") for n in range(count)]


def test_waits_double_up_to_the_cap_and_shrink_with_the_jitter() -> None:
    backoff = Backoff(first_s=0.5, factor=2.0, cap_s=3.0)

    assert [backoff.wait_s(n, 1.0) for n in (1, 2, 3, 4, 50)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.wait_s(3, 0.25) == 0.5
    assert backoff.wait_s(3, 0.0) == 0.0


def test_a_backoff_pickles() -> None:
    backoff = Backoff(attempts=2)

    assert pickle.loads(pickle.dumps(backoff)) == backoff


async def test_it_tries_four_times_by_default_and_says_how_often() -> None:
    clock = FakeClock()
    operation = Flaky(clock, *lost(9))
    (result,) = await run(clock, operation)

    assert operation.tries == [0.0, 0.5, 1.5, 3.5]
    assert isinstance(result, TransientError)
    assert result.attempts == 4


async def test_a_success_ends_it() -> None:
    clock = FakeClock()
    operation = Flaky(clock, *lost(2))

    assert await run(clock, operation) == ["done"]
    assert operation.tries == [0.0, 0.5, 1.5]


async def test_the_wait_is_spread_by_the_jitter() -> None:
    clock = FakeClock()
    operation = Flaky(clock, *lost(2))
    await run(clock, operation, jitter=iter([0.5, 0.25]).__next__)

    assert operation.tries == [0.0, 0.25, 0.5]


async def test_a_wait_that_the_other_side_asked_for_is_kept_even_above_the_cap() -> None:
    clock = FakeClock()
    asked = TransientError("slow down", retry_after_s=60.0)
    operation = Flaky(clock, asked, TransientError("at once", retry_after_s=0.0))
    await run(clock, operation)

    assert operation.tries == [0.0, 60.0, 60.0]


async def test_a_permanent_error_is_not_tried_again() -> None:
    clock = FakeClock()
    error = PermanentError("no")
    operation = Flaky(clock, error)

    assert await run(clock, operation) == [error]
    assert operation.tries == [0.0]


async def test_retries_inside_retries_do_not_multiply() -> None:
    clock = FakeClock()
    operation = Flaky(clock, *lost(99))

    async def inner() -> str:
        return await retry(operation, Backoff(), clock, what="inner", jitter=lambda: 1.0)

    (result,) = await run(clock, inner)

    assert isinstance(result, TransientError)
    assert (result.attempts, len(operation.tries)) == (4, 4)


async def test_each_retry_is_announced_before_its_wait() -> None:
    clock = FakeClock()
    events: list[Event] = []
    await run(clock, Flaky(clock, *lost(2)), observe=events.append)

    assert events == [
        Retrying(what="put k", reason="lost 0", attempt=1, wait_s=0.5),
        Retrying(what="put k", reason="lost 1", attempt=2, wait_s=1.0),
    ]


async def test_a_cancelled_wait_ends_at_once() -> None:
    clock = FakeClock()
    operation = Flaky(clock, *lost(9))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:

            async def act() -> None:
                await retry(operation, Backoff(), clock, what="x", jitter=lambda: 1.0)

            group.start_soon(act)
            await settle()
            group.cancel_scope.cancel()

    assert operation.tries == [0.0]
