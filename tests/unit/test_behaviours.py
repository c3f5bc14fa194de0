"""What is put around calls: haste for who is stuck, and one budget for all retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import pytest

from asyncsync.errors import NotFoundError, TransientError
from asyncsync.events import Event, Retrying, ignore
from asyncsync.storage.behaviours import Hastened, Pace
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.retrying import Backoff, RetryBudget, retry
from asyncsync.storage.wrappers import equip_objects
from asyncsync.testing import FakeClock, FaultyObjects, settle
from asyncsync.units import MIB

LARGE = 16 * MIB
T = TypeVar("T")


# -- the pace


def _paced(*seconds: float, size_bytes: int = LARGE) -> Pace:
    pace = Pace()
    for one in seconds:
        pace.note(size_bytes, one)
    return pace


def test_a_few_requests_tell_nothing() -> None:
    assert _paced(*[1.0] * 15).limit_s(LARGE) is None
    assert _paced(*[2.0] * 16).limit_s(LARGE) == pytest.approx(8.0)


def test_one_slow_request_in_ten_does_not_count() -> None:
    assert _paced(*[2.0] * 18, 100.0).limit_s(LARGE) == pytest.approx(8.0)
    assert _paced(*[2.0] * 17, *[100.0] * 3).limit_s(LARGE) == pytest.approx(400.0)


def test_larger_requests_may_take_longer_and_none_has_less_than_five_seconds() -> None:
    pace = _paced(*[2.0] * 20)

    assert pace.limit_s(2 * LARGE) == pytest.approx(16.0)
    assert pace.limit_s(MIB) == 5.0


def test_what_is_long_ago_is_forgotten() -> None:
    assert _paced(*[100.0] * 50, *[2.0] * 64).limit_s(LARGE) == pytest.approx(8.0)


# -- haste


class Stuck:
    """The first `count` calls wait for ever; how all have ended."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.ended: list[str] = []

    async def __call__(self) -> str:
        if self._left:
            self._left -= 1
            try:
                await anyio.sleep_forever()
            except BaseException:
                self.ended.append("dropped")
                raise
        self.ended.append("done")
        return "result"


class Impatient(Pace):
    def limit_s(self, size_bytes: int) -> float | None:
        return 0.001


async def test_a_request_that_is_stuck_is_made_again() -> None:
    events: list[Event] = []
    call = Stuck(1)
    hastened = Hastened(Impatient(), FakeClock(), events.append)

    assert await hastened("put part 3", LARGE, call) == "result"
    assert call.ended == ["dropped", "done"]
    assert [(e.what, e.attempt) for e in events if isinstance(e, Retrying)] == [("put part 3", 1)]


async def test_the_second_time_it_may_take_as_long_as_it_likes() -> None:
    call = Stuck(2)
    hastened = Hastened(Impatient(), FakeClock())
    with anyio.move_on_after(0.1) as scope:
        await hastened("put part 3", LARGE, call)

    assert scope.cancelled_caught
    assert call.ended == ["dropped", "dropped"]


async def test_small_requests_are_never_dropped() -> None:
    call = Stuck(1)
    with anyio.move_on_after(0.05) as scope:
        await Hastened(Impatient(), FakeClock())("head", MIB - 1, call)

    assert scope.cancelled_caught
    assert call.ended == ["dropped"]


async def test_errors_pass_and_only_successes_set_the_pace() -> None:
    pace, clock = Pace(), FakeClock()

    async def fails() -> None:
        raise NotFoundError("no")

    for _ in range(20):
        with pytest.raises(NotFoundError):
            await Hastened(pace, clock)("get", LARGE, fails)

    assert pace.limit_s(LARGE) is None


async def test_every_store_is_hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "limit_s", Impatient.limit_s)
    stuck = Stuck(1)

    async def fault(call: Callable[[], Awaitable[T]]) -> T:
        await stuck()
        return await call()

    store = equip_objects(FaultyObjects(MemoryObjects(), fault), clock=FakeClock())
    await store.put("k", bytes(LARGE))

    assert stuck.ended == ["dropped", "done"]


# -- the budget


async def test_retries_wait_for_tokens_when_the_burst_is_used_up() -> None:
    clock = FakeClock()
    budget = RetryBudget(clock, most=3.0, per_s=2.0)
    paid: list[float] = []

    async def pay() -> None:
        await budget.pay()
        paid.append(clock.monotonic())

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(pay)
        await clock.advance(10)

    assert paid == pytest.approx([0, 0, 0, 0.5, 1.0, 1.5])


async def test_successes_earn_retries_up_to_the_burst() -> None:
    clock = FakeClock()
    budget = RetryBudget(clock, most=2.0, per_success=0.5, per_s=0.001)
    await budget.pay()
    await budget.pay()
    assert budget.tokens == pytest.approx(0.0)
    for _ in range(10):
        budget.succeeded()

    assert budget.tokens == 2.0


async def test_a_cancelled_retry_has_taken_nothing() -> None:
    clock = FakeClock()
    budget = RetryBudget(clock, most=1.0, per_s=1.0)
    await budget.pay()
    async with anyio.create_task_group() as group:
        group.start_soon(budget.pay)
        await settle()
        group.cancel_scope.cancel()

    assert budget.tokens == pytest.approx(0.0)
    async with anyio.create_task_group() as group:
        group.start_soon(budget.pay)
        await clock.advance(1.0)


async def test_in_an_outage_all_requests_together_retry_at_a_steady_rate_and_recover() -> None:
    """Two hundred requests fail for a minute; then all of them get through within ten seconds."""
    clock, down_s = FakeClock(), 60.0
    budget = RetryBudget(clock)
    tries = Counter[int]()
    done: list[float] = []

    async def request() -> None:
        tries[int(clock.monotonic())] += 1
        if clock.monotonic() < down_s:
            raise TransientError("down")
        done.append(clock.monotonic())

    async def work() -> None:
        patience = Backoff(attempts=100, first_s=0.5, cap_s=4.0)
        await retry(request, patience, clock, what="put", observe=ignore, budget=budget)

    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(work)
        await clock.advance(200)

    assert len(done) == 200
    assert max(tries[second] for second in range(15, 60)) <= 11
    assert max(done) <= down_s + 30


async def test_the_budget_of_a_store_is_that_of_its_syncer() -> None:
    clock = FakeClock()
    budget = RetryBudget(clock, most=1.0, per_s=0.1)
    failing = [TransientError("once"), TransientError("twice")]

    async def fault(call: Callable[[], Awaitable[T]]) -> T:
        if failing:
            raise failing.pop()
        return await call()

    stores = [
        equip_objects(
            FaultyObjects(MemoryObjects(), fault),
            clock=clock,
            backoff=Backoff(first_s=0),
            budget=budget,
        )
        for _ in range(2)
    ]
    async with anyio.create_task_group() as group:
        for store in stores:
            group.start_soon(store.put, "k", b"x")
        await clock.advance(5.0)
        waiting = [s for s in stores if not await _has(s)]
        await clock.advance(10.0)

    assert len(waiting) == 1
    assert all([await _has(store) for store in stores])


async def _has(store: object) -> bool:
    try:
        await store.head("k")  # type: ignore[attr-defined]
    except NotFoundError:
        return False
    return True
