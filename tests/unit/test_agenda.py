"""Which tree is carried on next, and when."""

from __future__ import annotations

import anyio
import pytest

from asyncsync.head.agenda import Agenda
from asyncsync.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def agenda(clock: FakeClock) -> Agenda:
    return Agenda(clock)


async def test_what_is_due_first_is_next(agenda: Agenda, clock: FakeClock) -> None:
    agenda.plan("late", 9)
    agenda.plan("soon", 5)
    agenda.plan("now")
    found = [await agenda.next()]
    async with anyio.create_task_group() as group:

        async def rest() -> None:
            found.extend([await agenda.next(), await agenda.next()])

        group.start_soon(rest)
        await clock.advance(4)
        before = list(found)
        await clock.advance(1)
        await clock.advance(4)

    assert before == ["now"]
    assert found == ["now", "soon", "late"]


async def test_the_last_plan_of_a_tree_counts(agenda: Agenda) -> None:
    agenda.plan("a")
    agenda.plan("a", 100)
    agenda.plan("b")

    assert await agenda.next() == "b"
    assert agenda.has("a")
    assert not agenda.has("b")


async def test_an_earlier_plan_wakes_who_waits_for_a_later_one(
    agenda: Agenda, clock: FakeClock
) -> None:
    agenda.plan("late", 100)
    async with anyio.create_task_group() as group:

        async def expect() -> None:
            assert await agenda.next() == "soon"

        group.start_soon(expect)
        await clock.advance(1)
        agenda.plan("soon")


async def test_a_tree_is_with_one_worker_at_a_time(agenda: Agenda) -> None:
    agenda.plan("a")
    first = await agenda.next()
    agenda.plan("a")
    agenda.plan("b")
    second = await agenda.next()
    running = agenda.running
    agenda.release("a")

    assert (first, second) == ("a", "b")
    assert running == {"a", "b"}
    assert agenda.running == {"b"}


def test_pauses_double_up_to_ten_minutes_and_begin_again_after_a_success(agenda: Agenda) -> None:
    pauses = [agenda.failed("a") for _ in range(12)]
    agenda.recovered("a")

    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
    assert not agenda.has_failed("a")
    assert agenda.failed("a") == 1


def test_what_fails_for_weeks_still_has_a_pause(agenda: Agenda) -> None:
    assert [agenda.failed("a") for _ in range(3_000)][-1] == 600
