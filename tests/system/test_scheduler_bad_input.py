"""What people and machines do wrong: to no call of a scheduler, and to nobody's newest state."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncsync import StorageSyncer, SyncConfig
from asyncsync.errors import ConfigError, DeadlineError, NotFoundError, TransientError
from asyncsync.scheduling import (
    Alarm,
    DrainError,
    Failed,
    Notice,
    Started,
    Synced,
    SyncScheduler,
    Ticket,
)
from asyncsync.testing import FakeClock, settle

from .stage import PERIOD, Stage, deaf_until, failing, forever
from .trees import content, make

DAY = 86_400.0


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# -- numbers and names


async def test_an_endless_period_syncs_once_and_rests_after_a_failure(stage: Stage) -> None:
    stage.syncer.acts["x://a"] = failing(OSError("no"), OSError("no"), None)
    async with stage.open(config=SyncConfig(sync_period=float("inf"))) as scheduler:
        for _ in range(100):
            scheduler.report("a")
            await stage.clock.advance(1)

        assert stage.syncer.at("x://a") == [0, 1, 3]
        assert scheduler.status().trials[0].state == "changed"
    assert len(stage.syncer.at("x://a")) == 4  # the end does not wait for it


async def test_counts_that_go_back_are_taken_as_they_are(stage: Stage) -> None:
    async with stage.open() as scheduler:
        durable: list[float | None] = []
        for iteration, seconds in ((50, 500.0), (3, 20.0), (0, 0.0)):
            scheduler.report("a", training_iteration=iteration, time_total_s=seconds)
            await stage.clock.advance(PERIOD)
            durable.append(scheduler.status().trials[0].durable_iteration)

        assert durable == [50, 3, 0]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\n", "\0"])
async def test_a_trial_that_cannot_be_a_directory_is_refused(stage: Stage, name: str) -> None:
    async with stage.open() as scheduler:
        with pytest.raises(ConfigError, match="name of a directory"):
            scheduler.add(name, local_dir=stage.place, remote_dir="x://other")
        with pytest.raises(ConfigError, match="add it first"):
            scheduler.report(name)


async def test_nothing_is_taken_for_a_trial_that_never_took_part(stage: Stage) -> None:
    async with stage.open() as scheduler:
        for call in (scheduler.sync_up_if_needed, scheduler.sync_down_if_needed, scheduler.report):
            with pytest.raises(ConfigError, match="add it first"):
                call("never")
        for act in (
            scheduler.complete("never"),
            scheduler.checkpoint("never", stage.checkpoint_dir("never", "c")),
        ):
            with pytest.raises(ConfigError, match="add it first"):
                await act

        assert stage.syncer.calls == []


async def test_nothing_is_taken_for_a_trial_that_is_being_completed(stage: Stage) -> None:
    async with stage.open() as scheduler:
        completing = asyncio.create_task(scheduler.complete("a"))
        await settle()
        for call in (scheduler.report, scheduler.sync_up_if_needed):
            with pytest.raises(ConfigError, match="being completed"):
                call("a")
        for act in (
            scheduler.complete("a"),
            scheduler.checkpoint("a", stage.checkpoint_dir("a", "c")),
        ):
            with pytest.raises(ConfigError, match="being completed"):
                await act
        with pytest.raises(ConfigError, match="already"):
            stage.add(scheduler, "a")
        await stage.drive(completing)
        with pytest.raises(ConfigError, match="add it first"):
            scheduler.report("a")

        assert [event.urgency for event in stage.told(Started)] == ["final"]


async def test_a_refused_trial_leaves_no_trace(stage: Stage) -> None:
    async with stage.open() as scheduler:
        for wrong in (
            {"remote_dir": "x://a"},
            {"remote_dir": "x://b", "direction": "sideways"},
            {"remote_dir": "x://b", "exclude": "*.tmp"},
            {"remote_dir": "x://b", "checkpoints": "!"},
            {"remote_dir": "x://b", "delete": False},
            {},
        ):
            with pytest.raises(ConfigError):
                scheduler.add("b", local_dir=stage.place / "b", **wrong)
        stage.add(scheduler, "b")
        scheduler.report("b")
        await stage.clock.advance(2)

        assert stage.syncer.at("x://b") == [0]


# -- places


async def test_a_checkpoint_never_goes_where_the_directory_of_a_trial_goes(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.add("b", local_dir=stage.place / "b", remote_dir="x://a/c")
        with pytest.raises(ConfigError, match="target of trial b"):
            await stage.save(scheduler, "a", "c")

        assert stage.syncer.calls == []


async def test_two_trials_may_come_from_one_directory_but_not_into_one(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.add("b", local_dir=stage.place / "a", remote_dir="x://b")
        with pytest.raises(ConfigError, match="directory of trial a"):
            scheduler.add("c", local_dir=stage.place / "a", remote_dir="x://c", direction="down")
        with pytest.raises(ConfigError, match="directory of trial b"):
            scheduler.sync_down_if_needed("a")
        for name in "ab":
            scheduler.report(name)
        await stage.clock.advance(2)

        assert {call[2] for call in stage.syncer.calls} == {"x://a", "x://b"}


@pytest.mark.parametrize("remote", ["a", "a/inside", "."])
async def test_a_copy_inside_the_original_is_refused_when_it_is_added(
    tmp_path: Path, remote: str
) -> None:
    async with (
        StorageSyncer(isolation="loop") as syncer,
        SyncScheduler(syncer, SyncConfig()) as scheduler,
    ):
        with pytest.raises(ConfigError, match=r"same directory|overlap"):
            scheduler.add("a", local_dir=tmp_path / "a", remote_dir=tmp_path / remote)

        assert scheduler.status().trials == ()


async def test_a_tree_that_is_gone_is_named_and_its_copy_stays(tmp_path: Path) -> None:
    make(tmp_path / "a", {"log": b"1"})
    notices: list[Notice] = []
    async with (
        StorageSyncer(isolation="loop") as syncer,
        SyncScheduler(syncer, SyncConfig(), observe=notices.append) as scheduler,
    ):
        scheduler.add("a", local_dir=tmp_path / "a", remote_dir=tmp_path / "there")
        scheduler.report("a")
        await scheduler.drain()
        shutil.rmtree(tmp_path / "a")
        scheduler.report("a")  # raises nothing
        with pytest.raises(DrainError, match="a") as caught:
            await scheduler.drain()
        with pytest.raises(NotFoundError):
            await scheduler.checkpoint("a", tmp_path / "a" / "checkpoint_1")
        status = scheduler.status().trials[0]
        make(tmp_path / "a", {"log": b"2"})
        await scheduler.complete("a")

    (lost,) = caught.value.report.lost
    assert isinstance(lost.error, NotFoundError)
    assert [one.target for one in caught.value.report.durable] == [str(tmp_path / "there")]
    assert (status.failures > 0, status.stale_s > 0) == (True, True)
    assert {event.trial for event in notices if isinstance(event, Failed)} == {"a"}
    assert content(tmp_path / "there") == {"log": b"2"}


# -- callbacks


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
async def test_what_an_observer_raises_disturbs_nothing(stage: Stage, error: BaseException) -> None:
    def broken(event: Notice) -> None:
        raise error

    async with stage.open("a", "b", observe=broken) as scheduler:
        for name in "ab":
            scheduler.report(name)
        await stage.clock.advance(5)
        with pytest.raises(ConfigError, match="observer failed"):
            await stage.drive(scheduler.drain())

        assert [event.trial for event in stage.told(Synced)] == ["a", "b"]


async def test_a_reader_of_events_that_fails_disturbs_nothing(stage: Stage) -> None:
    async with stage.open() as scheduler:

        async def read() -> None:
            async for _ in scheduler.events():
                raise ZeroDivisionError

        reading = asyncio.create_task(read())
        await settle()
        for _ in range(3):
            scheduler.report("a")
            await stage.clock.advance(PERIOD)
        with pytest.raises(ZeroDivisionError):
            await reading

        assert stage.syncer.at("x://a") == [0, PERIOD, 2 * PERIOD]


# -- clocks


async def world(stage: Stage, scheduler: SyncScheduler) -> tuple[Ticket, Ticket]:
    """One sync runs, one waits, one rests after a failure, one is stuck and one is not due."""
    stage.syncer.acts = {
        "x://running/c": forever(stage.clock),
        "x://resting/c": failing(OSError("flaky")),
    }
    running = await stage.save(scheduler, "running", "c")
    resting = await stage.save(scheduler, "resting", "c")
    scheduler.report("early", training_iteration=0, time_total_s=0)
    scheduler.report("due")
    await stage.clock.advance(5)
    scheduler.report("due")
    await stage.clock.advance(0.5)
    return running, resting


def set_clock(clock: FakeClock, jump: float) -> None:
    """Put it forward, or back: then who sleeps sleeps no longer for that."""
    clock._time += jump
    now, back = clock._time, min(0.0, jump)
    clock._sleepers = sorted(
        (max(at + back, now), number, woken) for at, number, woken in clock._sleepers
    )


TRIALS = ("running", "resting", "early", "due")


@pytest.mark.parametrize("jump", [DAY, 365 * DAY, -3600.0, -DAY])
async def test_a_clock_that_jumps_hangs_nothing_and_loses_nothing(
    stage: Stage, jump: float
) -> None:
    stage.clock._time = 2 * DAY
    async with stage.open(*TRIALS, max_syncs=2) as scheduler:
        running, resting = await world(stage, scheduler)
        set_clock(stage.clock, jump)
        stage.syncer.acts.clear()
        for name in TRIALS:
            scheduler.report(name, training_iteration=9, time_total_s=9)
        before = stage.clock.monotonic()
        await stage.clock.advance(2 * PERIOD)
        status = scheduler.status()
        completing = [asyncio.create_task(scheduler.complete(name)) for name in ("due", "early")]
        await stage.drive(asyncio.wait(completing), 5)
        report = None
        try:
            report = await stage.drive(scheduler.drain(deadline_s=5000), 5)
        except DrainError as exc:
            report = exc.report

        assert stage.clock.monotonic() - before < 10_000
        assert all(task.exception() is None for task in completing)
        assert all(trial.stale_s >= 0 and trial.queued_s >= 0 for trial in status.trials)
        assert {one.target for one in report.durable} >= {"x://resting", "x://running"}
        assert running.done
        assert resting.done
        assert {one.target for one in report.lost} <= {"x://running/c", "x://resting/c"}
    assert all(alarm.late_s >= 0 and alarm.queued_s >= 0 for alarm in stage.told(Alarm))
    assert all(event.queued_s >= 0 for event in stage.told(Started))
    assert all(event.seconds >= 0 for event in stage.told(Synced))


async def test_a_clock_that_stands_still_holds_up_no_end(stage: Stage) -> None:
    async with stage.open() as scheduler:
        stage.syncer.acts["x://a"] = failing(None)
        scheduler.report("a")
        await settle()
        scheduler.report("a")
        await scheduler.drain()
        await scheduler.complete("a")

        assert len(stage.syncer.at("x://a")) == 3


# -- everything at once


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: s.report("a", training_iteration=float("nan")),
        lambda s: s.report("a", time_total_s=-0.1),
        lambda s: s.report("never"),
        lambda s: s.add("a", local_dir="a", remote_dir="x://other"),
        lambda s: s.add("b", local_dir="b", remote_dir="x://a"),
    ],
)
async def test_what_is_refused_changes_nothing(
    stage: Stage, wrong: Callable[[SyncScheduler], Any]
) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a", training_iteration=5, time_total_s=5)
        await stage.clock.advance(10)
        before = scheduler.status()
        with pytest.raises(ConfigError):
            wrong(scheduler)
        await stage.clock.advance(0)

        assert scheduler.status() == before
        scheduler.report("a", training_iteration=6, time_total_s=6)
        await stage.clock.advance(PERIOD)
        assert scheduler.status().trials[0].durable_iteration == 6


@pytest.fixture
async def release() -> AsyncIterator[anyio.Event]:
    """Lets deaf syncers go, whatever becomes of the test."""
    event = anyio.Event()
    yield event
    event.set()
    await settle()


async def test_a_deaf_syncer_a_broken_observer_and_a_lost_tree_leave_the_rest_alone(
    stage: Stage, release: anyio.Event
) -> None:
    def broken(event: Notice) -> None:
        raise ValueError("mine")

    stage.syncer.acts = {
        "x://deaf": deaf_until(release),
        "x://gone": failing(NotFoundError("gone")),
        "x://hangs": forever(stage.clock),
    }
    config = SyncConfig(sync_period=PERIOD, sync_timeout=10)
    names = ("deaf", "gone", "hangs", "well")
    async with stage.open(*names, config=config, observe=broken) as scheduler:
        for _ in range(5):
            for name in names:
                scheduler.report(name)
            await stage.clock.advance(PERIOD)
        ticket = await stage.save(scheduler, "well", "c")
        await stage.drive(ticket.durable())
        with pytest.raises(DrainError) as caught:
            await stage.drive(scheduler.drain())
        stage.syncer.acts.clear()
        release.set()
        with pytest.raises(ConfigError, match="mine"):  # it was called again meanwhile
            await stage.drive(scheduler.drain())

        assert isinstance(caught.value.__cause__, ValueError)
        assert stage.syncer.at("x://well")[:5] == [0, 60, 120, 180, 240]
        lost = {one.trial: type(one.error) for one in caught.value.report.lost}
        assert lost == {"deaf": TransientError, "gone": NotFoundError, "hangs": DeadlineError}
