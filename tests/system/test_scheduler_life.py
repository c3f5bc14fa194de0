"""Copies of a scheduler, and how one begins and ends: fixtures, stacks, groups, time limits."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from asyncsync import StorageSyncer, SyncConfig
from asyncsync.errors import ConfigError, ConflictError, TransientError
from asyncsync.scheduling import (
    Alarm,
    Blocked,
    DrainError,
    DrainReport,
    Dropped,
    Durable,
    Failed,
    Lost,
    Missed,
    Same,
    Started,
    Synced,
    SyncScheduler,
    Ticket,
)
from asyncsync.testing import FakeClock, settle

from .stage import CONFIG, Stage, failing, forever

T = TypeVar("T")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# -- copies


class Slow:
    """A syncer that pickles: a copy is in the middle of nothing. It waits until it is let go."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.go_on = anyio.Event()

    def __reduce__(self) -> tuple[type[Slow], tuple[()]]:
        return Slow, ()

    async def sync_up(self, local: Any, remote: Any, *, exclude: Sequence[str] = ()) -> None:
        self.targets.append(remote)
        await self.go_on.wait()

    async def sync_down(self, remote: Any, local: Any, *, exclude: Sequence[str] = ()) -> None:
        raise NotImplementedError

    async def delete(self, remote: Any) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Nothing to let go of."""


def copy_of(value: T) -> T:
    there: T = pickle.loads(pickle.dumps(value))
    return there


async def test_a_copy_has_no_sync_in_flight_and_works_while_the_first_goes_on() -> None:
    syncer, clock = Slow(), FakeClock()
    scheduler = SyncScheduler(syncer, CONFIG, max_syncs=1, overlap="skip", clock=clock)
    async with scheduler:
        for name in ("a", "b"):
            scheduler.add(name, local_dir=f"/{name}", remote_dir=f"x://{name}")
            scheduler.report(name)
        await settle()
        assert (scheduler.status().running, scheduler.status().waiting) == (1, 1)
        copy = copy_of(scheduler)
        async with copy:
            status = copy.status()
            copy.add("c", local_dir="/c", remote_dir="x://c")
            assert copy.sync_up_if_needed("c")
            assert copy._syncer is not syncer
            copy._syncer.go_on.set()  # type: ignore[union-attr]
        assert syncer.targets == ["x://a"]
        syncer.go_on.set()

    assert (status.running, status.waiting, status.trials) == (0, 0, ())
    assert copy._syncer.targets == ["x://c"]  # type: ignore[union-attr]
    assert (copy._rules, copy._max_syncs) == (scheduler._rules, 1)
    assert syncer.targets == ["x://a", "x://b"]


async def test_a_copy_of_one_that_is_over_can_be_opened(tmp_path: Path) -> None:
    scheduler = SyncScheduler(config=SyncConfig(upload_dir=f"file://{tmp_path}/store"))
    scheduler = copy_of(scheduler)  # as it is sent to a worker before it is used
    async with scheduler:
        pass
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log").write_text("x")
    async with copy_of(scheduler) as copy:
        copy.add("a", local_dir=tmp_path / "a")
        copy.report("a")

    assert (tmp_path / "store" / "a" / "log").read_text() == "x"


async def test_a_copy_of_a_ticket_knows_what_became_of_it_and_never_waits(stage: Stage) -> None:
    refusal = ConflictError("another is there", winner="b3:1")
    stage.syncer.acts["x://a/bad"] = failing(refusal)
    stage.syncer.acts["x://a/open"] = forever(stage.clock)
    async with stage.open() as scheduler:
        tickets = [await stage.save(scheduler, "a", name) for name in ("good", "bad", "open")]
        await stage.clock.advance(5)
        good, bad, still_open = (copy_of(ticket) for ticket in tickets)
        stage.syncer.acts.clear()
        with pytest.raises(DrainError):
            await stage.drive(scheduler.drain(deadline_s=0))

    assert await good.durable() is None
    with pytest.raises(ConflictError, match="another is there") as caught:
        await bad.durable()
    assert caught.value.winner == "b3:1"
    with pytest.raises(TransientError, match="ask the ticket"):
        await still_open.durable()


async def test_a_copy_of_a_feed_is_at_its_end(stage: Stage) -> None:
    async with stage.open() as scheduler:
        feed = scheduler.events()
        scheduler.report("a")
        await stage.clock.advance(5)

    assert [event async for event in copy_of(feed)] == []
    assert len([event async for event in feed]) == 2


async def test_what_is_told_is_a_value_that_pickles(tmp_path: Path) -> None:
    async with (
        StorageSyncer(isolation="loop") as syncer,
        SyncScheduler(syncer, SyncConfig()) as scheduler,
    ):
        scheduler.add("a", local_dir=tmp_path / "a", remote_dir=tmp_path / "there")
        (tmp_path / "a" / "checkpoint_1").mkdir(parents=True)
        ticket = await scheduler.checkpoint("a", tmp_path / "a" / "checkpoint_1")
        receipt = await ticket.durable()
        report, status = await scheduler.drain(), scheduler.status()
    notices = [
        Started(trial="a", target="x", urgency="final", queued_s=1.0),
        Synced(trial="a", target="x", receipt=receipt, seconds=1.0),
        Failed(trial="a", target="x", reason="no", failures=1, again=True, wait_s=1.0),
        Dropped(trial="a", target="x"),
        Blocked(trial="a", target="x", free=True),
        Same(trial="a", target="x", before="y", identity="b3:1"),
        Alarm(trial="a", target="x", why="stalled", late_s=1.0, queued_s=0.0, path="f", part=3),
        Missed(count=7),
    ]

    assert receipt is not None
    assert copy_of(receipt) == receipt
    assert copy_of(report) == report
    assert copy_of(status) == status
    assert copy_of(notices) == notices
    assert await copy_of(ticket).durable() == receipt


def test_a_drain_error_pickles_with_its_report() -> None:
    durable = Durable(trial="a", target="x", step=3, receipt=None)
    lost = Lost(trial="b", target="y", step=None, error=TransientError("no route"))
    error = copy_of(DrainError(DrainReport(durable=(durable,), lost=(lost,))))

    assert error.report.durable == (durable,)
    assert [(one.trial, one.reason) for one in error.report.lost] == [("b", "no route")]
    assert "no route" in str(error)


# -- where it is opened and closed


@pytest.fixture
def nothing_lost(stage: Stage) -> Iterator[Stage]:
    """Looks what is safe after the scheduler has been closed."""
    yield stage
    assert [remote for _, _, remote, _ in stage.syncer.calls] == ["x://a"]
    assert stage.syncer.writing == []


@pytest.fixture
async def opened(nothing_lost: Stage) -> AsyncIterator[SyncScheduler]:
    stage = nothing_lost
    stage.syncer.seconds = 0
    async with stage.make() as scheduler:
        stage.add(scheduler, "a")
        yield scheduler


async def test_a_fixture_opens_it_and_drains_it(opened: SyncScheduler, stage: Stage) -> None:
    opened.report("a", training_iteration=0, time_total_s=0)  # not due before the end
    await settle()

    assert stage.syncer.calls == []


async def test_two_tasks_of_a_stack_open_and_close_it_while_a_third_works(stage: Stage) -> None:
    stage.syncer.seconds = 0
    stack, scheduler = AsyncExitStack(), stage.make()
    await asyncio.create_task(stack.enter_async_context(scheduler))
    stage.add(scheduler, "a")
    ticket = await stage.drive(
        asyncio.create_task(scheduler.checkpoint("a", stage.checkpoint_dir("a", "c")))
    )
    await asyncio.create_task(stack.aclose())

    assert await ticket.durable() is None
    assert scheduler._runner.closed


async def test_the_error_of_a_stack_is_not_hidden_by_it(stage: Stage) -> None:
    stage.syncer.acts["x://a"] = failing(ConflictError("other", winner=""))

    async def train() -> None:
        async with AsyncExitStack() as stack:
            scheduler = await stack.enter_async_context(stage.make())
            stage.add(scheduler, "a")
            scheduler.report("a")
            await settle()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await train()
    assert stage.syncer.writing == []


@pytest.mark.parametrize("when", ["in the block", "while it drains"])
async def test_a_time_limit_around_it_stops_what_runs(stage: Stage, when: str) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)
    tickets: list[Ticket] = []

    async def train() -> None:
        async with asyncio.timeout(None) as limit, stage.make() as scheduler:
            stage.add(scheduler, "a")
            tickets.append(await stage.save(scheduler, "a", "c"))
            await settle()
            limit.reschedule(0)  # it is over at the next turn
            if when == "in the block":
                await anyio.sleep_forever()

    with pytest.raises(TimeoutError):
        await stage.drive(train())
    assert stage.syncer.writing == []
    with pytest.raises(TransientError, match="left"):
        await tickets[0].durable()


@pytest.mark.parametrize("call", ["checkpoint", "durable", "complete", "drain"])
async def test_a_time_limit_around_one_call_ends_that_call_alone(stage: Stage, call: str) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)

    async def wait(scheduler: SyncScheduler, ticket: Ticket) -> None:
        async with asyncio.timeout(None) as limit:
            limit.reschedule(0)
            if call == "checkpoint":
                await scheduler.checkpoint("a", stage.place / "a" / "c", snapshot=False)
            elif call == "durable":
                await ticket.durable()
            elif call == "complete":
                await scheduler.complete("a")
            else:
                await scheduler.drain()

    async with stage.open("a", "b") as scheduler:
        ticket = await stage.save(scheduler, "a", "c")
        await stage.clock.advance(1)
        with pytest.raises(TimeoutError):
            await stage.drive(wait(scheduler, ticket), 0.001)
        assert not ticket.done
        assert "x://a/c" in stage.syncer.writing
        await stage.drive((await stage.save(scheduler, "b", "c")).durable())
        with pytest.raises(DrainError, match="x://a/c"):
            await stage.drive(scheduler.drain(deadline_s=1, strict=True))

    assert stage.syncer.writing == []


async def test_the_tasks_of_a_group_share_it(stage: Stage) -> None:
    names = [f"t{n}" for n in range(5)]

    async def train(scheduler: SyncScheduler, name: str) -> None:
        for step in range(3):
            scheduler.report(name, training_iteration=step, time_total_s=step)
            await scheduler.checkpoint(name, stage.checkpoint_dir(name, f"c{step}"))
        await scheduler.complete(name)

    async with stage.open(*names, max_syncs=2) as scheduler:
        async with asyncio.TaskGroup() as group:
            all_over = asyncio.gather(
                *(group.create_task(train(scheduler, name)) for name in names)
            )
            await stage.drive(all_over)
        assert scheduler.status().trials == ()

    assert {target for _, target in stage.syncer.ends} >= {
        f"x://{name}/c{step}" for name in names for step in range(3)
    }
    assert stage.syncer.most <= 2


async def test_a_task_of_the_group_that_fails_is_what_the_group_raises(stage: Stage) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)
    tickets: list[Ticket] = []

    async def train(failed: asyncio.Event) -> None:
        async with stage.make() as scheduler:
            stage.add(scheduler, "a")
            tickets.append(await stage.save(scheduler, "a", "c"))
            failed.set()
            await anyio.sleep_forever()

    async def fail(now: asyncio.Event) -> None:
        await now.wait()
        raise ZeroDivisionError

    async def both() -> None:
        failed = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(train(failed))
            group.create_task(fail(failed))

    with pytest.raises(ExceptionGroup) as caught:
        await stage.drive(both())
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert stage.syncer.writing == []
    assert tickets[0].done


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("when", ["in the block", "while it drains"])
async def test_cancelled_again_while_it_stops_it_ends_all_the_same(
    stage: Stage, when: str, turns: int
) -> None:
    stage.syncer.acts["x://a/c"] = forever(stage.clock)
    begun = anyio.Event()

    async def train() -> None:
        async with stage.make() as scheduler:
            stage.add(scheduler, "a")
            await stage.save(scheduler, "a", "c")
            await settle()
            begun.set()
            if when == "in the block":
                await anyio.sleep_forever()

    training = asyncio.create_task(train())
    with anyio.fail_after(10):
        await begun.wait()
        await settle()
        for _ in range(3):
            training.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await training
        await settle()

    assert stage.syncer.writing == []


async def test_what_is_over_takes_nothing_and_says_so(stage: Stage) -> None:
    async with stage.open() as scheduler:
        pass
    for call in (
        lambda: scheduler.report("a"),
        lambda: scheduler.sync_up_if_needed("a"),
        lambda: stage.add(scheduler, "b"),
    ):
        with pytest.raises(ConfigError, match="not open"):
            call()
    for act in (scheduler.complete("a"), scheduler.drain(), scheduler.checkpoint("a", "c")):
        with pytest.raises(ConfigError, match="not open"):
            await act

    assert scheduler.status().running == 0  # which may still be read
