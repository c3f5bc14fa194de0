"""Every bound of the scheduler on both of its sides, and how old a copy may become."""

from __future__ import annotations

import asyncio
import threading
from math import ceil
from pathlib import Path

import anyio
import pytest

from asyncsync import SyncConfig
from asyncsync.errors import ConfigError, ConflictError, DeadlineError
from asyncsync.scheduling import (
    Blocked,
    DrainError,
    Failed,
    Missed,
    Notice,
    Started,
    SyncScheduler,
)
from asyncsync.testing import settle

from .stage import CONFIG, PERIOD, Stage, failing, forever


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# -- how old, and in which order


@pytest.mark.parametrize(("trials", "slots"), [(2, 2), (3, 2), (9, 2), (5, 1)])
async def test_a_copy_is_at_most_a_period_a_transfer_and_its_time_in_line_old(
    stage: Stage, trials: int, slots: int
) -> None:
    stage.syncer.seconds = transfer_s = 10.0
    names = [f"t{number}" for number in range(trials)]
    in_line_s = ceil(trials / slots) * transfer_s if trials > slots else 0.0
    stale: list[float] = []
    async with stage.open(*names, max_syncs=slots) as scheduler:
        for second in range(400):
            for number, name in enumerate(names):
                if second % (number + 1) == 0:
                    scheduler.report(name)
            await stage.clock.advance(1)
            status = scheduler.status()
            stale += [trial.stale_s for trial in status.trials]
            assert all(trial.queued_s <= in_line_s for trial in status.trials)
        queued = [event.queued_s for event in stage.told(Started)]

    assert PERIOD <= max(stale) <= PERIOD + transfer_s + in_line_s
    assert max(queued) == max(0.0, (ceil(trials / slots) - 1) * transfer_s)
    assert {name for name in names if stage.syncer.at(f"x://{name}")} == set(names)


async def test_under_more_urgent_work_than_there_is_time_for_the_rest_has_its_turn(
    stage: Stage,
) -> None:
    stage.syncer.seconds = 5
    async with stage.open("busy", "calm", max_syncs=1) as scheduler:
        tickets = [await stage.save(scheduler, "busy", "c0")]
        await settle()
        scheduler.report("calm")
        for number in range(1, 30):
            tickets.append(await stage.save(scheduler, "busy", f"c{number}"))
            await stage.clock.advance(4)
        (began,) = stage.syncer.at("x://calm")

        assert 60 < began < 130
        for ticket in tickets:
            await stage.drive(ticket.durable(), 5)


async def test_the_last_sync_of_a_trial_goes_before_checkpoints_and_those_before_the_rest(
    stage: Stage,
) -> None:
    names = ("running", "periodic", "forced", "final")
    async with stage.open(*names, max_syncs=1) as scheduler:
        scheduler.report("running")
        await settle()
        scheduler.report("periodic")
        ticket = await stage.save(scheduler, "forced", "c")
        completing = asyncio.create_task(scheduler.complete("final"))
        await stage.drive(completing)
        await stage.drive(ticket.durable())
        await stage.clock.advance(2)

        order = [event.trial for event in stage.told(Started)]
        assert order == ["running", "final", "forced", "forced", "periodic"]
        kinds = [event.urgency for event in stage.told(Started)]
        assert kinds == ["periodic", "final", "forced", "forced", "periodic"]


# -- time limits


@pytest.mark.parametrize(("seconds", "tries"), [(9.99, 1), (10.01, 3)])
async def test_a_sync_may_take_its_timeout_and_no_longer(
    stage: Stage, seconds: float, tries: int
) -> None:
    stage.syncer.seconds = seconds
    async with stage.open(config=SyncConfig(sync_timeout=10)) as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        try:
            await stage.drive(ticket.durable())
        except DeadlineError:
            assert tries == 3

        assert len(stage.syncer.at("x://a/c")) == tries
        assert (ticket.error is None) is (tries == 1)
        stage.syncer.seconds = 1
        await stage.clock.advance(100)
        await stage.drive(asyncio.wait([asyncio.ensure_future(scheduler.drain())]))


