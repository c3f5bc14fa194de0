"""A scheduler that goes on for weeks: what is over leaves nothing behind, and is not taken back."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from asyncsync import SyncConfig
from asyncsync.errors import ConfigError, ConflictError, TransferError, TransientError
from asyncsync.scheduling import Alarm, DrainError, Notice, Started, Synced, SyncScheduler, Ticket
from asyncsync.scheduling.jobs import Job, Urgency
from asyncsync.scheduling.ledger import Ledger
from asyncsync.testing import settle

from .stage import PERIOD, Stage, deaf_until, failing, forever, slow_looks

E = TypeVar("E", bound=Exception)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def remembered(scheduler: SyncScheduler) -> dict[str, int]:
    """How much it keeps, of what could grow."""
    book, runner = scheduler._book, scheduler._runner
    kept: list[Any] = [
        book.targets, book._timers, book._line, book._saved, book.alarms._looks,
        runner._attempts, runner._stopped, runner._tickets, runner._trials, runner._holds,
        runner._waiters, scheduler._ledger._pages, scheduler._trials,
    ]  # fmt: skip
    return {str(number): len(one) for number, one in enumerate(kept)}


# -- what is kept


async def test_trials_that_come_and_go_leave_nothing(stage: Stage) -> None:
    stage.syncer.seconds = 0.01

    async def lives(scheduler: SyncScheduler, name: str, number: int) -> None:
        stage.add(scheduler, name)
        scheduler.report(name)
        stage.syncer.acts[f"x://{name}/c"] = failing(
            OSError("flaky"), ConflictError("other", winner="") if number % 3 else None
        )
        await scheduler.checkpoint(name, stage.checkpoint_dir(name, "c"), snapshot=bool(number % 2))
        scheduler.report(name)
        await scheduler.complete(name)

    async with stage.open() as scheduler:
        before = remembered(scheduler)
        for number in range(8):
            names = [f"{number}.{n}" for n in range(6)]
            living = [lives(scheduler, name, n) for n, name in enumerate(names)]
            await stage.drive(asyncio.gather(*living, return_exceptions=True))
        await stage.clock.advance(2 * PERIOD)

        assert remembered(scheduler) == before


async def test_what_is_given_up_leaves_nothing(stage: Stage) -> None:
    async with stage.open(max_syncs=1) as scheduler:
        scheduler.report("a")
        await stage.drive(scheduler.drain())
        await stage.clock.advance(PERIOD)
        before = remembered(scheduler)
        stage.syncer.acts["x://a"] = forever(stage.clock)
        scheduler.report("a")
        await settle()
        for number in range(5):
            await stage.save(scheduler, "a", f"c{number}")
        await stage.drive(scheduler.drain(deadline_s=0))
        stage.syncer.acts.clear()
        await stage.drive(scheduler.drain())
        await stage.clock.advance(2 * PERIOD)

        assert remembered(scheduler) == before


class Weights:
    """Something large."""


async def test_a_loss_holds_nothing_of_what_was_in_use_when_it_was_lost(stage: Stage) -> None:
    used: list[weakref.ref[Weights]] = []

    async def reads() -> None:
        weights, files = Weights(), Weights()
        used.extend(map(weakref.ref, (weights, files)))
        try:
            int("one file")
        except ValueError as one:
            ours = ConflictError("another", winner="")
            raise TransferError("files failed", failures=[ours]) from one

    async def trains(scheduler: SyncScheduler) -> None:
        weights = Weights()
        used.append(weakref.ref(weights))
        ticket = await stage.save(scheduler, "a", "c")
        try:
            await stage.drive(ticket.durable())
        except TransferError:
            return

    stage.syncer.acts["x://a/c"] = reads
    async with stage.open() as scheduler:
        await trains(scheduler)
        await settle()
        gc.collect()

        assert [one() for one in used] == [None] * 3
        with pytest.raises(DrainError, match="files failed") as caught:
            await stage.drive(scheduler.drain())
        (lost,) = caught.value.report.lost
        assert "one file" in str(lost.error.__cause__)
        assert lost.error.__notes__[0].startswith(f"raised at {__file__}:")


def test_what_was_lost_is_remembered_with_all_that_is_inside_but_without_frames() -> None:
    def raised(error: E, cause: Exception | None = None) -> E:
        with pytest.raises(type(error)):
            raise error from cause
        assert error.__traceback__ is not None
        return error

    inside = raised(ValueError("inside"))
    group = raised(ExceptionGroup("several", [inside]))
    outer = raised(TransferError("outer", failures=[raised(TransientError("one"), group)]))
    job = Job(trial="a", source="s", target="t", urgency=Urgency.FORCED)
    ledger = Ledger()
    for _ in range(3):
        ledger.failed(job, raised(outer))  # the same one again, as some syncers do

    errors = [outer, *outer.failures, group, inside]
    assert [error.__traceback__ for error in errors] == [None] * 4
    assert len(inside.__notes__) == 1
    assert len(outer.__notes__) <= 2


@pytest.mark.parametrize("error", [ConflictError("other", winner="me"), OSError(2, "x", "f")])
async def test_who_asks_again_and_again_why_it_failed_is_told_the_same(
    stage: Stage, error: Exception
) -> None:
    stage.syncer.acts["x://a/c"] = failing(error)
    lengths = set()
    async with stage.open() as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        for _ in range(5):
            with pytest.raises(type(error)) as caught:
                await stage.drive(ticket.durable())
            lengths.add(len(caught.traceback))
            assert (str(caught.value), caught.value.args) == (str(error), error.args)
        with pytest.raises(DrainError):
            await stage.drive(scheduler.drain())

    assert len(lengths) == 1
    assert pickle.loads(pickle.dumps(ticket)).error.args == error.args


async def test_an_error_that_cannot_be_copied_is_raised_itself() -> None:
    class OddError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__("odd")

    ticket = Ticket("x to y")
    ticket._end(None, error := OddError(1, 2))
    with pytest.raises(OddError, match="odd") as caught:
        await ticket.durable()

    assert caught.value is error


async def test_a_syncer_that_does_not_end_stays_alive_until_it_does(stage: Stage) -> None:
    waits: list[weakref.ref[asyncio.Future[None]]] = []

    async def deaf() -> None:
        for _ in range(2):  # nobody but itself holds what it waits for
            try:
                waiting = asyncio.get_running_loop().create_future()
                waits.append(weakref.ref(waiting))
                await waiting
            except asyncio.CancelledError:
                continue

    stage.syncer.acts["x://a"] = deaf
    async with stage.open(config=SyncConfig(sync_period=PERIOD, sync_timeout=5)) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(16)
        assert scheduler.status().blocked == ("x://a",)
        gc.collect()
        del stage.syncer.acts["x://a"]
        waiting = waits[-1]()
        assert waiting is not None
        waiting.set_result(None)
        await settle()

        assert scheduler.status().blocked == ()


# -- trials that are over


@pytest.mark.parametrize("waits", [False, True])
async def test_a_trial_that_goes_down_is_over_when_nothing_is_written_there_any_more(
    stage: Stage, waits: bool
) -> None:
    stage.syncer.seconds = 20
    async with stage.open(max_syncs=1 if waits else 2) as scheduler:
        scheduler.add("d", local_dir=stage.place / "d", remote_dir="x://d", direction="down")
        scheduler.report("a")
        await settle()
        scheduler.report("d")
        await settle()
        await stage.drive(scheduler.complete("d"))
        local = str(stage.place / "d")
        assert local not in stage.syncer.writing
        await stage.clock.advance(100)

        assert len(stage.syncer.at(local)) == (0 if waits else 1)
        assert set(scheduler._ledger._pages) == {"a"}


async def test_completion_ends_when_the_scheduler_does_before_a_sync_has_begun(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(job: Job) -> None:
        await anyio.sleep_forever()

    completing: list[asyncio.Task[None]] = []

    async def train() -> None:
        async with stage.open() as scheduler:
            monkeypatch.setattr(scheduler._runner, "_run", never)
            scheduler.add("d", local_dir=stage.place / "d", remote_dir="x://d", direction="down")
            scheduler.report("d")
            await settle()
            completing.append(asyncio.create_task(scheduler.complete("d")))
            await settle()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await train()
    with anyio.fail_after(5):
        await completing[0]


async def test_completion_waits_for_a_checkpoint_that_is_being_looked_at(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, go_on = slow_looks(monkeypatch)
    async with stage.open() as scheduler:
        saving = asyncio.create_task(scheduler.checkpoint("a", stage.checkpoint_dir("a", "c")))
        await stage.until(looks.is_set)
        completing = asyncio.create_task(scheduler.complete("a"))
        await stage.clock.advance(10)
        assert not completing.done()
        go_on.set()
        await stage.drive(completing)

        assert (await saving).done
        assert len(stage.syncer.at("x://a/c")) == 1


async def test_completion_does_not_wait_for_what_comes_late_behind_a_syncer_that_does_not_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = anyio.Event()
    stage.syncer.acts["x://a/c"] = deaf_until(release)
    async with stage.open(config=SyncConfig(sync_period=PERIOD, sync_timeout=10)) as scheduler:
        await stage.save(scheduler, "a", "c")
        await stage.clock.advance(21)
        looks, go_on = slow_looks(monkeypatch)
        saving = asyncio.create_task(scheduler.checkpoint("a", stage.checkpoint_dir("a", "c")))
        await stage.until(looks.is_set)
        completing = asyncio.create_task(scheduler.complete("a"))
        await stage.clock.advance(5)
        assert not completing.done()
        go_on.set()
        with pytest.raises(TransientError, match="does not end"):
            await stage.drive(completing)
        assert (await saving).done
        release.set()
        await settle()


async def test_who_is_being_left_syncs_nothing_that_might_be_needed(stage: Stage) -> None:
    async with stage.open("a", "b") as scheduler:
        scheduler.report("a")
        leaving = asyncio.create_task(scheduler.aclose())
        await settle(2)
        with pytest.raises(ConfigError, match="being left"):
            scheduler.sync_up_if_needed("b")
        await stage.drive(leaving)

    assert stage.syncer.at("x://b") == []


# -- checkpoints that are taken back


async def asked(stage: Stage, scheduler: SyncScheduler) -> asyncio.Task[Ticket]:
    """A version of a checkpoint that can still be taken back, in line behind or for another."""
    before = len(scheduler._runner._tickets)
    made = stage.checkpoint_dir("a", "c")
    saving = asyncio.create_task(scheduler.checkpoint("a", made, snapshot=False))
    await stage.until(lambda: len(scheduler._runner._tickets) > before)
    return saving


async def test_what_was_handed_over_is_safe_although_a_newer_one_is_taken_back_as_it_runs(
    stage: Stage,
) -> None:
    free = anyio.Event()
    stage.syncer.acts = {"x://b": free.wait, "x://a/c": forever(stage.clock)}
    async with stage.open("a", "b", max_syncs=1) as scheduler:
        scheduler.report("b")
        await settle()
        first = await stage.save(scheduler, "a", "c")
        second = await asked(stage, scheduler)
        free.set()
        while "x://a/c" not in stage.syncer.writing:
            await stage.clock.advance(0.5)
        assert stage.syncer.calls[-1][1] == str(stage.place / "a" / "c")
        stage.syncer.acts.clear()
        second.cancel()
        await stage.drive(first.durable())

        assert second.cancelled()
        assert stage.syncer.calls[-1][1] != str(stage.place / "a" / "c")  # its own snapshot


async def test_what_was_displaced_keeps_its_snapshot_until_the_newer_one_has_one(
    stage: Stage,
) -> None:
    there: list[bool] = []

    async def ends_late() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await stage.clock.sleep(3)

    async def looks() -> None:
        read = Path(stage.syncer.calls[-1][1], "w")
        there.append(await asyncio.to_thread(read.exists))

    stage.syncer.acts["x://a/c"] = ends_late
    async with stage.open(overlap="supersede", max_syncs=1) as scheduler:
        first = await stage.save(scheduler, "a", "c")
        await stage.until(lambda: stage.syncer.writing == ["x://a/c"])
        second = await asked(stage, scheduler)
        await settle()
        stage.syncer.acts["x://a/c"] = looks
        stage.syncer.acts["x://a"] = forever(stage.clock)
        second.cancel()
        await stage.drive(first.durable())
        assert there == [True]

        stage.syncer.acts.clear()
        await stage.drive(scheduler.drain(deadline_s=0))


async def test_a_newer_snapshot_makes_room_as_soon_as_the_older_is_not_read(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)
    async with stage.open(overlap="supersede") as scheduler:
        for _ in range(4):
            await stage.save(scheduler, "a", "c")
            await settle()
        await stage.until(lambda: len(scheduler._runner._holds) == 1)
        stage.syncer.acts.clear()
        await stage.drive(scheduler.drain(deadline_s=0))


async def test_of_two_versions_that_are_both_taken_back_none_is_saved(stage: Stage) -> None:
    free = anyio.Event()
    stage.syncer.acts["x://b"] = free.wait
    async with stage.open("a", "b", max_syncs=1) as scheduler:
        scheduler.report("b")
        await settle()
        both = [await asked(stage, scheduler), await asked(stage, scheduler)]
        for saving in both:
            saving.cancel()
            await settle()
        free.set()
        await stage.clock.advance(50)

        assert stage.syncer.at("x://a/c") == []
        assert [saving.cancelled() for saving in both] == [True, True]


# -- what is told


async def test_a_rest_between_two_attempts_is_no_time_in_line(stage: Stage) -> None:
    stage.syncer.acts["x://a"] = failing(OSError("flaky"))
    async with stage.open() as scheduler:
        assert scheduler.sync_up_if_needed("a")
        await stage.clock.advance(2.5)
        status = scheduler.status().trials[0]
        await stage.clock.advance(60)

        assert (status.state, status.queued_s, status.failures) == ("resting", 0, 2)
        assert [event.queued_s for event in stage.told(Started)] == pytest.approx([0] * 3)
        assert [alarm.queued_s for alarm in stage.told(Alarm)] == [0]
        del stage.syncer.acts["x://a"]


async def test_where_there_is_no_thread_for_the_observer_syncs_go_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    heard: list[Notice] = []
    async with stage.open(observe=heard.append) as scheduler:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", full)
            scheduler.report("a")
            with pytest.raises(ConfigError, match="new thread"):
                await stage.drive(scheduler.drain())
        scheduler.report("a")
        await stage.drive(scheduler.drain())

    assert len(stage.syncer.at("x://a")) == 2
    assert [type(event) for event in heard] == [Started, Synced]


async def test_a_checkpoint_that_waits_for_its_period_waits_for_no_slot(stage: Stage) -> None:
    config = SyncConfig(sync_period=PERIOD, sync_on_checkpoint=False)
    async with stage.open(config=config) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(10)
        await stage.drive((await stage.save(scheduler, "a", "c")).durable())

        assert [event.queued_s for event in stage.told(Started)] == pytest.approx([0, 0])


async def test_nothing_that_is_stuck_or_revoked_is_kept(stage: Stage) -> None:
    release = anyio.Event()
    config = SyncConfig(sync_period=PERIOD, sync_timeout=5)
    async with stage.open(config=config) as scheduler:
        scheduler.report("a")
        await stage.drive(scheduler.drain())
        before = remembered(scheduler)
        stage.syncer.acts["x://a/c"] = deaf_until(release)
        saving = await asked(stage, scheduler)
        await stage.clock.advance(1)
        saving.cancel()
        await stage.clock.advance(20)
        assert scheduler.status().blocked == ("x://a/c",)
        release.set()
        await settle()
        await stage.clock.advance(2 * PERIOD)

        assert remembered(scheduler) == before
