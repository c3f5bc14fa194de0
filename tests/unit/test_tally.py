"""Whether anything still arrives: told when it does not, and what is waited for."""

from __future__ import annotations

from asyncsync.events import Event, Moved, Stalled, ignore
from asyncsync.testing import FakeClock, settle
from asyncsync.transfer import Tally


def stalls(events: list[Event]) -> list[tuple[str, int | None, float]]:
    return [(e.path, e.part, e.seconds) for e in events if isinstance(e, Stalled)]


async def test_a_stall_names_what_has_been_under_way_the_longest() -> None:
    clock, events = FakeClock(), list[Event]()
    tally = Tally(events.append)
    async with tally.watched(clock):
        with tally.under_way("first", 7), tally.under_way("second", None):
            await clock.advance(59)
            assert events == []
            await clock.advance(1)
            assert stalls(events) == [("first", 7, 60)]
            await clock.advance(15)
            assert stalls(events) == [("first", 7, 60), ("first", 7, 75)]
        with tally.under_way("second", None):
            await clock.advance(60)
            assert stalls(events)[-1][:2] == ("second", None)


async def test_what_arrives_now_and_then_is_no_stall() -> None:
    clock, events = FakeClock(), list[Event]()
    tally = Tally(events.append)
    async with tally.watched(clock):
        with tally.under_way("a", 0):
            for _ in range(10):
                await clock.advance(45)
                tally.moved("a", 1, files=0)

    assert {type(event) for event in events} == {Moved}


async def test_where_nothing_is_under_way_nothing_is_stalled() -> None:
    clock, events = FakeClock(), list[Event]()
    tally = Tally(events.append)
    async with tally.watched(clock):
        await clock.advance(1000)
        with tally.under_way("a", 0):
            await clock.advance(59)

    assert events == []


async def test_nobody_watches_for_who_does_not_look() -> None:
    class Untouched(FakeClock):
        async def sleep(self, seconds: float) -> None:
            raise AssertionError("nobody asked for the time")

    tally = Tally(ignore)
    async with tally.watched(Untouched()):
        with tally.under_way("a", 0):
            await settle()