@pytest.mark.parametrize(("grace_s", "stuck"), [(9.99, False), (10.01, True)])
async def test_a_cancelled_syncer_has_ten_seconds_to_end(
    stage: Stage, grace_s: float, stuck: bool
) -> None:
    async def ends_late() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await stage.clock.sleep(grace_s)

    stage.syncer.acts["x://a"] = ends_late
    async with stage.open(config=SyncConfig(sync_timeout=5)) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(5.001)
        stage.syncer.acts.clear()
        await stage.clock.advance(10.5)

        assert bool(stage.told(Blocked)) is stuck
        assert scheduler.status().blocked == ()  # it has ended after all
        await stage.clock.advance(20)
        assert len(stage.syncer.at("x://a")) == 2
        assert stage.syncer.at("x://a")[1] >= 5 + grace_s


@pytest.mark.parametrize(("seconds", "lost"), [(29.9, []), (30.1, ["x://a"])])
async def test_what_a_deadline_leaves_time_for_is_done(
    stage: Stage, seconds: float, lost: list[str]
) -> None:
    async with stage.open() as scheduler:
        stage.syncer.seconds = seconds
        scheduler.report("a")
        report = await stage.drive(scheduler.drain(deadline_s=30), 1)
        stage.syncer.seconds = 1

        assert [one.target for one in report.lost] == lost


