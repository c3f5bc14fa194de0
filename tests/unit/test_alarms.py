"""When an alarm is raised, and when nobody need wake up for it."""

from __future__ import annotations

from math import inf

import pytest

from asyncsync.scheduling.alarms import Alarms, is_news
from asyncsync.scheduling.jobs import Job, Target, Urgency

HOUR = 3600.0


def job(not_before: float = 0.0, started_at: float = 0.0) -> Job:
    return Job(
        trial="a",
        source="/a",
        target="x://a",
        urgency=Urgency.FORCED,
        not_before=not_before,
        started_at=started_at,
    )


def waiting(name: str = "x://a") -> Target:
    target = Target(name)
    target.waiting.append(job())
    return target


@pytest.mark.parametrize(("usual_s", "patience_s"), [(0.0, 10.0), (9.0, 19.0), (30.0, 60.0)])
def test_the_patience_is_over_when_it_is_exactly_over(usual_s: float, patience_s: float) -> None:
    alarms, target = Alarms(), waiting()
    target.usual_s = usual_s
    alarms.due(target, 5.0)

    assert alarms.next_at() == 5.0 + patience_s
    assert alarms.ring(5.0 + patience_s - 0.001) == []
    assert alarms.ring(5.0 + patience_s) == [(target, "waiting")]


@pytest.mark.parametrize(("now", "late"), [(14.999, False), (15.0, True)])
def test_what_runs_is_slow_when_its_own_patience_is_over(now: float, late: bool) -> None:
    alarms, target = Alarms(), Target("x://a")
    target.running = job(started_at=5.0)
    alarms.due(target, 0.0)

    assert alarms.ring(now) == ([(target, "slow")] if late else [])


def test_what_rests_after_a_failure_that_is_over_does_not_wait_for_a_slot() -> None:
    alarms, target = Alarms(), Target("x://a")
    target.waiting.append(job(not_before=10.5))
    alarms.due(target, 0.0)

    assert alarms.ring(10.0) == []
    assert alarms.ring(20.0) == [(target, "waiting")]


def test_an_alarm_is_raised_again_after_each_further_hour() -> None:
    alarms, target = Alarms(), waiting()
    alarms.due(target, 0.0)
    rung = []
    while (now := alarms.next_at()) < 3 * HOUR:
        rung += [now for _ in alarms.ring(now)]

    assert rung == [10.0, HOUR + 10, 2 * HOUR + 10]


@pytest.mark.parametrize(("now", "news"), [(HOUR - 0.001, False), (HOUR, True)])
def test_it_is_no_news_within_the_hour(now: float, news: bool) -> None:
    target = Target("x://a")

    assert is_news(target, "failing", 0.0)
    assert is_news(target, "failing", now) is news
    assert is_news(target, "waiting", now)


def test_what_is_known_to_stall_is_not_called_slow() -> None:
    target = Target("x://a")

    assert is_news(target, "slow", 0.0)
    assert is_news(target, "stalled", 1.0)
    assert not is_news(target, "slow", HOUR)
    assert is_news(target, "slow", HOUR + 1)


def test_nobody_wakes_up_for_what_is_done() -> None:
    alarms, target, other = Alarms(), waiting(), waiting("x://b")
    alarms.due(target, 0.0)
    alarms.due(other, 1.0)
    target.due_since = inf

    assert alarms.next_at() == 11.0
    other.due_since = inf
    assert alarms.next_at() == inf
    alarms.due(target, 50.0)
    assert alarms.next_at() == 60.0


def test_what_is_late_is_looked_at_together() -> None:
    alarms, targets = Alarms(), [waiting(f"x://{n}") for n in range(100)]
    for number, target in enumerate(targets):
        alarms.due(target, number / 100)
    looks = 0
    while (now := alarms.next_at()) < 100.0:
        alarms.ring(now)
        looks += 1

    assert looks <= 100 + 2 * 9
