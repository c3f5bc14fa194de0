"""SyncScheduler over syncers that are slow, fail, hang or never end, by a clock of the test's."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncsync import StorageSyncer, SyncConfig
from asyncsync.digest import CHUNK_BYTES
from asyncsync.errors import (
    BusyError,
    ConfigError,
    ConflictError,
    DeadlineError,
    NotFoundError,
    TransferError,
    TransientError,
)
from asyncsync.events import Committed, Event, Moved, Stalled
from asyncsync.scheduling import (
    Alarm,
    Blocked,
    DrainError,
    DrainReport,
    Dropped,
    Failed,
    Feed,
    Missed,
    Notice,
    Same,
    Started,
    Synced,
    SyncScheduler,
    Ticket,
)
from asyncsync.scheduling.jobs import Urgency
from asyncsync.testing import settle
from asyncsync.transfer import Directory
from asyncsync.transfer.pieces import Piece

from .stage import CONFIG, PERIOD, FakeSyncer, Stage, deaf_until, failing, forever


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# -- periods and thresholds


async def test_a_tree_is_synced_once_a_period_with_what_came_meanwhile(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a", training_iteration=2, time_total_s=0)
        for iteration in range(3, 100):
            await stage.clock.advance(3)
            scheduler.report("a", training_iteration=iteration, time_total_s=0)

        assert stage.syncer.at("x://a") == [0, 60, 120, 180, 240]


@pytest.mark.parametrize(
    ("iteration", "seconds", "synced"),
    [(1, 9.9, False), (2, 0.0, True), (0, 10.0, True), (None, 0.0, True), (0, None, True)],
)
async def test_nothing_is_synced_before_a_threshold(
    stage: Stage, iteration: float | None, seconds: float | None, synced: bool
) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a", training_iteration=iteration, time_total_s=seconds)
        await stage.clock.advance(1000)

        assert bool(stage.syncer.calls) is synced


async def test_a_trial_that_goes_back_in_time_stays_past_its_threshold(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a", training_iteration=2, time_total_s=0)
        await stage.clock.advance(1)
        scheduler.report("a", training_iteration=0, time_total_s=0)  # restored
        await stage.clock.advance(PERIOD)

        assert len(stage.syncer.calls) == 2


async def test_if_needed_goes_by_the_period_of_each_direction(stage: Stage) -> None:
    async with stage.open() as scheduler:
        asked: list[tuple[bool, bool]] = []
        for _ in range(3):
            up = scheduler.sync_up_if_needed("a")
            await stage.clock.advance(2)
            down = scheduler.sync_down_if_needed("a")
            await stage.clock.advance(28)
            asked.append((up, down))

        assert asked == [(True, True), (False, False), (True, True)]
        assert scheduler.sync_up_if_needed("a") is False


async def test_a_failed_sync_does_not_restart_the_period(stage: Stage) -> None:
    stage.syncer.acts["x://a"] = failing(RuntimeError("no"), None)
    async with stage.open() as scheduler:
        scheduler.report("a")
        await stage.clock.advance(5)

        assert stage.syncer.at("x://a") == [0, 1]
        assert [event.reason for event in stage.told(Failed)] == ["no"]


async def test_a_tree_that_fails_rests_longer_each_time(stage: Stage) -> None:
    stage.syncer.acts["x://a"] = failing(RuntimeError("no"))
    async with stage.open() as scheduler:
        scheduler.report("a")
        await stage.clock.advance(20)
        status = scheduler.status().trials[0]
        del stage.syncer.acts["x://a"]

        assert stage.syncer.at("x://a") == [0, 1, 3, 7, 15]
        assert (status.state, status.failures, status.error) == ("resting", 5, "no")
        assert status.stale_s == 20


# -- checkpoints


async def test_a_checkpoint_goes_at_once_from_a_snapshot_with_what_lies_beside_it(
    stage: Stage,
) -> None:
    config = SyncConfig(upload_dir="file:///x", syncer=stage.syncer, sync_period=PERIOD)
    async with stage.open(config=config) as scheduler:
        ticket = await stage.save(scheduler, "a", "ckpt_7", step=7)
        (stage.place / "a" / "ckpt_7" / "w").write_bytes(b"changed")
        await stage.drive(ticket.durable())
        await stage.clock.advance(5)

        assert [call[2] for call in stage.syncer.calls] == ["x://a/ckpt_7", "x://a"]
        source, exclude = stage.syncer.calls[0][1], stage.syncer.calls[1][3]
        assert source != str(stage.place / "a" / "ckpt_7")
        assert exclude == ("*/",)
    assert [path.name for path in (stage.place / "a").iterdir()] == ["ckpt_7"]


@pytest.mark.parametrize("artifacts", [False, True])
async def test_artifacts_stay_where_they_are_when_they_are_switched_off(
    stage: Stage, artifacts: bool
) -> None:
    config = SyncConfig(
        upload_dir="file:///x", syncer=stage.syncer, sync_artifacts=artifacts, sync_period=PERIOD
    )
    async with stage.open(config=config) as scheduler:
        scheduler.report("a")
        await (await stage.save(scheduler, "a", "c"))._freed()
        await stage.drive(scheduler.complete("a"))

        assert bool(stage.syncer.at("x://a")) is artifacts
        assert len(stage.syncer.at("x://a/c")) == 1


@pytest.mark.parametrize("at_once", [False, True])
async def test_to_the_head_a_checkpoint_may_wait_for_the_period(
    stage: Stage, at_once: bool
) -> None:
    config = SyncConfig(sync_period=PERIOD, sync_on_checkpoint=at_once)
    async with stage.open(config=config) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(10)
        ticket = await stage.save(scheduler, "a", "c")
        await stage.clock.advance(40)

        assert ticket.done is at_once
        await stage.clock.advance(20)
        assert ticket.done


async def test_checkpoints_that_may_wait_do_so_without_any_report(stage: Stage) -> None:
    config = SyncConfig(sync_period=PERIOD, sync_on_checkpoint=False)
    async with stage.open(config=config) as scheduler:
        await stage.save(scheduler, "a", "c1")
        await stage.clock.advance(10)
        await stage.save(scheduler, "a", "c2")
        await stage.clock.advance(100)
        (first,), (second,) = stage.syncer.at("x://a/c1"), stage.syncer.at("x://a/c2")

        assert second == pytest.approx(first + PERIOD)
        assert stage.told(Alarm) == []


async def test_a_checkpoint_that_is_not_there_is_refused_at_once(stage: Stage) -> None:
    async with stage.open() as scheduler:
        with pytest.raises(NotFoundError, match="nowhere"):
            await stage.drive(scheduler.checkpoint("a", stage.place / "a" / "nowhere"), 0.001)

        assert stage.syncer.calls == []


async def test_a_checkpoint_that_would_be_synced_as_artifacts_is_refused(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.add("b", local_dir=stage.place / "b", remote_dir="x://b", exclude=["mine/"])
        with pytest.raises(ConfigError, match=r"checkpoints='step_\*/'"):
            await stage.save(scheduler, "b", "step_7")
        for name in ("checkpoint_7", "mine"):
            await stage.drive((await stage.save(scheduler, "b", name)).durable())
        made = stage.checkpoint_dir("elsewhere", "step_7")
        with pytest.raises(ConfigError, match=r"checkpoints='step_\*/'"):  # it would hide that
            await stage.drive(scheduler.checkpoint("b", made), 0.001)
        made = stage.checkpoint_dir("elsewhere", "step_8")
        await stage.drive((await stage.drive(scheduler.checkpoint("b", made), 0.001)).durable())

        assert stage.syncer.at("x://b/step_7") == []
        assert len(stage.syncer.at("x://b/step_8")) == 1


async def test_where_there_is_no_room_for_a_snapshot_it_returns_when_all_is_done(
    stage: Stage,
) -> None:
    async with stage.open(snapshot_bytes=1) as scheduler:
        ticket = await stage.save(scheduler, "a", "c")

        assert ticket.done
        assert stage.syncer.calls[0][1] == str(stage.place / "a" / "c")


async def test_a_cancelled_checkpoint_is_not_saved(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)
    async with stage.open(snapshot_bytes=1) as scheduler:
        made = stage.checkpoint_dir("a", "c")
        saving = asyncio.create_task(scheduler.checkpoint("a", made))
        while not stage.syncer.writing:
            await stage.clock.advance(0.001)
            await asyncio.wait({saving}, timeout=0.002)
        saving.cancel()
        await stage.drive(asyncio.wait({saving}))
        await settle()

        assert saving.cancelled()
        assert stage.syncer.writing == []
        assert [p.name for p in (stage.place / "a").iterdir()] == ["c"]


async def test_a_second_version_of_a_checkpoint_takes_the_place_of_the_one_that_waits(
    stage: Stage,
) -> None:
    async with stage.open(max_syncs=1) as scheduler:
        scheduler.report("a")
        await settle()
        tickets = [await stage.save(scheduler, "a", "c", step=n) for n in range(3)]
        await stage.drive(scheduler.drain())
        outcomes = [await ticket.durable() for ticket in tickets]

        assert outcomes == [None] * 3
        assert len(stage.syncer.at("x://a/c")) == 1


async def test_the_same_bytes_as_before_are_news(tmp_path: Path) -> None:
    events: list[Notice] = []
    async with (
        StorageSyncer(isolation="loop") as syncer,
        SyncScheduler(syncer, SyncConfig(), observe=events.append) as scheduler,
    ):
        scheduler.add("a", local_dir=tmp_path / "a", remote_dir=tmp_path / "there")
        for name in ("checkpoint_1", "checkpoint_2"):
            made = tmp_path / "a" / name
            made.mkdir(parents=True)
            (made / "w").write_bytes(b"nothing learnt")
            await (await scheduler.checkpoint("a", made)).durable()

    (same,) = [event for event in events if isinstance(event, Same)]
    assert (Path(same.before).name, Path(same.target).name) == ("checkpoint_1", "checkpoint_2")


# -- outcomes


async def test_a_transient_failure_is_tried_three_times_and_no_more(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = failing(OSError("flaky"))
    async with stage.open() as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        with pytest.raises(OSError, match="flaky"):
            await stage.drive(ticket.durable())
        await stage.clock.advance(1000)
        told = [(event.failures, event.again) for event in stage.told(Failed)]
        with pytest.raises(DrainError, match="flaky"):
            await stage.drive(scheduler.drain())

        assert len(stage.syncer.at("x://a/c")) == 3
        assert told == [(1, True), (2, True), (3, False)]


async def test_a_permanent_failure_is_not_tried_again(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = failing(ConflictError("there is another", winner=""))
    async with stage.open() as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        with pytest.raises(ConflictError):
            await stage.drive(ticket.durable())
        with pytest.raises(ConflictError):
            await stage.drive(scheduler.complete("a"))

        assert len(stage.syncer.at("x://a/c")) == 1


async def test_completion_syncs_what_is_left_whatever_the_period_says(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a")
        await stage.clock.advance(5)
        scheduler.report("a")
        await stage.clock.advance(5)
        await stage.drive(scheduler.complete("a"))

        assert len(stage.syncer.at("x://a")) == 2
        with pytest.raises(ConfigError, match="add it first"):
            scheduler.report("a")
        stage.add(scheduler, "a")
        scheduler.report("a")


async def test_completion_raises_all_that_went_wrong(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = failing(ConflictError("other", winner=""))
    stage.syncer.acts["x://a"] = failing(ConflictError("another", winner=""))
    async with stage.open() as scheduler:
        await stage.save(scheduler, "a", "c")
        with pytest.raises(TransferError) as caught:
            await stage.drive(scheduler.complete("a"))

    assert {str(failure) for failure in caught.value.failures} == {"other", "another"}


async def test_drain_makes_everything_durable_and_says_so(stage: Stage) -> None:
    async with stage.open("a", "b") as scheduler:
        scheduler.report("a")
        await stage.clock.advance(5)
        scheduler.report("a")
        scheduler.report("b", training_iteration=1, time_total_s=1)
        await stage.save(scheduler, "b", "c", step=3)
        report = await stage.drive(scheduler.drain())

        assert {(one.target, one.step) for one in report.durable} == {
            ("x://a", None),
            ("x://b", None),
            ("x://b/c", 3),
        }
        assert report.lost == ()
        assert len(stage.syncer.at("x://a")) == 2
        assert await stage.drive(scheduler.drain()) == report


async def test_what_a_drain_names_is_named_once(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = failing(ConflictError("other", winner=""))
    async with stage.open() as scheduler:
        await stage.save(scheduler, "a", "c")
        with pytest.raises(DrainError, match="x://a/c") as caught:
            await stage.drive(scheduler.drain())

        assert [(one.trial, one.reason) for one in caught.value.report.lost] == [("a", "other")]
        assert (await stage.drive(scheduler.drain())).lost == ()


@pytest.mark.parametrize("strict", [False, True])
async def test_a_deadline_gives_up_what_does_not_fit(stage: Stage, strict: bool) -> None:
    stage.syncer.acts["x://a/slow"] = forever(stage.clock)
    report: DrainReport | None = None
    async with stage.open(max_syncs=1) as scheduler:
        await stage.save(scheduler, "a", "slow")
        await stage.save(scheduler, "a", "fast")
        began = stage.clock.monotonic()
        try:
            report = await stage.drive(scheduler.drain(deadline_s=30, strict=strict))
        except DrainError as exc:
            assert strict
            report = exc.report
        took = stage.clock.monotonic() - began

        assert 30 <= took < 500  # and not the 1000 s that a sync may take
        assert stage.syncer.writing == []
        assert {one.target for one in report.lost} == {"x://a/slow", "x://a/fast", "x://a"}
        assert all("deadline" in one.reason for one in report.lost)


async def test_what_a_deadline_gave_up_is_gone_on_with_by_the_next_start(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    moved = anyio.Event()
    syncer = StorageSyncer(
        isolation="loop",
        bwlimit=CHUNK_BYTES,
        clock=stage.clock,
        observe=lambda event: moved.set() if isinstance(event, Moved) else None,
    )
    stage.syncer = syncer  # type: ignore[assignment]
    made = stage.checkpoint_dir("a", "checkpoint_1", bytes(range(256)) * (3 * CHUNK_BYTES // 256))

    async def save(scheduler: SyncScheduler) -> Ticket:
        scheduler.add("a", local_dir=tmp_path / "a", remote_dir=tmp_path / "there")
        return await stage.drive(scheduler.checkpoint("a", made), 0.001)

    async with stage.open("other") as scheduler:
        first = await save(scheduler)
        await stage.drive(moved.wait())
        with pytest.raises(DrainError):
            await stage.drive(scheduler.drain(deadline_s=0, strict=True))
    async with stage.open("other") as scheduler:
        receipt = await stage.drive((await save(scheduler)).durable())
    await syncer.aclose()

    assert isinstance(first.error, TransientError)
    assert receipt is not None
    assert receipt.resumed_bytes >= CHUNK_BYTES
    assert receipt.sent_bytes + receipt.resumed_bytes == 3 * CHUNK_BYTES


# -- time-outs, and syncers that do not end


async def test_after_a_timeout_the_old_one_is_gone_before_the_next_one_starts(
    stage: Stage,
) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)
    config = SyncConfig(sync_period=PERIOD, sync_timeout=10)
    async with stage.open(config=config) as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        with pytest.raises(DeadlineError, match="sync_timeout"):
            await stage.drive(ticket.durable())
        with pytest.raises(DrainError):
            await stage.drive(scheduler.drain())

        begun, ended = stage.syncer.at("x://a/c"), [at for at, t in stage.syncer.ends if "c" in t]
        assert len(begun) == 3
        assert all(end <= start for end, start in zip(ended, begun[1:], strict=False))


async def test_a_syncer_that_does_not_end_blocks_its_target_and_nothing_else(
    stage: Stage,
) -> None:
    release = anyio.Event()

    stage.syncer.acts["x://a/c"] = deaf_until(release)
    config = SyncConfig(sync_period=PERIOD, sync_timeout=10)
    async with stage.open("a", "b", config=config, max_syncs=1) as scheduler:
        await stage.save(scheduler, "a", "c")
        await stage.clock.advance(21)
        again = await stage.save(scheduler, "a", "c")
        other = await stage.save(scheduler, "b", "c")
        await stage.drive(other.durable())
        status = scheduler.status()
        with pytest.raises(DrainError) as caught:
            await stage.drive(scheduler.drain())

        assert status.blocked == ("x://a/c",)
        assert again.done
        assert {one.target for one in caught.value.report.lost} == {"x://a/c"}
        release.set()
        await stage.clock.advance(1)
        assert scheduler.status().blocked == ()
        assert [event.free for event in stage.told(Blocked)] == [False, True]
        assert {alarm.trial for alarm in stage.told(Alarm) if alarm.why == "blocked"} == {"a"}
        del stage.syncer.acts["x://a/c"]
        await stage.drive((await stage.save(scheduler, "a", "c")).durable())


async def test_a_drain_ends_when_several_versions_stand_behind_a_syncer_that_does_not(
    stage: Stage,
) -> None:
    release = anyio.Event()
    stage.syncer.acts["x://a/c"] = deaf_until(release)
    config = SyncConfig(sync_period=PERIOD, sync_timeout=10)
    async with stage.open(config=config) as scheduler:
        await stage.save(scheduler, "a", "c")
        await stage.clock.advance(21)
        later = [await stage.save(scheduler, "a", "c", step=step) for step in (1, 2)]
        with pytest.raises(DrainError, match="does not end") as caught:
            await stage.drive(scheduler.drain())
        release.set()
        await settle()

        assert [ticket.done for ticket in later] == [True, True]
        assert [one.step for one in caught.value.report.lost] == [2]  # the newest


# -- overlap


async def begun(stage: Stage, scheduler: SyncScheduler) -> list[Ticket]:
    """Two versions of a checkpoint, the second while the first is written."""
    first = await stage.save(scheduler, "a", "c")
    await stage.clock.advance(0.1)
    return [first, await stage.save(scheduler, "a", "c")]


async def test_queue_does_each(stage: Stage) -> None:
    async with stage.open(overlap="queue") as scheduler:
        for ticket in await begun(stage, scheduler):
            await stage.drive(ticket.durable())

        assert len(stage.syncer.at("x://a/c")) == 2


async def test_skip_drops_the_second_and_says_so(stage: Stage) -> None:
    async with stage.open(overlap="skip") as scheduler:
        first, second = await begun(stage, scheduler)
        with pytest.raises(BusyError, match="skip"):
            await second.durable()
        await stage.drive(first.durable())

        assert "x://a/c" in [event.target for event in stage.told(Dropped)]
        with pytest.raises(DrainError) as caught:
            await stage.drive(scheduler.drain())
        assert [one.target for one in caught.value.report.lost] == ["x://a/c"]
        assert {one.target for one in caught.value.report.durable} == {"x://a", "x://a/c"}


async def test_supersede_cancels_the_first_and_both_are_told_of_the_second(stage: Stage) -> None:
    async with stage.open(overlap="supersede") as scheduler:
        stage.syncer.acts["x://a/c"] = forever(stage.clock)
        first = await stage.save(scheduler, "a", "c")
        await stage.clock.advance(0.1)
        del stage.syncer.acts["x://a/c"]
        second = await stage.save(scheduler, "a", "c")
        outcomes = [await stage.drive(ticket.durable()) for ticket in (first, second)]

        assert outcomes == [None, None]
        assert len(stage.syncer.at("x://a/c")) == 2


# -- many


async def test_never_more_than_the_slots_and_everybody_gets_a_turn(stage: Stage) -> None:
    names = [f"t{n}" for n in range(50)]
    async with stage.open(*names, max_syncs=3) as scheduler:
        for name in names:
            scheduler.report(name)
        await stage.clock.advance(20)

        assert stage.syncer.most == 3
        assert {call[2] for call in stage.syncer.calls} == {f"x://{name}" for name in names}
        assert [event.trial for event in stage.told(Started)] == names
        assert max(event.queued_s for event in stage.told(Started)) == 16


# -- shared directories, downloads


async def test_in_a_shared_directory_nothing_is_moved_and_nothing_fails() -> None:
    async with SyncScheduler(config=SyncConfig(syncer=None)) as scheduler:
        scheduler.add("a", local_dir="/does/not/exist")
        scheduler.report("a", training_iteration=10)
        ticket = await scheduler.checkpoint("a", "/does/not/exist/c")

        assert await ticket.durable() is None
        assert scheduler.sync_up_if_needed("a") is False
        await scheduler.complete("a")


async def test_a_tree_may_go_down_by_period(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.add("d", local_dir=stage.place / "d", remote_dir="x://d", direction="down")
        scheduler.report("d")
        await stage.clock.advance(1)

        assert stage.syncer.calls[0][1:3] == ("x://d", str(stage.place / "d"))


# -- the object's life


async def test_leaving_drains(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a", training_iteration=0, time_total_s=0)
        ticket = await stage.save(scheduler, "a", "c")

    assert await ticket.durable() is None
    assert stage.syncer.at("x://a") != []
    assert not stage.syncer.closed
    with pytest.raises(ConfigError, match="not open"):
        scheduler.report("a")


@pytest.mark.parametrize("acts", ["hangs", "is deaf"])
async def test_an_exception_stops_what_runs_and_is_not_hidden(stage: Stage, acts: str) -> None:
    release = anyio.Event()

    tickets: list[Ticket] = []

    async def train() -> None:
        async with stage.open() as scheduler:
            tickets.append(await stage.save(scheduler, "a", "c"))
            raise ZeroDivisionError

    stage.syncer.acts["x://a/c"] = forever(stage.clock) if acts == "hangs" else deaf_until(release)
    with pytest.raises(ZeroDivisionError):
        await train()
    with pytest.raises(TransientError, match="left"):
        await tickets[0].durable()
    if acts == "hangs":
        assert stage.syncer.writing == []
    release.set()
    await settle()


async def test_cancelled_while_it_drains_it_stops_what_runs(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)
    scheduler, scope = stage.make(), anyio.CancelScope()

    async def cancel() -> None:
        await stage.until(lambda: scheduler._leaving)
        await settle()
        scope.cancel()

    cancelling = asyncio.create_task(cancel())
    with scope:
        async with scheduler:
            stage.add(scheduler, "a")
            ticket = await stage.save(scheduler, "a", "c")
    await cancelling

    assert scope.cancelled_caught
    assert stage.syncer.writing == []
    assert ticket.error is not None


async def test_it_may_be_opened_in_one_task_and_closed_in_another(stage: Stage) -> None:
    stack = AsyncExitStack()

    async def opening() -> SyncScheduler:
        return await stack.enter_async_context(stage.make())

    scheduler = await asyncio.create_task(opening())
    stage.add(scheduler, "a")
    scheduler.report("a")
    await stage.drive(asyncio.create_task(stack.aclose()))

    assert len(stage.syncer.at("x://a")) == 1


async def test_closing_again_has_no_effect_and_entering_again_is_refused(stage: Stage) -> None:
    scheduler = stage.make()
    async with scheduler:
        pass
    await scheduler.aclose()

    with pytest.raises(ConfigError, match="before"):
        await scheduler.__aenter__()


async def test_a_copy_has_nothing_in_flight_and_works(tmp_path: Path) -> None:
    scheduler = SyncScheduler(
        StorageSyncer(isolation="loop"), SyncConfig(sync_period=7), max_syncs=3
    )
    async with scheduler:
        scheduler.add("a", local_dir=tmp_path / "a", remote_dir=tmp_path / "there")
        copy = pickle.loads(pickle.dumps(scheduler))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log").write_text("x")
    async with copy:
        assert copy.status().trials == ()
        copy.add("a", local_dir=tmp_path / "a", remote_dir=tmp_path / "there")
        copy.report("a")

    assert (tmp_path / "there" / "log").read_text() == "x"


@pytest.mark.one_loop
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_block_and_drains(stage: Stage, number: signal.Signals) -> None:
    async with stage.open() as scheduler:
        ticket = await stage.save(scheduler, "a", "c")

        async def train() -> signal.Signals | None:
            async with scheduler.until_signal(deadline_s=100) as stop:
                scheduler.report("a", training_iteration=0, time_total_s=0)
                os.kill(os.getpid(), number)
                await anyio.sleep_forever()
            return stop.signal

        assert await stage.drive(train()) == number
        assert ticket.done
        assert stage.syncer.at("x://a") != []


@pytest.mark.one_loop
async def test_without_a_signal_the_block_ends_as_it_does(stage: Stage) -> None:
    async with stage.open() as scheduler:
        async with scheduler.until_signal() as stop:
            pass
        with pytest.raises(ZeroDivisionError):
            async with scheduler.until_signal():
                raise ZeroDivisionError

        assert stop.signal is None
        assert stage.syncer.calls == []


@pytest.mark.one_loop
async def test_a_second_signal_stops_at_once(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)

    async def train() -> None:
        async with stage.open() as scheduler:
            await stage.save(scheduler, "a", "c")
            async with scheduler.until_signal():
                os.kill(os.getpid(), signal.SIGTERM)
                try:
                    await anyio.sleep_forever()
                finally:
                    os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        await train()
    assert stage.syncer.writing == []


# -- between two turns of the loop


@pytest.mark.parametrize("turns", range(6))
async def test_what_was_reported_just_before_the_end_is_durable(stage: Stage, turns: int) -> None:
    async with stage.open() as scheduler:
        await settle()
        scheduler.report("a")
        for _ in range(turns):
            await asyncio.sleep(0)

    assert [event.target for event in stage.told(Synced)] == ["x://a"]


@pytest.mark.parametrize("turns", range(6))
async def test_a_drain_without_time_names_what_had_just_begun(stage: Stage, turns: int) -> None:
    stage.syncer.acts["x://a"] = forever(stage.clock)
    with pytest.raises(ZeroDivisionError):
        await leave_late(stage, turns)


async def leave_late(stage: Stage, turns: int) -> None:
    async with stage.open() as scheduler:
        await settle()
        scheduler.report("a")
        for _ in range(turns):
            await asyncio.sleep(0)
        report = await stage.drive(scheduler.drain(deadline_s=0))

        assert [one.target for one in report.lost] == ["x://a"]
        assert stage.syncer.writing == []
        raise ZeroDivisionError


@pytest.mark.parametrize("turns", range(6))
async def test_a_checkpoint_that_is_cancelled_as_it_begins_is_not_saved(
    stage: Stage, turns: int
) -> None:
    async with stage.open("a", "b", max_syncs=1, snapshot_bytes=1) as scheduler:
        free = anyio.Event()
        stage.syncer.acts["x://b"] = free.wait
        scheduler.report("b")
        await settle()
        saving = asyncio.create_task(scheduler.checkpoint("a", stage.checkpoint_dir("a", "c")))
        while not scheduler._book.waiting():
            await stage.clock.advance(0.001)
            await asyncio.wait({saving}, timeout=0.002)
        free.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        saving.cancel()
        await stage.drive(asyncio.wait({saving}))
        await stage.clock.advance(50)

        assert "x://a/c" not in [event.target for event in stage.told(Synced)]


async def test_a_thousand_requests_for_one_tree_are_one_sync(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a")
        await settle()
        tree = scheduler._trials["a"].driven
        tickets = [
            scheduler._runner.ask(scheduler._book.job_of(tree, Urgency.FORCED)) for _ in range(2000)
        ]
        for ticket in tickets:
            await stage.drive(ticket.durable())

        assert len(stage.syncer.at("x://a")) == 2


async def test_two_drains_at_once_both_end(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a")
        both = [asyncio.create_task(scheduler.drain()) for _ in range(3)]
        await stage.drive(asyncio.wait(both))

        assert all(one.result().lost == () for one in both)


async def test_a_drain_ends_although_others_go_on_reporting(stage: Stage) -> None:
    stage.syncer.seconds = 2
    config = SyncConfig(sync_period=1)
    async with stage.open("a", "b", "c", config=config, max_syncs=2) as scheduler:
        draining = asyncio.create_task(scheduler.drain())
        for _ in range(60):
            for name in "abc":
                scheduler.report(name)
            await stage.clock.advance(1)

        assert draining.done()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_what_a_syncer_raises_never_ends_the_program(
    stage: Stage, error: BaseException
) -> None:
    async def act() -> None:
        raise error

    stage.syncer.acts["x://a/c"] = act
    async with stage.open() as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        with pytest.raises(TransientError, match=type(error).__name__):
            await stage.drive(ticket.durable())
        with pytest.raises(DrainError):
            await stage.drive(scheduler.drain())


async def test_an_error_of_our_own_is_heard_by_everybody(stage: Stage) -> None:
    def broken(now: float) -> list[object]:
        raise ZeroDivisionError

    async def train() -> None:
        async with stage.open() as scheduler:
            scheduler._book.starts = broken  # type: ignore[method-assign,assignment]
            scheduler.report("a")
            with pytest.raises(TransientError, match="ZeroDivisionError"):
                await stage.drive(scheduler.complete("a"))

    with pytest.raises(TransientError, match="ZeroDivisionError"):
        await train()


async def test_completion_waits_for_a_checkpoint_whose_snapshot_is_being_made(
    stage: Stage,
) -> None:
    async with stage.open() as scheduler:
        saving = asyncio.create_task(scheduler.checkpoint("a", stage.checkpoint_dir("a", "c")))
        await asyncio.sleep(0)
        await stage.drive(scheduler.complete("a"), 0.01)
        ticket = await saving

        assert ticket.done
        assert ticket.error is None
        assert len(stage.syncer.at("x://a")) == 1


async def test_completion_does_not_wait_for_a_syncer_that_does_not_end(stage: Stage) -> None:
    release = anyio.Event()

    stage.syncer.acts["x://a"] = deaf_until(release)
    async with stage.open(config=SyncConfig(sync_timeout=10)) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(25)
        with pytest.raises(TransientError, match="blocked"):
            await stage.drive(scheduler.complete("a"))
        release.set()
        await settle()


async def test_leaving_while_a_snapshot_is_being_made_ends_the_checkpoint(stage: Stage) -> None:
    saving: list[asyncio.Task[Ticket]] = []

    async def train() -> None:
        async with stage.open() as scheduler:
            made = stage.checkpoint_dir("a", "c")
            saving.append(asyncio.create_task(scheduler.checkpoint("a", made)))
            await asyncio.sleep(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await train()
    with pytest.raises(TransientError):
        await saving[0]


# -- bad input


def test_a_syncer_that_contradicts_the_configuration_is_refused(stage: Stage) -> None:
    other = FakeSyncer(stage.clock)
    with pytest.raises(ConfigError, match="another"):
        stage.make(SyncConfig(upload_dir="file:///x", syncer=other))
    with pytest.raises(ConfigError, match="none"):
        stage.make(SyncConfig(syncer=None))
    with pytest.raises(ConfigError, match="Pass a syncer"):
        SyncScheduler(config=SyncConfig())
    with pytest.raises(ConfigError, match="max_syncs"):
        stage.make(max_syncs=0)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
async def test_numbers_that_are_none_are_refused(stage: Stage, value: float) -> None:
    async with stage.open() as scheduler:
        with pytest.raises(ConfigError, match="training_iteration"):
            scheduler.report("a", training_iteration=value)
        with pytest.raises(ConfigError, match="time_total_s"):
            scheduler.report("a", time_total_s=value)

        assert stage.syncer.calls == []


async def test_trials_that_were_added_twice_or_never_or_share_a_target(stage: Stage) -> None:
    async with stage.open() as scheduler:
        with pytest.raises(ConfigError, match="already"):
            stage.add(scheduler, "a")
        with pytest.raises(ConfigError, match="target of trial a; give each"):
            scheduler.add("b", local_dir=stage.place / "b", remote_dir="x://a")
        with pytest.raises(ConfigError, match="add it first"):
            scheduler.report("b")
        with pytest.raises(ConfigError, match="direction"):
            scheduler.add("b", local_dir="b", remote_dir="x://b", direction="left")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="remote_dir"):
            scheduler.add("b", local_dir="b")


@pytest.mark.parametrize("exclude", ["*.tmp", ["*.tmp", "!"]])
async def test_what_is_no_list_of_patterns_is_refused(stage: Stage, exclude: Any) -> None:
    async with stage.open() as scheduler:
        with pytest.raises(ConfigError, match="pattern"):
            scheduler.add("b", local_dir="b", remote_dir="x://b", exclude=exclude)

        assert [trial.trial for trial in scheduler.status().trials] == ["a"]


async def test_an_observer_that_raises_is_not_called_again_and_named(stage: Stage) -> None:
    calls: list[Notice] = []

    def broken(event: Notice) -> None:
        calls.append(event)
        raise ValueError("my own bug")

    async with stage.open(observe=broken) as scheduler:
        scheduler.report("a")
        with pytest.raises(ConfigError, match="my own bug"):
            await stage.drive(scheduler.drain())
        status = scheduler.status()

    assert len(calls) == 1
    assert status.observer_error == ""  # it was told
    assert stage.syncer.at("x://a") == [0]
    assert len(stage.told(Synced)) == 1


async def test_an_observer_hears_everything_in_order_before_a_drain_returns(stage: Stage) -> None:
    calls: list[Notice] = []
    async with stage.open("a", "b", observe=calls.append) as scheduler:
        for _ in range(3):
            scheduler.report("a")
            scheduler.report("b")
            await stage.clock.advance(PERIOD)
        await stage.drive(scheduler.drain())
        await settle()

        assert len(calls) == 12
        assert calls == stage.events


async def test_an_observer_that_hangs_holds_up_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsync.scheduling.listeners._GRACE_S", 0.01)
    entered, release = threading.Event(), threading.Event()
    calls: list[Notice] = []

    def hangs(event: Notice) -> None:
        calls.append(event)
        entered.set()
        release.wait()

    try:
        async with stage.open(observe=hangs) as scheduler:
            scheduler.report("a")
            await stage.clock.advance(PERIOD)
            scheduler.report("a")
            await stage.clock.advance(PERIOD)
            assert stage.syncer.at("x://a") == [0, PERIOD]
            await asyncio.to_thread(entered.wait)
            with pytest.raises(ConfigError, match="has not returned"):
                await stage.drive(scheduler.drain())
            with pytest.raises(ConfigError, match="has not returned"):
                await stage.drive(scheduler.drain())
            assert len(calls) == 1
            monkeypatch.undo()
            release.set()
    finally:
        release.set()


async def test_events_are_read_by_any_number_of_tasks_until_the_end(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a")
        await stage.clock.advance(2)
        late = scheduler.events()
        scheduler.report("a")
        await stage.clock.advance(PERIOD)

    assert [type(event) async for event in late] == [Started, Synced]
    assert [type(event) async for event in late] == []  # it stays at its end
    assert [type(event) async for event in scheduler.events()] == []
    assert [type(event) for event in stage.events] == [Started, Synced] * 2


async def test_who_reads_events_too_slowly_is_told_what_is_missing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsync.scheduling.listeners._KEPT", 3)
    async with stage.open() as scheduler:
        slow = scheduler.events()
        for _ in range(4):
            scheduler.report("a")
            await stage.clock.advance(PERIOD)

    read = [event async for event in slow]
    assert read[0] == Missed(count=5)
    assert [type(event) for event in read[1:]] == [Synced, Started, Synced]


async def test_a_blocked_target_with_a_snapshot_leaves_room_to_others(stage: Stage) -> None:
    release = anyio.Event()
    stage.syncer.acts["x://a/c"] = deaf_until(release)
    config = SyncConfig(sync_period=PERIOD, sync_timeout=10)
    async with stage.open("a", "b", config=config, snapshot_bytes=10) as scheduler:
        await stage.save(scheduler, "a", "c")
        await stage.clock.advance(25)
        await stage.until(lambda: not scheduler._runner._holds)  # its snapshot is gone
        await stage.save(scheduler, "a", "c")  # takes the room, and cannot start
        other = await stage.save(scheduler, "b", "c")
        assert scheduler.status().blocked == ("x://a/c",)
        assert other.done
        with pytest.raises(DrainError, match="does not end"):
            await stage.drive(scheduler.drain())
        release.set()
        await settle()


async def test_a_drain_ends_when_a_blocked_target_holds_the_room_others_wait_for(
    stage: Stage,
) -> None:
    release = anyio.Event()
    stage.syncer.acts["x://a/c"] = deaf_until(release)
    config = SyncConfig(sync_period=PERIOD, sync_timeout=10)
    async with stage.open("a", "b", config=config, snapshot_bytes=15) as scheduler:
        await stage.save(scheduler, "a", "c")
        await stage.save(scheduler, "a", "c")
        made = stage.checkpoint_dir("b", "c", b"10 bytes..")
        waiting = asyncio.create_task(scheduler.checkpoint("b", made))  # not blocked yet
        await stage.until(lambda: any(job.trial == "b" for job in scheduler._runner._holds))
        await stage.clock.advance(25)
        assert not waiting.done()
        with pytest.raises(DrainError, match="does not end"):
            await stage.drive(scheduler.drain())
        ticket = await waiting
        await stage.drive(ticket.durable())
        assert len(stage.syncer.at("x://b/c")) == 1
        release.set()
        await settle()


# -- alarms


def alarms(stage: Stage) -> list[tuple[float, str, str]]:
    return [(alarm.late_s, alarm.target, alarm.why) for alarm in stage.told(Alarm)]


async def test_what_waits_for_a_slot_for_too_long_raises_an_alarm_once(stage: Stage) -> None:
    stage.syncer.acts["x://a"] = forever(stage.clock)
    async with stage.open("a", "b", max_syncs=1) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(1)
        scheduler.report("b")
        await stage.clock.advance(8.99)
        assert alarms(stage) == []
        await stage.clock.advance(0.01)
        assert alarms(stage) == [(10, "x://a", "slow")]
        await stage.clock.advance(300)

        assert alarms(stage) == [(10, "x://a", "slow"), (10, "x://b", "waiting")]
        assert [(a.trial, a.queued_s) for a in stage.told(Alarm)] == [("a", 0), ("b", 10)]
        stage.syncer.acts.clear()
        raise_error = asyncio.create_task(scheduler.drain(deadline_s=0))
        await stage.drive(raise_error)


async def test_an_alarm_has_the_patience_of_two_transfers(stage: Stage) -> None:
    stage.syncer.seconds = 30
    async with stage.open() as scheduler:
        scheduler.report("a")
        await stage.clock.advance(PERIOD)
        stage.events.clear()
        stage.syncer.seconds = 59
        scheduler.report("a")
        await stage.clock.advance(PERIOD)
        assert alarms(stage) == []  # not later than twice as long as the last time
        stage.syncer.seconds = 130
        await stage.clock.advance(1)
        scheduler.report("a")
        await stage.clock.advance(117)
        assert alarms(stage) == []
        await stage.clock.advance(1)
        assert alarms(stage) == [(118, "x://a", "slow")]


async def test_an_alarm_is_raised_again_after_a_success(stage: Stage) -> None:
    stage.syncer.seconds = 11
    async with stage.open() as scheduler:
        for _ in range(3):
            scheduler.report("a")
            await stage.clock.advance(11)
            stage.syncer.seconds *= 2.5
            await stage.clock.advance(200)

        assert [round(late) for late, _, _ in alarms(stage)] == [10, 22, 55]


async def test_what_fails_again_and_again_raises_an_alarm_with_its_reason(stage: Stage) -> None:
    stage.syncer.acts["x://a"] = failing(OSError("no route"))
    stage.syncer.acts["x://a/c"] = failing(OSError("no way"))
    async with stage.open() as scheduler:
        scheduler.report("a")
        await stage.clock.advance(120)
        assert [(a.why, a.reason) for a in stage.told(Alarm)] == [("failing", "no route")]
        assert stage.told(Alarm)[0].late_s == 10
        stage.events.clear()
        stage.syncer.acts["x://a"] = failing(None)
        await stage.clock.advance(200)
        with pytest.raises(OSError, match="no way"):
            await stage.drive((await stage.save(scheduler, "a", "c")).durable())
        await stage.clock.advance(1000)
        assert stage.told(Alarm) == []  # it has ended: who waits for it knows
        stage.syncer.acts.clear()
        with pytest.raises(DrainError):
            await stage.drive(scheduler.drain())


async def test_a_target_that_is_blocked_raises_an_alarm_when_it_is_due(stage: Stage) -> None:
    release = anyio.Event()
    stage.syncer.acts["x://a"] = deaf_until(release)
    async with stage.open(config=SyncConfig(sync_period=PERIOD, sync_timeout=5)) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(15)
        assert scheduler.status().blocked == ("x://a",)
        scheduler.report("a")
        await stage.clock.advance(100)

        assert [alarm.why for alarm in stage.told(Alarm)] == ["slow", "blocked"]
        release.set()
        stage.syncer.acts.clear()
        await settle()


async def test_nothing_is_late_before_its_threshold_or_within_its_period(stage: Stage) -> None:
    async with stage.open() as scheduler:
        scheduler.report("a", training_iteration=0, time_total_s=0)
        await stage.clock.advance(10_000)
        scheduler.report("a", training_iteration=9, time_total_s=9)
        await stage.clock.advance(30)
        scheduler.report("a", training_iteration=9, time_total_s=9)
        await stage.clock.advance(1000)

        assert stage.syncer.at("x://a") == [10_000, 10_000 + PERIOD]
        assert alarms(stage) == []


async def test_a_stalled_sync_raises_an_alarm_that_names_file_and_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "big").write_bytes(bytes(CHUNK_BYTES + 1))
    gate, events = anyio.Event(), list[Notice]()
    read, heard = Directory.read, list[Event]()

    async def stalls(source: Directory, file: Any, number: int, into: memoryview) -> Piece:
        if number == 1:
            await gate.wait()
        return await read(source, file, number, into)

    monkeypatch.setattr(Directory, "read", stalls)
    for name, value in (("engine.STALL_S", 0.2), ("engine._SLOW_LINK", 1e12)):
        monkeypatch.setattr(f"asyncsync.transfer.{name}", value)
    monkeypatch.setattr("asyncsync.transfer.tally._LOOK_S", 0.01)

    async def listen(feed: Feed) -> None:
        async for event in feed:
            events.append(event)
            if isinstance(event, Alarm) and event.why == "stalled":
                gate.set()

    async def train() -> None:
        async with (
            StorageSyncer(isolation="loop", observe=heard.append) as syncer,
            SyncScheduler(syncer, CONFIG) as scheduler,
        ):
            listening = asyncio.create_task(listen(scheduler.events()))
            scheduler.add("a", local_dir=tmp_path / "source", remote_dir=tmp_path / "target")
            scheduler.report("a")
        await listening

    with anyio.fail_after(30):
        await train()

    (alarm,) = [event for event in events if isinstance(event, Alarm)]
    assert (alarm.trial, alarm.why, alarm.path) == ("a", "stalled", "big")
    assert alarm.part in (0, 1)  # the first, where that takes so long
    assert any(isinstance(event, Stalled) for event in heard)  # the syncer's own observer, too
    assert any(isinstance(event, Committed) for event in heard)


async def test_a_directory_that_is_gone_is_a_failure_that_is_named(tmp_path: Path) -> None:
    async def train() -> None:
        async with (
            StorageSyncer(isolation="loop") as syncer,
            SyncScheduler(syncer, SyncConfig()) as scheduler,
        ):
            scheduler.add("a", local_dir=tmp_path / "gone", remote_dir=tmp_path / "there")
            scheduler.report("a")

    with pytest.raises(DrainError, match="gone"):
        await train()


async def test_status_is_a_table(stage: Stage) -> None:
    async with stage.open("a", "<b>") as scheduler:
        scheduler.report("a", training_iteration=5)
        await stage.clock.advance(10)
        scheduler.report("a", training_iteration=6)
        status = scheduler.status()

        assert [(t.trial, t.state) for t in status.trials] == [("a", "changed"), ("<b>", "current")]
        assert status.trials[0].durable_iteration == 5
        assert str(status).splitlines()[0] == "0 running, 0 waiting, 0 blocked"
        assert "&lt;b&gt;" in status._repr_html_()