async def test_what_failed_before_there_was_no_more_time_says_why(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = failing(ConflictError("another is there", winner=""))
    async with stage.open() as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        with pytest.raises(ConflictError):
            await stage.drive(ticket.durable())
        stage.syncer.acts["x://a/c"] = forever(stage.clock)
        await stage.save(scheduler, "a", "c")
        with pytest.raises(DrainError) as caught:
            await stage.drive(scheduler.drain(deadline_s=5))

        reasons = {one.target: one.reason for one in caught.value.report.lost}
        assert reasons["x://a/c"] == "another is there"


# -- attempts


async def test_no_attempt_is_left_behind_when_a_drain_gives_up_between_two(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = failing(OSError("flaky"))
    async with stage.open() as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        await stage.clock.advance(0.5)  # it has failed, and waits to be tried again
        report = await stage.drive(scheduler.drain(deadline_s=0))
        before = len(stage.syncer.calls)
        await stage.clock.advance(10_000)

        assert ticket.error is not None
        assert "x://a/c" in {one.target for one in report.lost}
        assert len(stage.syncer.at("x://a/c")) in (1, 2)  # an attempt that a drain begins, it stops
        assert [remote for _, _, remote, _ in stage.syncer.calls[before:]] in ([], ["x://a"])


@pytest.mark.parametrize("error", [OSError("x"), ConflictError("x", winner="")])
async def test_nothing_is_tried_after_the_last_attempt(stage: Stage, error: Exception) -> None:
    stage.syncer.acts["x://a/c"] = failing(error)
    async with stage.open() as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        with pytest.raises(type(error)):
            await stage.drive(ticket.durable())
        tries = len(stage.syncer.at("x://a/c"))
        await stage.clock.advance(10_000)

        assert len(stage.syncer.at("x://a/c")) == tries
        assert not stage.told(Failed)[-1].again
        assert scheduler.status().running == scheduler.status().waiting == 0
        with pytest.raises(DrainError):
            await stage.drive(scheduler.drain())
        assert len(stage.syncer.at("x://a/c")) == tries


async def test_a_failed_sync_leaves_the_next_one_that_is_needed_due(stage: Stage) -> None:
    stage.syncer.acts["x://a"] = failing(ConflictError("x", winner=""), None)
    async with stage.open() as scheduler:
        assert scheduler.sync_up_if_needed("a")
        await stage.clock.advance(0.5)
        assert scheduler.sync_up_if_needed("a")
        await stage.clock.advance(0.5)
        assert not scheduler.sync_up_if_needed("a")

        assert [event.reason for event in stage.told(Failed)] == ["x"]


# -- counts


@pytest.mark.parametrize(("syncs", "missed"), [(2, 0), (3, 2)])
async def test_a_reader_may_be_as_many_events_behind_as_are_kept(
    stage: Stage, syncs: int, missed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsync.scheduling.listeners._KEPT", 4)
    async with stage.open() as scheduler:
        slow = scheduler.events()
        for _ in range(syncs):
            scheduler.report("a")
            await stage.clock.advance(PERIOD)

    read = [event async for event in slow]
    assert [event.count for event in read if isinstance(event, Missed)] == [missed][: missed > 0]
    assert len(read) == 4 + (missed > 0)


@pytest.mark.parametrize(("behind", "too_far"), [(3, False), (4, True)])
async def test_an_observer_may_be_as_many_events_behind_as_are_kept(
    stage: Stage, behind: int, too_far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsync.scheduling.listeners._KEPT", 3)
    entered, release = threading.Event(), threading.Event()

    def slow(event: Notice) -> None:
        entered.set()
        release.wait()

    async with stage.open(observe=slow) as scheduler:
        tell = scheduler._listeners.tell
        tell(Missed(count=0))
        await asyncio.to_thread(entered.wait)
        for number in range(behind):
            tell(Missed(count=number))
        status = scheduler.status()
        release.set()
        if too_far:
            with pytest.raises(ConfigError, match="behind"):
                await stage.drive(scheduler.drain())

    assert ("3 events behind" in status.observer_error) is too_far


@pytest.mark.parametrize("slots", [1, 2])
async def test_so_many_run_at_once_and_no_more(stage: Stage, slots: int) -> None:
    async with stage.open("a", "b", "c", max_syncs=slots) as scheduler:
        for name in "abc":
            scheduler.report(name)
        await settle()

        assert (scheduler.status().running, scheduler.status().waiting) == (slots, 3 - slots)


@pytest.mark.parametrize(("size", "early"), [(10, True), (11, False)])
async def test_a_snapshot_is_taken_where_there_is_room_for_it(
    stage: Stage, size: int, early: bool
) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)
    made = stage.checkpoint_dir("a", "c", bytes(size))
    async with stage.open(snapshot_bytes=10) as scheduler:
        saving = asyncio.create_task(scheduler.checkpoint("a", made))
        while not stage.syncer.writing:
            await stage.clock.advance(0.001)
            await asyncio.wait({saving}, timeout=0.002)
        await settle()

        assert saving.done() is early
        stage.syncer.acts.clear()
        await stage.drive(scheduler.drain(deadline_s=0))
        await asyncio.wait({saving})


@pytest.mark.parametrize("iterations", [1, 2])
async def test_a_threshold_of_the_environment_is_a_bound_like_any_other(
    stage: Stage, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCSYNC_MIN_ITERATIONS", "2")
    monkeypatch.setenv("TUNE_NODE_SYNCING_MIN_TIME_S_THRESHOLD", "7.5")
    async with stage.open("a", "b") as scheduler:
        scheduler.report("a", training_iteration=iterations, time_total_s=7.4)
        scheduler.report("b", training_iteration=0, time_total_s=7.5)
        await stage.clock.advance(1)

        assert bool(stage.syncer.at("x://a")) is (iterations == 2)
        assert stage.syncer.at("x://b") == [0]


async def test_what_is_below_its_bound_is_refused(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="max_syncs"):
        SyncScheduler(stage.syncer, CONFIG, max_syncs=0)
    async with stage.open(max_syncs=1) as scheduler:
        for deadline_s in (-0.001, float("nan"), float("inf")):
            with pytest.raises(ConfigError, match="deadline_s"):
                await scheduler.drain(deadline_s=deadline_s)

        assert (await stage.drive(scheduler.drain(deadline_s=0))).lost == ()
