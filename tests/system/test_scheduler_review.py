"""What somebody who saw the scheduler for the first time broke, and does not break any more."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncsync import StorageSyncer, SyncConfig
from asyncsync.errors import (
    ConfigError,
    DeadlineError,
    NotFoundError,
    PermanentError,
    SlowDownError,
    TransientError,
)
from asyncsync.scheduling import DrainError, DrainReport, Synced, SyncScheduler, Ticket
from asyncsync.scheduling.jobs import Job, Urgency
from asyncsync.scheduling.ledger import Ledger
from asyncsync.scheduling.reasons import LateError
from asyncsync.scheduling.signals import until_signal
from asyncsync.testing import settle

from .stage import CONFIG, PERIOD, Stage, failing, forever, slow_looks


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def returning(value: Any) -> Callable[[], Awaitable[Any]]:
    async def act() -> Any:
        return value

    return act


# -- what a syncer returns


@pytest.mark.parametrize("value", [True, False, "ok", {"files": 1}, object()])
async def test_a_syncer_that_returns_what_is_no_receipt_fails_and_ends_nothing(
    stage: Stage, value: object
) -> None:
    stage.syncer.acts = {f"x://a/c{n}": returning(value) for n in (1, 2)}
    async with stage.open("a", "b", config=CONFIG) as scheduler:
        for name in ("c1", "c2"):
            saved = await stage.save(scheduler, "a", name)
            with pytest.raises(PermanentError, match="has to return a Receipt"):
                await stage.drive(saved.durable())
        scheduler.report("b")
        with pytest.raises(DrainError):
            await stage.drive(scheduler.drain())

    assert stage.syncer.at("x://b")


async def test_a_syncer_that_swallows_its_cancellation_has_done_nothing(stage: Stage) -> None:
    async def swallows() -> None:
        try:
            await stage.clock.sleep(1e9)
        except asyncio.CancelledError:
            return

    stage.syncer.acts = {"x://a/c1": swallows}
    async with stage.open(config=SyncConfig(sync_period=PERIOD, sync_timeout=5)) as scheduler:
        saved = await stage.save(scheduler, "a", "c1")
        with pytest.raises(DeadlineError):
            await stage.drive(saved.durable())
        with pytest.raises(DrainError):
            await stage.drive(scheduler.drain())


# -- drains, and leaving


async def test_two_drains_at_once_hear_of_the_same_failure(stage: Stage) -> None:
    stage.syncer.acts = {"x://a": failing(NotFoundError("gone"))}
    async with stage.open() as scheduler:
        scheduler.report("a")
        both = asyncio.gather(scheduler.drain(), scheduler.drain(), return_exceptions=True)
        told = await stage.drive(both)
        stage.syncer.acts.clear()

    assert [type(one) for one in told] == [DrainError, DrainError]


async def test_what_another_drain_gave_up_is_not_done_either(stage: Stage) -> None:
    stage.syncer.acts = {"x://a": forever(stage.clock)}
    async with stage.open(config=SyncConfig(sync_period=PERIOD, sync_timeout=5)) as scheduler:
        scheduler.report("a")
        await settle()
        both = asyncio.gather(
            scheduler.drain(), scheduler.drain(deadline_s=1), return_exceptions=True
        )
        told = await stage.drive(both)
        stage.syncer.acts.clear()

    assert isinstance(told[0], DrainError)
    assert isinstance(told[1], DrainReport)
    assert [one.target for one in told[1].lost] == ["x://a"]


async def test_without_a_deadline_a_checkpoint_that_another_drain_gave_up_is_an_error(
    stage: Stage,
) -> None:
    stage.syncer.acts = {"x://a/c": forever(stage.clock)}
    async with stage.open() as scheduler:
        await stage.save(scheduler, "a", "c")
        both = asyncio.gather(
            scheduler.drain(), scheduler.drain(deadline_s=1), return_exceptions=True
        )
        without, with_one = await stage.drive(both)

    assert isinstance(without, DrainError)
    assert isinstance(with_one, DrainReport)
    assert [type(one.error) for one in without.report.lost] == [LateError]


def test_what_was_told_is_not_told_again_and_is_no_reason_for_what_comes_later() -> None:
    ledger = Ledger()
    job = Job(trial="a", source="s", target="t", urgency=Urgency.FORCED)
    ledger.failed(job, NotFoundError("gone"))
    first, second = ledger.report(0), ledger.report(ledger.told)
    ledger.failed(job, LateError("late"))

    assert [len(report.lost) for report in (first, second)] == [1, 0]
    assert isinstance(ledger.error("a", "t"), LateError)
    assert [type(error) for error in ledger.tell("a")] == [LateError]


async def test_after_a_signal_with_a_deadline_leaving_begins_nothing_again(stage: Stage) -> None:
    stage.syncer.acts = {"x://a": forever(stage.clock)}
    scheduler = await stage.make().__aenter__()
    stage.add(scheduler, "a")
    scheduler.report("a")
    await settle()
    scheduler._out_of_time = True  # as until_signal notes it
    await stage.drive(scheduler.drain(deadline_s=1))
    began = stage.clock.monotonic()
    await stage.drive(scheduler.__aexit__(None, None, None))

    assert stage.clock.monotonic() - began < 20
    assert len(stage.syncer.at("x://a")) <= 2


async def test_who_is_being_left_takes_nothing_any_more(stage: Stage) -> None:
    async with stage.open("a", "b") as scheduler:
        scheduler.report("a")
        leaving = asyncio.create_task(scheduler.aclose())
        await settle(2)
        with pytest.raises(ConfigError, match="being left"):
            scheduler.report("b")
        with pytest.raises(ConfigError, match="being left"):
            await scheduler.checkpoint("b", stage.checkpoint_dir("b", "c1"))
        with pytest.raises(ConfigError, match="being left"):
            stage.add(scheduler, "c")
        await stage.drive(leaving)

    assert stage.syncer.at("x://a")


async def test_a_slow_observer_does_not_outlive_a_deadline(stage: Stage) -> None:
    go_on = threading.Event()
    async with stage.open(observe=lambda _: bool(go_on.wait(5))) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(2)
        began = stage.clock.monotonic()
        await stage.drive(scheduler.drain(deadline_s=0.5))
        took = stage.clock.monotonic() - began
        go_on.set()

    assert took < 5


# -- periods, copies, names


async def test_a_rest_that_a_success_has_ended_holds_up_nothing(stage: Stage) -> None:
    stage.syncer.acts = {"x://a": failing(SlowDownError("slow down", retry_after_s=3600), None)}
    async with stage.open() as scheduler:
        scheduler.report("a")
        await stage.clock.advance(6)
        assert scheduler.sync_up_if_needed("a")
        for _ in range(70):
            await stage.clock.advance(1)
            scheduler.report("a")

        assert stage.syncer.at("x://a") == [0, 6, 66]


async def test_what_shall_stay_stays_in_both_directions(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    async with StorageSyncer(isolation="loop") as syncer:
        for name in ("one", "two"):
            (tmp_path / "a" / name).write_text(name)
        await syncer.sync_up(tmp_path / "a", tmp_path / "there", kind="rolling")
        (tmp_path / "a/two").unlink()
        async with SyncScheduler(syncer, SyncConfig(sync_period=1)) as scheduler:
            scheduler.add(
                "a",
                local_dir=tmp_path / "a",
                remote_dir=tmp_path / "there",
                direction="down",
                delete=False,
            )
            assert scheduler.sync_up_if_needed("a")
            await scheduler.drain()

    assert (tmp_path / "there/two").exists()


@pytest.mark.parametrize("what", ["add", "checkpoint"])
async def test_patterns_that_are_one_text_are_refused(stage: Stage, what: str) -> None:
    async with stage.open() as scheduler:
        if what == "add":
            with pytest.raises(ConfigError):
                scheduler.add("b", local_dir="/b", remote_dir="x://b", exclude="*.tmp")
        else:
            made = stage.checkpoint_dir("a", "c1")
            with pytest.raises(ConfigError):
                await scheduler.checkpoint("a", made, exclude="*.tmp")


async def test_one_place_is_one_place_with_and_without_a_slash(stage: Stage) -> None:
    async with stage.open() as scheduler:
        with pytest.raises(ConfigError, match="is the target of trial a"):
            scheduler.add("b", local_dir="/b", remote_dir="x://a/")


@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan"), "8", None])
def test_slots_that_are_no_number_are_refused(stage: Stage, value: Any) -> None:
    with pytest.raises(ConfigError, match="max_syncs"):
        SyncScheduler(stage.syncer, CONFIG, max_syncs=value)


async def test_numbers_that_are_text_are_refused(stage: Stage) -> None:
    wrong: Any = "3"
    async with stage.open() as scheduler:
        with pytest.raises(ConfigError, match="training_iteration"):
            scheduler.report("a", training_iteration=wrong)
        with pytest.raises(ConfigError, match="deadline_s"):
            await scheduler.drain(deadline_s=wrong)
        with pytest.raises(ConfigError, match="name of a trial"):
            scheduler.add(wrong and 5, local_dir="/b", remote_dir="x://b")  # type: ignore[arg-type]


# -- what goes along, and what waits


@pytest.mark.parametrize("overlap", ["supersede", "queue"])
async def test_checkpoints_displace_no_tree_and_queue_none_either(
    stage: Stage, overlap: str
) -> None:
    stage.syncer.seconds = 10
    async with stage.open(overlap=overlap, max_syncs=8) as scheduler:
        for number in range(8):
            await stage.save(scheduler, "a", f"c{number}")
            await stage.clock.advance(3)

        assert [e for e in stage.told(Synced) if e.target == "x://a"]
        assert sum(job.tree is not None for job in scheduler._book.waiting()) <= 1
        assert len([t for t in scheduler._runner._tickets if t.tree is not None]) <= 8


async def test_who_waits_for_a_trial_is_woken_by_it_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    async with stage.open(*(f"t{n}" for n in range(40)), max_syncs=1) as scheduler:
        held_up = scheduler._book.held_up

        def counted() -> list[Job]:
            nonlocal looks
            looks += 1
            return held_up()

        monkeypatch.setattr(scheduler._book, "held_up", counted)
        done = asyncio.gather(*(scheduler.complete(f"t{n}") for n in range(40)))
        await stage.drive(done)

    assert looks < 40 * 4


async def test_a_checkpoint_whose_caller_goes_when_it_is_held_is_saved(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.syncer.acts = {"x://b": forever(stage.clock)}
    async with stage.open("a", "b", max_syncs=1) as scheduler:
        scheduler.report("b")
        await settle()
        first = await stage.save(scheduler, "a", "c1")
        made = stage.checkpoint_dir("a", "c1", b"newer")
        second = asyncio.create_task(scheduler.checkpoint("a", made, replace=True))
        let_go = Ticket._let_go

        def going(ticket: Ticket) -> None:
            let_go(ticket)
            second.cancel()  # in the same turn

        with monkeypatch.context() as patched:
            patched.setattr(Ticket, "_let_go", going)
            with pytest.raises(asyncio.CancelledError):
                await stage.drive(second, 0.001)
        stage.syncer.acts.clear()
        scheduler._runner._stop_attempt(
            scheduler._book.running()[0], "given up", TransientError("stopped")
        )
        await stage.drive(first.durable())

    assert stage.syncer.at("x://a/c1")


def waits_for_signals() -> bool:
    """The task beside the block, which ends with the second."""
    return any(task.get_name().endswith("_awaited") for task in asyncio.all_tasks())


async def test_a_second_signal_counts_also_while_the_block_cleans_up() -> None:
    async def train() -> None:
        async with until_signal(lambda: settle(0)):
            assert waits_for_signals()
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    os.kill(os.getpid(), signal.SIGTERM)
                    while waits_for_signals():  # it comes through a file descriptor
                        await settle(1)

    with pytest.raises(KeyboardInterrupt):
        await train()


async def test_a_drain_with_a_deadline_does_not_wait_for_a_disk_that_does_not_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = anyio.Event()

    @asynccontextmanager
    async def hangs() -> AsyncIterator[None]:
        with anyio.CancelScope(shield=True):  # as a thread that is in the kernel
            await answers.wait()
        yield

    monkeypatch.setattr("asyncsync.scheduling.scheduler.take_of", lambda *_, **__: hangs)
    async with stage.open() as scheduler:
        saving = asyncio.create_task(scheduler.checkpoint("a", stage.checkpoint_dir("a", "c1")))
        await settle()
        draining = asyncio.create_task(scheduler.drain(deadline_s=1))
        for _ in range(30):
            await stage.clock.advance(1)
        done = draining.done()
        answers.set()
        await stage.drive(asyncio.gather(saving, draining, return_exceptions=True))

    assert done
    assert not stage.syncer.at("x://a/c1")  # it was given up


async def test_a_checkpoint_that_began_before_the_scheduler_is_left_is_saved(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, go_on = slow_looks(monkeypatch)
    scheduler = await stage.make().__aenter__()
    stage.add(scheduler, "a")
    saving = asyncio.create_task(scheduler.checkpoint("a", stage.checkpoint_dir("a", "c1")))
    while not looks.is_set():
        await settle(1)
    leaving = asyncio.create_task(scheduler.aclose())
    await settle(2)
    go_on.set()
    ticket = await stage.drive(saving)
    await stage.drive(leaving)

    assert await ticket.durable() is None
    assert stage.syncer.at("x://a/c1")
