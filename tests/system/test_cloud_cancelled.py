"""A sync with a cloud that is cancelled anywhere: a whole tree or none, and the next one goes on.

What the next one finds to go on with is invisible, and gone when it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from anyio import to_thread

from asyncsync.errors import NotFoundError
from asyncsync.names import ATTEMPT, MANIFEST
from asyncsync.storage.parts import is_hidden

from ..fakes.s3 import FakeS3
from ..fakes.s3_faults import Effect
from ..fakes.s3_wire import Request
from . import gcs_place, s3_place
from .s3_place import Place, S3Place
from .trees import content, temporary

pytestmark = [pytest.mark.one_loop, pytest.mark.slow]


@pytest.fixture
async def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Place]:
    s3_place.use_small_chunks(monkeypatch)
    async with s3_place.s3_place(tmp_path, monkeypatch) as place:
        yield place


@pytest.fixture(params=["s3", "gs"])
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    if request.param == "s3":
        s3_place.use_small_chunks(monkeypatch)
        async with s3_place.s3_place(tmp_path, monkeypatch) as s3:
            yield s3
    else:
        gcs_place.use_small_chunks(monkeypatch)
        async with gcs_place.gcs_place(tmp_path, monkeypatch) as gcs:
            yield gcs


Prepare = Callable[[Place], Coroutine[Any, Any, object]]


async def _nothing(place: Place) -> None:
    await place.make(_newer(place), "newer")


async def _committed(place: Place) -> None:
    await place.up()
    await place.make(_newer(place), "newer")


async def _rolling(place: Place) -> None:
    source = await place.make(place.tree, "newer")
    await place.syncer.sync_up(source, place.location, kind="rolling")
    await place.make(_newer(place), "newer")


async def _up(place: Place) -> object:
    return await place.syncer.sync_up(place.tmp_path / "newer", place.location)


async def _replace(place: Place) -> object:
    return await place.syncer.sync_up(place.tmp_path / "newer", place.location, replace=True)


async def _down(place: Place) -> object:
    return await place.syncer.sync_down(place.location, place.tmp_path / "restored")


async def _delete(place: Place) -> object:
    return await place.syncer.delete(place.location)


Tree = dict[str, bytes]
CASES: dict[str, tuple[Prepare, Prepare, str, str]] = {
    "up, new": (_nothing, _up, "none", "new"),
    "up, replace": (_committed, _replace, "old", "new"),
    "up, rolling": (_rolling, _up, "old", "new"),
    "down": (_committed, _down, "old", "old"),
    "delete": (_committed, _delete, "old", "none"),
}
"""What is prepared and done, and which version is there before and after it."""


def _newer(place: Place) -> Tree:
    return {"a": b"ONE", "d/b": b"two", "big": place.tree["big"][::-1]}


def _version(place: Place, name: str) -> Tree:
    return {"none": {}, "old": dict(place.tree), "new": _newer(place)}[name]


async def _seen(place: Place) -> Tree:
    """What a reader finds who believes what it is told of damage: {} for that, too."""
    if MANIFEST not in place.held() or not (await place.syncer.verify(place.location)).ok:
        return {}
    return _files(place)


def _files(place: Place) -> Tree:
    return {
        path: data
        for path, data in place.held().items()
        if path not in {MANIFEST, ATTEMPT} and not is_hidden(path)
    }


def _uploads(place: Place) -> int:
    """How many are not finished, or of how many parts."""
    if isinstance(place.fake, FakeS3):
        return len(place.fake.uploads)
    return sum(map(is_hidden, place.held()))


def _is_whole(place: Place, before: Tree, after: Tree) -> bool:
    """Whether every file is that of one version; a rolling tree may hold some of either."""
    held = _files(place).items()
    return all(data in (before.get(path), after.get(path)) for path, data in held)


async def _again(place: Place, act: Prepare, after: Tree) -> None:
    try:
        await act(place)
    except NotFoundError:
        assert after == {}, "only what has been deleted is missing"


async def _clear(place: Place) -> None:
    """As before the first run."""
    for key in list(place.objects):
        del place.objects[key]
    for name in ("restored", "newer", "source"):
        await to_thread.run_sync(_remove, place.tmp_path / name)


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if directory.exists():
        directory.rmdir()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CASES)
async def test_cancelled_at_any_request_it_leaves_a_whole_tree_or_none(
    name: str, when: Literal["before", "after"], s3: S3Place
) -> None:
    prepare, act, *versions = CASES[name]
    before, after = (_version(s3, version) for version in versions)
    reached, number = True, 0
    while reached:
        number += 1
        s3.fake.hook = s3.fake.after_hook = None
        await _clear(s3)
        await prepare(s3)
        start = len(s3.fake.requests)
        with anyio.CancelScope() as scope:
            _cancel_at(s3, start + number, when, scope)
            await act(s3)
        reached = len(s3.fake.requests) - start >= number
        s3.fake.hook = s3.fake.after_hook = None

        await _check_after(s3, act, before, after)
    assert number > 5


def _cancel_at(
    place: S3Place, number: int, when: Literal["before", "after"], scope: anyio.CancelScope
) -> None:
    async def hook(request: Request) -> Effect | None:
        if when == "before" and request.number == number:
            scope.cancel()
            await asyncio.sleep(0.005)
        return None

    def after_hook(request: Request) -> None:
        if when == "after" and request.number == number:
            scope.cancel()

    place.fake.hook, place.fake.after_hook = hook, after_hook


async def _check_after(place: Place, act: Prepare, before: Tree, after: Tree) -> None:
    seen, rolling = await _seen(place), b'"rolling"' in place.held().get(MANIFEST, b"")
    restored = await to_thread.run_sync(content, place.tmp_path / "restored")
    left = await to_thread.run_sync(temporary, place.tmp_path)

    assert seen in ({}, before, after)
    assert seen or rolling or MANIFEST not in place.held()
    assert _is_whole(place, before, after)
    assert restored in ({}, place.tree)
    assert all(".asyncsync-tmp-" in name for name in left)
    await _again(place, act, after)
    assert await to_thread.run_sync(temporary, place.tmp_path) == []
    assert await _seen(place) == after
    assert not _uploads(place)
    assert {path for path in place.held() if path.startswith(".")} <= {MANIFEST}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
async def test_cancelled_at_any_await_it_leaves_a_whole_tree_or_none(
    name: str, place: Place
) -> None:
    """At each suspension of each task of a sync, from the first to the last."""
    prepare, act, *versions = CASES[name]
    before, after = (_version(place, version) for version in versions)
    asyncio.get_running_loop().set_task_factory(_counted_task)
    for number in count(1):
        await _clear(place)
        await prepare(place)
        start = len(place.fake.requests)
        async with anyio.create_task_group() as group:
            scope = group.cancel_scope
            with _cancelled_at(number, scope):
                group.start_soon(act, place)
        asked = len(place.fake.requests) - start

        await _check_after(place, act, before, after)
        if not scope.cancel_called:
            break
    assert number > asked  # nothing is asked without a wait


# Counts down the suspensions of the tasks that inherit it.
_countdown: ContextVar[Callable[[], None] | None] = ContextVar("_countdown", default=None)


@contextmanager
def _cancelled_at(number: int, scope: anyio.CancelScope) -> Iterator[None]:
    left = number

    def suspended() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            scope.cancel()

    token = _countdown.set(suspended)
    try:
        yield
    finally:
        _countdown.reset(token)


def _counted_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    suspended = _countdown.get()
    return asyncio.Task(
        coro if suspended is None else _Counted(coro, suspended), loop=loop, **options
    )


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that tells each time that it suspends its task."""

    def __init__(self, coro: Coroutine[Any, Any, Any], suspended: Callable[[], None]) -> None:
        self._coro, self._suspended = coro, suspended

    def send(self, value: Any) -> Any:
        awaited = self._coro.send(value)
        self._suspended()
        return awaited

    def throw(self, *details: Any) -> Any:
        awaited = self._coro.throw(*details)
        self._suspended()
        return awaited

    def close(self) -> None:
        self._coro.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)  # how far it is

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("only a task runs this")
