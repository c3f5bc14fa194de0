"""Several who write the same tree in S3, and one who is cancelled anywhere."""

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

from asyncsync.clock import SystemClock
from asyncsync.errors import BusyError, ConflictError, NotFoundError
from asyncsync.names import ATTEMPT, MANIFEST
from asyncsync.syncing import StorageSyncer

from ..fakes.s3_faults import Effect
from ..fakes.s3_wire import Request
from ..servers import Server
from .s3_place import LOCATION, TREE, S3Place, s3_place, use_small_chunks
from .trees import content, make, temporary

pytestmark = pytest.mark.one_loop

NEW = {"a": b"ONE", "d/b": b"two", "big": TREE["big"][::-1]}
Outcome = str | ConflictError


class Brief(SystemClock):
    """A clock on which nobody waits for long, and on which no attempt becomes old by waiting."""

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(min(seconds, 0.01))


async def _insist(syncer: StorageSyncer, source: Path, location: str) -> Outcome:
    """The identity that was committed, or the conflict; as long as others are busy it waits."""
    while True:
        try:
            return (await syncer.sync_up(source, location)).identity
        except ConflictError as exc:
            return exc
        except BusyError:
            continue


async def _race(syncers: list[StorageSyncer], sources: list[Path], location: str) -> list[Outcome]:
    outcomes: list[Outcome] = []

    async def run(syncer: StorageSyncer, source: Path) -> None:
        outcomes.append(await _insist(syncer, source, location))

    async with anyio.create_task_group() as group:
        for syncer, source in zip(syncers, sources, strict=True):
            group.start_soon(run, syncer, source)
    return outcomes


async def _check_races(times: int, bucket: str, tmp_path: Path) -> None:
    sources = [
        await to_thread.run_sync(make, tmp_path / name, {"w": name.encode(), name: b""})
        for name in ("left", "right")
    ]
    async with StorageSyncer(clock=Brief()) as left, StorageSyncer(clock=Brief()) as right:
        for number in range(times):
            location = f"s3://{bucket}/race/{number}"
            order = [left, right] if number % 2 else [right, left]
            with anyio.fail_after(60):
                outcomes = await _race(order, sources if number % 2 else sources[::-1], location)
            winners = [outcome for outcome in outcomes if isinstance(outcome, str)]
            losers = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
            report = await left.verify(location)

            assert (len(winners), len(losers)) == (1, 1), number
            assert losers[0].winner == winners[0] == report.identity
            assert report.ok
            assert winners[0][:12] in str(losers[0])


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Place]:
    use_small_chunks(monkeypatch)
    async with s3_place(tmp_path, monkeypatch) as place:
        yield place


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_of_two_writers_one_commits_and_the_other_hears_who_200_times(
    moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)

    await _check_races(200, moto.bucket(), tmp_path)


async def test_of_two_writers_one_commits_and_the_other_hears_who(
    place: S3Place, tmp_path: Path
) -> None:
    await _check_races(3, "bucket", tmp_path)


# -- one that is cancelled


Prepare = Callable[[S3Place], Coroutine[Any, Any, object]]


async def _nothing(place: S3Place) -> None:
    await place.make(NEW, "newer")


async def _committed(place: S3Place) -> None:
    await place.up()
    await place.make(NEW, "newer")


async def _rolling(place: S3Place) -> None:
    source = await place.make(TREE, "newer")
    await place.syncer.sync_up(source, LOCATION, kind="rolling")
    await place.make(NEW, "newer")


async def _up(place: S3Place) -> object:
    return await place.syncer.sync_up(place.tmp_path / "newer", LOCATION)


async def _replace(place: S3Place) -> object:
    return await place.syncer.sync_up(place.tmp_path / "newer", LOCATION, replace=True)


async def _down(place: S3Place) -> object:
    return await place.syncer.sync_down(LOCATION, place.tmp_path / "restored")


async def _delete(place: S3Place) -> object:
    return await place.syncer.delete(LOCATION)


Tree = dict[str, bytes]
CASES: dict[str, tuple[Prepare, Prepare, Tree, Tree]] = {
    "up, new": (_nothing, _up, {}, NEW),
    "up, replace": (_committed, _replace, dict(TREE), NEW),
    "up, rolling": (_rolling, _up, dict(TREE), NEW),
    "down": (_committed, _down, dict(TREE), dict(TREE)),
    "delete": (_committed, _delete, dict(TREE), {}),
}


async def _seen(place: S3Place) -> Tree:
    """What a reader finds who believes what it is told of damage: {} for that, too."""
    if MANIFEST not in place.held() or not (await place.syncer.verify(LOCATION)).ok:
        return {}
    return _files(place)


def _files(place: S3Place) -> Tree:
    return {p: data for p, data in place.held().items() if p not in {MANIFEST, ATTEMPT}}


def _is_whole(place: S3Place, before: Tree, after: Tree) -> bool:
    """Whether every file is that of one version; a rolling tree may hold some of either."""
    held = _files(place).items()
    return all(data in (before.get(path), after.get(path)) for path, data in held)


async def _again(place: S3Place, act: Prepare, after: Tree) -> None:
    try:
        await act(place)
    except NotFoundError:
        assert after == {}, "only what has been deleted is missing"


async def _clear(place: S3Place) -> None:
    """As before the first run."""
    place.fake.hook = place.fake.after_hook = None
    place.fake.objects["bucket"].clear()
    for name in ("restored", "newer", "source"):
        await to_thread.run_sync(_remove, place.tmp_path / name)


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if directory.exists():
        directory.rmdir()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CASES)
async def test_cancelled_at_any_request_it_leaves_a_whole_tree_or_none_and_no_upload(
    name: str, when: Literal["before", "after"], place: S3Place
) -> None:
    prepare, act, before, after = CASES[name]
    reached, number = True, 0
    while reached:
        number += 1
        await _clear(place)
        await prepare(place)
        start = len(place.fake.requests)
        with anyio.CancelScope() as scope:
            _cancel_at(place, start + number, when, scope)
            await act(place)
        reached = len(place.fake.requests) - start >= number
        place.fake.hook = place.fake.after_hook = None

        assert not place.fake.uploads, number
        await _check_after(place, act, before, after)
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


async def _check_after(place: S3Place, act: Prepare, before: Tree, after: Tree) -> None:
    seen, rolling = await _seen(place), b'"rolling"' in place.held().get(MANIFEST, b"")
    restored = await to_thread.run_sync(content, place.tmp_path / "restored")
    left = await to_thread.run_sync(temporary, place.tmp_path)

    assert seen in ({}, before, after)
    assert seen or rolling or MANIFEST not in place.held()
    assert _is_whole(place, before, after)
    assert restored in ({}, TREE)
    assert left == []
    await _again(place, act, after)
    assert await _seen(place) == after
    assert not place.fake.uploads
    assert {path for path in place.held() if path.startswith(".")} <= {MANIFEST}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
async def test_cancelled_at_any_await_it_leaves_a_whole_tree_or_none_and_no_upload(
    name: str, place: S3Place
) -> None:
    """At each suspension of each task of a sync, from the first to the last."""
    prepare, act, before, after = CASES[name]
    asyncio.get_running_loop().set_task_factory(_counted_task)
    for number in count(1):
        await _clear(place)
        await prepare(place)
        async with anyio.create_task_group() as group:
            scope = group.cancel_scope
            with _cancelled_at(number, scope):
                group.start_soon(act, place)

        assert not place.fake.uploads, number
        await _check_after(place, act, before, after)
        if not scope.cancel_called:
            break
    assert number > 30


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
