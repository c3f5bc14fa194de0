"""Work with a head that is cancelled at any request: nothing stays open, and the next run ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

import anyio
import pytest
from anyio import to_thread

from asyncsync.errors import NotFoundError
from asyncsync.storage.heads import Head
from asyncsync.storage.peer.link import Link
from asyncsync.syncing import StorageSyncer

from .peer_place import PeerPlace, peer_place, use_small_chunks

pytestmark = pytest.mark.one_loop

Moment = Literal["before", "while it is answered"]
Tree = dict[str, bytes]
Act = Callable[[StorageSyncer, str, Path], Coroutine[Any, Any, object]]


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PeerPlace]:
    use_small_chunks(monkeypatch)
    async with peer_place(tmp_path, monkeypatch) as place:
        yield place


async def _up(syncer: StorageSyncer, location: str, folder: Path) -> object:
    return await syncer.sync_up(folder / "source", location)


async def _replace(syncer: StorageSyncer, location: str, folder: Path) -> object:
    return await syncer.sync_up(folder / "source", location, replace=True)


async def _roll(syncer: StorageSyncer, location: str, folder: Path) -> object:
    return await syncer.sync_up(folder / "source", location, kind="rolling")


async def _down(syncer: StorageSyncer, location: str, folder: Path) -> object:
    return await syncer.sync_down(location, folder / "restored")


async def _delete(syncer: StorageSyncer, location: str, folder: Path) -> object:
    return await syncer.delete(location)


async def _list(syncer: StorageSyncer, location: str, folder: Path) -> object:
    return [commit async for commit in syncer.commits(location)]


async def _verify(syncer: StorageSyncer, location: str, folder: Path) -> object:
    return await syncer.verify(location)


OLD, NEW, NONE = "old", "new", "none"
CASES: dict[str, tuple[Act | None, Act, str, str]] = {
    "up": (None, _up, NONE, NEW),
    "replace": (_up, _replace, OLD, NEW),
    "roll": (_roll, _roll, OLD, NEW),
    "down": (_up, _down, OLD, OLD),
    "delete": (_up, _delete, OLD, NONE),
    "list": (_up, _list, OLD, OLD),
    "verify": (_up, _verify, OLD, OLD),
}
"""What is prepared and what is cancelled; which version is there before it, and after it."""


class Cancelling:
    """Cancels a task at its n-th request, once or twice."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, number: int, moment: Moment, times: int
    ) -> None:
        self.task: asyncio.Task[object]
        self.at = ""
        self._left, self._times = number, times
        once, check = Link._once, Link._check

        async def asking(link: Link, opened: object, name: str, *rest: object) -> object:
            self._left -= 1
            if self._left == 0:
                self.at = name
                if moment == "before":
                    self._cancel()
            return await once(link, opened, name, *rest)  # type: ignore[arg-type]

        def checking(link: Link, head: Head, *rest: str) -> None:
            if self._left == 0 and moment != "before":
                self._left = -1
                self._cancel()
            check(link, head, *rest)

        monkeypatch.setattr(Link, "_once", asking)
        monkeypatch.setattr(Link, "_check", checking)

    def _cancel(self) -> None:
        self.task.cancel()
        for turn in range(1, self._times):
            _after(4 * turn, self.task.cancel)


def _after(turns: int, act: Callable[[], object]) -> None:
    """Call that some turns of the loop later."""
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: _after(turns - 1, act) if turns else act())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("moment", ["before", "while it is answered"])
@pytest.mark.parametrize("name", CASES)
async def test_cancelled_at_any_request_nothing_stays_open_and_the_next_run_finishes(
    place: PeerPlace, name: str, moment: Moment, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, act, before, after = CASES[name]
    old = {**place.files, "a": b"old", "gone": b"x"}
    versions: dict[str, Tree] = {OLD: old, NEW: place.files, NONE: {}}
    asked = []
    for number in count(1):
        tree = f"{place.location}/x{number:03}"
        await _clear(place)
        if prepare is not None:
            await place.make(old)
            async with place.syncer() as syncer:
                await prepare(syncer, tree, place.tmp_path)
        await _clear(place)
        await place.make(versions[after] or old)
        with monkeypatch.context() as patch:
            cancelling = Cancelling(patch, number, moment, times)
            cancelling.task = asyncio.ensure_future(_work(place, act, tree))
            outcome = (await asyncio.gather(cancelling.task, return_exceptions=True))[0]
        if not cancelling.at:
            break
        asked.append(cancelling.at)
        point = f"{moment} {cancelling.at}, request {number}"
        await _check_open(place, times, point)

        assert isinstance(outcome, asyncio.CancelledError), point
        seen = await _held(place, f"x{number:03}")
        assert seen in (versions[before], versions[after]), point
        await _again(place, act, tree, gone=after == NONE)
        assert await place.held(f"x{number:03}") == versions[after], point
        assert place.open == 0, point
        with anyio.move_on_after(10):  # a head may be at work on what nobody waits for any more
            while times > 1 and await place.left():
                await anyio.lowlevel.checkpoint()
        assert await place.left() == [], point
    assert asked


async def _work(place: PeerPlace, act: Act, tree: str) -> object:
    async with place.syncer() as syncer:
        return await act(syncer, tree, place.tmp_path)


async def _check_open(place: PeerPlace, times: int, point: str) -> None:
    """Whoever is cancelled once says goodbye; twice, the head finds out by itself."""
    if times == 1:
        assert place.open == 0, point
    for those in place.sessions:
        await those.close()


async def _held(place: PeerPlace, tree: str) -> dict[str, bytes | None]:
    """What is there, also while a head deletes it, for which nobody waits any more."""
    with anyio.fail_after(10):
        while True:
            try:
                return await place.held(tree)
            except FileNotFoundError:
                await anyio.lowlevel.checkpoint()


async def _again(place: PeerPlace, act: Act, tree: str, *, gone: bool) -> None:
    try:
        await _work(place, act, tree)
    except NotFoundError:
        assert gone, "only what has been deleted is missing"


async def _clear(place: PeerPlace) -> None:
    for name in ("source", "restored"):
        await to_thread.run_sync(rmtree, place.tmp_path / name, True)
