"""Cancelled at every hop to a thread: the old tree, the new one or none, and the way is free."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import pytest
from anyio import to_thread

import asyncsync
from asyncsync.concurrency import Threads
from asyncsync.errors import NotFoundError
from asyncsync.manifest import Kind
from asyncsync.syncing import StorageSyncer

from .trees import content, make, temporary

T = TypeVar("T")
How = Literal["scope", "task"]
Moment = Literal["before", "during"]
Tree = dict[str, bytes | None]

OLD: Tree = {"a": b"1", "d/b": b"two", "d/gone": b"3", "e/big": b"4" * 300_000}
NEW: Tree = {"a": b"1", "d/b": b"other", "d/e/c": b"", "e/big": b"5" * 300_000}


class _Cancel:
    """Calls `first` at the n-th hop to a thread and `second`, if there is one, at the next."""

    def __init__(self, number: int, moment: Moment) -> None:
        self._number, self._moment = number, moment
        self.hops = 0
        self.first: Callable[[], object]
        self.second: Callable[[], object] | None = None

    @property
    def reached(self) -> bool:
        return self.hops >= self._number

    def before(self, function: Callable[..., T]) -> Callable[..., T]:
        """Count a hop; cancel now, or when `function` is about to begin in its thread."""
        self.hops += 1
        cancel = {self._number: self.first, self._number + 1: self.second}.get(self.hops)
        if cancel is None:
            return function
        if self._moment == "before":
            cancel()
            return function
        return _after(cancel, function)


def _after(act: Callable[[], object], function: Callable[..., T]) -> Callable[..., T]:
    """`function`, which begins in its thread when `act` has run on the event loop."""
    loop, acted = asyncio.get_running_loop(), threading.Event()

    def both(*args: object) -> T:
        def on_loop() -> None:
            act()
            acted.set()

        loop.call_soon_threadsafe(on_loop)
        assert acted.wait(10), "the event loop stands still"
        return function(*args)

    return both


@dataclass(frozen=True, slots=True)
class _Case:
    """One operation: how to begin, what to do, and what there may be before and after."""

    prepare: Callable[[Path], Awaitable[None]]
    act: Callable[[StorageSyncer, Path], Awaitable[object]]
    before: Tree
    after: Tree


def _target(place: Path) -> Path:
    return place / "run" / "ckpt_7"


async def _nothing(place: Path) -> None:
    make(place.parent / "source", NEW)


async def _committed(place: Path, *, kind: Kind = "sealed") -> None:
    """The old tree as a commit, and a source that has changed since."""
    source = make(place.parent / "source", OLD)
    await asyncsync.sync_up(source, _target(place), kind=kind)
    (source / "d/gone").unlink()
    make(source, NEW)


async def _rolling(place: Path) -> None:
    await _committed(place, kind="rolling")


async def _stored(place: Path) -> None:
    """A new commit to fetch, and nothing where it goes."""
    await asyncsync.sync_up(make(place.parent / "local", NEW), place.parent / "store/ckpt_7")


async def _restored(place: Path) -> None:
    """The old commit where the new one goes."""
    old = make(place.parent / "old", OLD)
    await asyncsync.sync_up(old, place.parent / "before/ckpt_7")
    await asyncsync.sync_down(place.parent / "before/ckpt_7", _target(place))
    await _stored(place)


async def _up(syncer: StorageSyncer, place: Path) -> object:
    return await syncer.sync_up(place.parent / "source", _target(place))


async def _replace(syncer: StorageSyncer, place: Path) -> object:
    return await syncer.sync_up(place.parent / "source", _target(place), replace=True)


async def _down(syncer: StorageSyncer, place: Path) -> object:
    return await syncer.sync_down(place.parent / "store/ckpt_7", _target(place))


async def _delete(syncer: StorageSyncer, place: Path) -> object:
    return await syncer.delete(_target(place))


CASES = {
    "up, new": _Case(_nothing, _up, {}, NEW),
    "up, rolling": _Case(_rolling, _up, OLD, NEW),
    "up, replace": _Case(_committed, _replace, OLD, NEW),
    "down, new": _Case(_stored, _down, {}, NEW),
    "down, update": _Case(_restored, _down, OLD, NEW),
    "delete": _Case(_committed, _delete, OLD, {}),
}


@pytest.fixture
def cancel_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[_Cancel | None], None]:
    """From now on every hop goes past this one; None: past nobody."""
    hop = Threads.run
    current: list[_Cancel | None] = [None]

    async def run(self: Threads, function: Callable[..., Any], *args: object) -> Any:
        if current[0] is not None:
            function = current[0].before(function)
        return await hop(self, function, *args)

    monkeypatch.setattr(Threads, "run", run)
    return lambda cancel: current.__setitem__(0, cancel)


async def _by_scope(cancel: _Cancel, act: Callable[[], Awaitable[object]], *, twice: bool) -> bool:
    """Whether `act` ended by being cancelled."""
    with anyio.CancelScope() as outer, anyio.CancelScope() as inner:
        cancel.first = inner.cancel
        cancel.second = outer.cancel if twice else None
        await act()
    return inner.cancelled_caught or outer.cancelled_caught


async def _by_task(cancel: _Cancel, act: Callable[[], Awaitable[object]], *, twice: bool) -> bool:
    """Whether `act`, the only thing a task does, ended by being cancelled."""

    async def alone() -> None:
        await act()

    task = asyncio.create_task(alone())
    cancel.first = task.cancel
    cancel.second = task.cancel if twice else None
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return task.cancelled()


BY = {"scope": _by_scope, "task": _by_task}


async def _seen(target: Path) -> Tree:
    """What a reader finds; a tree that is there must be whole."""
    found = await to_thread.run_sync(content, target)
    if target.exists():
        assert (await asyncsync.verify(target)).ok
    return found


async def _finish(case: _Case, syncer: StorageSyncer, place: Path) -> None:
    """The next run: nothing that was cancelled is in its way."""
    gone = case.after == {} and not _target(place).exists()
    try:
        await case.act(syncer, place)
        assert not gone
    except NotFoundError:
        assert gone, "only what has been deleted is missing"


def _copy(template: Path, place: Path) -> None:
    if template.exists():
        shutil.copytree(template, place)


@pytest.mark.parametrize(
    ("how", "moment", "twice"),
    [
        ("scope", "before", False),
        ("scope", "during", False),
        ("scope", "during", True),
        ("task", "during", False),
        ("task", "during", True),
    ],
    ids=["scope before", "scope during", "scope twice", "task during", "task twice"],
)
@pytest.mark.parametrize("name", CASES)
async def test_cancelled_at_any_hop_it_leaves_a_whole_tree_or_none(
    name: str,
    how: How,
    moment: Moment,
    twice: bool,
    tmp_path: Path,
    cancel_at: Callable[[_Cancel | None], None],
) -> None:
    case, template = CASES[name], tmp_path / "template"
    await case.prepare(template)
    left = list[Tree]()
    # One file and one byte: what a cancelled run does not give back, the next one waits for.
    # Two threads: what a cancelled run does not wait for, goes on beside its clean-up.
    async with StorageSyncer(
        isolation="loop", memory_bytes=1, max_files=1, max_requests=2
    ) as syncer:
        for number in count(1):
            place, cancel = tmp_path / str(number), _Cancel(number, moment)
            await to_thread.run_sync(_copy, template, place)
            cancel_at(cancel)
            cancelled = await BY[how](cancel, partial(case.act, syncer, place), twice=twice)
            cancel_at(None)
            left.append(await _seen(_target(place)))
            assert cancelled or left[-1] == case.after
            for name_left in await to_thread.run_sync(temporary, place):
                # What the next run goes on with; a delete has nothing of the kind.
                assert twice or (case.after and ".asyncsync-tmp-" in name_left)

            await _finish(case, syncer, place)
            assert await _seen(_target(place)) == case.after
            assert await to_thread.run_sync(temporary, place) == []
            if not cancel.reached:
                break

    assert len(left) > 1
    turn = left.index(case.after)
    assert left == [case.before] * turn + [case.after] * (len(left) - turn)
