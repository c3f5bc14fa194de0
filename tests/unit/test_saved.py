"""Saves that go on after their caller has control back: who hears of what, and when they end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from asyncsync.errors import (
    ConfigError,
    IntegrityError,
    NotFoundError,
    TransferError,
    TransientError,
)
from asyncsync.events import Committed, Event, Observer, Snapshotted, ignore
from asyncsync.syncing import Receipt, Saved
from asyncsync.syncing.saved import Saves
from asyncsync.testing import settle

RECEIPT = Receipt(location="/to", identity="ab", kind="sealed", files=1, size_bytes=1)
FREE = Snapshotted(way="copy", waited_s=0.5)


class Sync:
    """A sync that says when its source may change and ends when it is told."""

    def __init__(self, error: Exception | None = None, *, held: bool = True) -> None:
        self.go, self.began, self.cleaned = anyio.Event(), anyio.Event(), False
        self._error, self._held = error, held

    async def __call__(self, observe: Observer) -> Receipt:
        self.began.set()
        if self._held:
            observe(FREE)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await settle()
            self.cleaned = True
            raise
        if self._error is not None:
            raise self._error
        return RECEIPT


@pytest.fixture
async def saves() -> AsyncIterator[Saves]:
    saves = Saves(ignore)
    yield saves
    await saves.stop()


@asynccontextmanager
async def beside(work: Callable[[], Awaitable[object]]) -> AsyncIterator[anyio.CancelScope]:
    """Run `work` during the block; the scope cancels it."""
    async with anyio.create_task_group() as group:

        async def run() -> None:
            await work()

        group.start_soon(run)
        await settle()
        yield group.cancel_scope


async def test_control_comes_back_before_it_is_done(saves: Saves) -> None:
    sync = Sync()
    saved = await saves.begin("a to b", sync)

    assert not saved.done
    assert repr(saved) == "<Saved a to b: on its way>"
    sync.go.set()
    assert await saved.durable() is RECEIPT
    assert saved.done
    assert repr(saved) == "<Saved a to b: durable>"


async def test_events_reach_the_observer_before_and_after(saves: Saves) -> None:
    sync, seen = Sync(), list[Event]()

    async def call(observe: Observer) -> Receipt:
        receipt = await sync(observe)
        observe(Committed(location="/to", identity="ab", durability="fsync"))
        return receipt

    saved = await saves.begin("a to b", call, seen.append)
    assert seen == [FREE]
    sync.go.set()
    await saved.durable()

    assert [type(event) for event in seen] == [Snapshotted, Committed]


async def test_without_a_snapshot_control_comes_back_when_it_is_done(saves: Saves) -> None:
    sync = Sync(held=False)
    got = list[Saved]()

    async def begin() -> None:
        got.append(await saves.begin("a to b", sync))

    async with beside(begin):
        assert got == []
        sync.go.set()

    assert got[0].done


async def test_what_fails_before_that_is_raised_right_there_and_only_there(saves: Saves) -> None:
    sync = Sync(NotFoundError("gone"), held=False)
    sync.go.set()
    with pytest.raises(NotFoundError, match="gone"):
        await saves.begin("a to b", sync)
    await saves.drain()

    saves.raise_lost()


async def test_any_number_of_tasks_may_wait_any_number_of_times(saves: Saves) -> None:
    sync, got = Sync(), list[Receipt]()
    saved = await saves.begin("a to b", sync)

    async def wait() -> None:
        got.extend([await saved.durable(), await saved.durable()])

    async with beside(wait), beside(wait):
        sync.go.set()

    assert got == [RECEIPT] * 4


async def test_every_waiter_hears_of_the_error(saves: Saves) -> None:
    sync, heard = Sync(IntegrityError("bad")), list[str]()
    saved = await saves.begin("a to b", sync)

    async def wait() -> None:
        with pytest.raises(IntegrityError, match="bad"):
            await saved.durable()
        heard.append("bad")

    async with beside(wait), beside(wait):
        sync.go.set()
    with pytest.raises(IntegrityError, match="bad"):
        await saved.durable()

    assert heard == ["bad", "bad"]
    assert repr(saved) == "<Saved a to b: failed>"


async def test_who_stops_waiting_does_not_stop_the_sync(saves: Saves) -> None:
    sync = Sync()
    saved = await saves.begin("a to b", sync)
    async with beside(saved.durable) as scope:
        scope.cancel()
    task = asyncio.create_task(saved.durable())
    await settle()
    task.cancel()
    await asyncio.wait([task])
    sync.go.set()

    assert await saved.durable() is RECEIPT
    assert not sync.cleaned


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_who_is_cancelled_before_control_came_back_cancels_the_sync(
    saves: Saves, how: str
) -> None:
    sync = Sync(held=False)
    if how == "scope":
        async with beside(lambda: saves.begin("a to b", sync)) as scope:
            scope.cancel()
    else:
        task = asyncio.create_task(saves.begin("a to b", sync))
        await sync.began.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    assert sync.cleaned, "it waited for that"
    saves.raise_lost()


async def test_what_an_observer_raises_ends_the_sync(saves: Saves) -> None:
    def fail(event: Event) -> None:
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        await saves.begin("a to b", Sync(), fail)


# ---------------------------------------------------------------- the end


async def test_draining_waits_for_all_and_takes_no_more(saves: Saves) -> None:
    one, two = Sync(), Sync()
    saved = [await saves.begin("a to b", one), await saves.begin("c to d", two)]
    drained = anyio.Event()

    async def drain() -> None:
        await saves.drain()
        drained.set()

    async with beside(drain):
        with pytest.raises(ConfigError, match="is closed"):
            await saves.begin("e to f", Sync())
        one.go.set()
        await settle()
        assert not drained.is_set()
        two.go.set()

    assert drained.is_set()
    assert [(await s.durable()) for s in saved] == [RECEIPT, RECEIPT]
    await saves.drain()


async def test_errors_that_nobody_heard_of_are_raised_at_the_end_once(saves: Saves) -> None:
    first, second, third = Sync(IntegrityError("bad")), Sync(NotFoundError("gone")), Sync()
    heard = await saves.begin("a to b", first)
    await saves.begin("c to d", second)
    await saves.begin("e to f", third)
    for sync in (first, second, third):
        sync.go.set()
    with pytest.raises(IntegrityError):
        await heard.durable()
    await saves.drain()

    with pytest.raises(TransferError, match=r"1 save\(s\) failed .*: c to d: gone") as lost:
        saves.raise_lost()
    assert [str(failure) for failure in lost.value.failures] == ["gone"]
    assert isinstance(lost.value.__cause__, NotFoundError)
    saves.raise_lost()


async def test_an_error_that_somebody_waits_for_is_not_lost(saves: Saves) -> None:
    sync, heard = Sync(IntegrityError("bad")), list[str]()
    saved = await saves.begin("a to b", sync)

    async def wait() -> None:
        with pytest.raises(IntegrityError):
            await saved.durable()
        heard.append("bad")

    async with beside(wait):
        sync.go.set()
        await saves.drain()
        saves.raise_lost()

    assert heard == ["bad"]


async def test_a_defect_is_not_lost_either(saves: Saves) -> None:
    sync = Sync(ZeroDivisionError("defect"))
    await saves.begin("a to b", sync)
    sync.go.set()
    await saves.drain()

    with pytest.raises(TransferError, match="a to b: defect") as lost:
        saves.raise_lost()
    assert isinstance(lost.value.__cause__, ZeroDivisionError)


async def test_stopping_cancels_and_waits_for_the_clean_up(saves: Saves) -> None:
    sync = Sync()
    saved = await saves.begin("a to b", sync)
    await saves.stop()

    assert sync.cleaned
    with pytest.raises(TransientError, match="a to b: stopped before it was done"):
        await saved.durable()


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_draining_that_is_cancelled_stops(saves: Saves, how: str) -> None:
    sync = Sync()
    saved = await saves.begin("a to b", sync)
    if how == "scope":
        async with beside(saves.drain) as scope:
            scope.cancel()
    else:
        task = asyncio.create_task(saves.drain())
        await settle()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    assert sync.cleaned
    assert saved.done


async def test_one_task_may_begin_and_another_end(saves: Saves) -> None:
    sync, got = Sync(), list[Saved]()

    async def begin() -> None:
        got.append(await saves.begin("a to b", sync))

    async with beside(begin):
        pass
    sync.go.set()
    async with beside(saves.drain):
        pass

    assert await got[0].durable() is RECEIPT


def test_each_loop_has_its_own() -> None:
    saves = Saves(ignore)

    async def save() -> Receipt:
        sync = Sync()
        sync.go.set()
        return await (await saves.begin("a to b", sync)).durable()

    async def last() -> int:
        await save()
        await saves.drain()
        return len(saves._tasks)

    assert asyncio.run(save()) == asyncio.run(save()) == RECEIPT
    assert asyncio.run(last()) == 1


async def test_one_that_is_cancelled_before_its_first_turn_ends(saves: Saves) -> None:
    """As by who cancels all tasks, asyncio.run for one."""
    begun, others = asyncio.Event(), asyncio.all_tasks()

    async def begin() -> None:
        begun.set()
        with pytest.raises(TransientError, match="stopped before it was done"):
            await saves.begin("a to b", Sync())

    async with anyio.create_task_group() as group:
        group.start_soon(begin)
        await begun.wait()
        [task] = saves._running()
        assert task not in others
        task.cancel()


async def test_after_all_tasks_were_cancelled_the_next_one_is_durable(saves: Saves) -> None:
    sync, last = Sync(), Sync()
    first = await saves.begin("a to b", sync)
    for task in saves._running():
        task.cancel()
    with pytest.raises(TransientError):
        await first.durable()
    last.go.set()

    assert await (await saves.begin("a to c", last)).durable() is RECEIPT


class Stop(BaseException):
    """What an observer may raise to end its sync."""


async def test_what_ends_one_leaves_the_others_alone(saves: Saves) -> None:
    sync, other = Sync(), Sync()

    async def call(observe: Observer) -> Receipt:
        observe(FREE)
        await sync.go.wait()
        raise Stop

    first, second = await saves.begin("a to b", call), await saves.begin("a to c", other)
    sync.go.set()
    with pytest.raises(Stop):
        await first.durable()
    other.go.set()

    assert await second.durable() is RECEIPT


async def test_a_forked_child_has_none_to_tell_of(
    saves: Saves, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = Sync(TransientError("lost"))
    saved = await saves.begin("a to b", sync)
    sync.go.set()
    while not saved.done:
        await settle()
    monkeypatch.setattr(os, "getpid", lambda: -1)

    saves.raise_lost()


def test_a_loop_that_ends_cancels_them() -> None:
    sync, saves = Sync(), Saves(ignore)
    saved = asyncio.run(saves.begin("a to b", sync))

    assert (sync.cleaned, saved.done) == (True, True)


async def test_what_succeeded_is_not_remembered(saves: Saves) -> None:
    for _ in range(5):
        sync = Sync()
        sync.go.set()
        await (await saves.begin("a to b", sync)).durable()

    assert len(saves._begun) == 1
