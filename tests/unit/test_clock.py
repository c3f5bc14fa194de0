"""A clock that never goes back."""

from __future__ import annotations

from asyncsync.clock import SteadyClock
from asyncsync.testing import FakeClock


def test_it_goes_on_from_where_it_was_when_the_other_goes_back() -> None:
    other = FakeClock(100.0)
    clock, seen = SteadyClock(other), list[float]()
    for jump in (5.0, -50.0, 1.0, 2.0, -0.5, 1000.0):
        other._time += jump
        seen.append(clock.monotonic())

    assert seen == [105.0, 105.0, 106.0, 108.0, 108.0, 1108.0]
    assert clock.now() == other.now()
