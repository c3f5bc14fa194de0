"""Several workers and one head: one commit, never a mixture, and everybody is told the truth."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from asyncsync.errors import (
    AsyncSyncError,
    BusyError,
    ConflictError,
    NotFoundError,
    TransientError,
)
from asyncsync.peer import lasting
from asyncsync.peer.space import Space
from asyncsync.storage import Group
from asyncsync.storage.local import LocalTrees
from asyncsync.storage.local.publish import Attempt
from asyncsync.storage.local.stage import Stage
from asyncsync.storage.peer.credentials import joined_file
from asyncsync.storage.peer.link import Link
from asyncsync.syncing import Receipt
from asyncsync.testing import FakeClock
from asyncsync.units import GIB, MIB
from asyncsync.wire.joining import Join

from .peer_place import CHUNK, PeerPlace, peer_place, use_small_chunks
from .trees import content, make

pytestmark = pytest.mark.one_loop

Patch = pytest.MonkeyPatch
Outcome = Receipt | AsyncSyncError


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: Patch) -> AsyncIterator[PeerPlace]:
    use_small_chunks(monkeypatch)
    async with peer_place(tmp_path, monkeypatch) as place:
        yield place


class Hooked:
    """Awaits something before every request of the process."""

    def __init__(self, monkeypatch: Patch, act: Callable[[str, int], Awaitable[object]]) -> None:
        self.names: list[str] = []
        once = Link._once

        async def asking(link: Link, opened: object, name: str, *rest: object) -> object:
            self.names.append(name)
            await act(name, len(self.names))
            return await once(link, opened, name, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Link, "_once", asking)


async def _push(place: PeerPlace, source: Path, outcomes: list[Outcome], **how: Any) -> None:
    async with place.syncer() as syncer:
        try:
            outcomes.append(await syncer.sync_up(source, f"{place.location}/tree", **how))
        except AsyncSyncError as exc:
            outcomes.append(exc)


async def _sources(place: PeerPlace, other: dict[str, bytes]) -> tuple[Path, Path]:
    second = await to_thread.run_sync(make, place.tmp_path / "second", other)
    return place.source, second


# -- two workers at once


def _paces(monkeypatch: Patch, first: int) -> None:
    """One of the two workers waits before its n-th request until the other has gone on."""

    async def act(name: str, number: int) -> None:
        for _ in range(40 if number % first == 0 else 1):
            await anyio.lowlevel.checkpoint()

    Hooked(monkeypatch, act)


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
@pytest.mark.parametrize("pace", [1, 2, 3, 5])
async def test_two_workers_that_push_the_same_content_both_have_it_acknowledged(
    place: PeerPlace, pace: int, kind: str, monkeypatch: Patch
) -> None:
    _paces(monkeypatch, pace)
    outcomes: list[Outcome] = []
    async with anyio.create_task_group() as group:
        for source in await _sources(place, place.files):
            group.start_soon(_pushing(place, source, outcomes, kind=kind))

    assert [type(outcome) for outcome in outcomes] == [Receipt, Receipt]
    assert len({outcome.identity for outcome in outcomes if isinstance(outcome, Receipt)}) == 1
    assert await place.held() == place.files
    assert await place.left() == []
    assert place.open == 0


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
@pytest.mark.parametrize("pace", [1, 2, 3, 5])
async def test_of_two_workers_that_push_other_content_one_wins_and_the_other_is_told_who(
    place: PeerPlace, pace: int, kind: str, monkeypatch: Patch
) -> None:
    _paces(monkeypatch, pace)
    other = {**place.files, "a": b"two", "big": place.files["big"][::-1], "more": b"x"}
    outcomes: list[Outcome] = []
    async with anyio.create_task_group() as group:
        for source in await _sources(place, other):
            group.start_soon(_pushing(place, source, outcomes, kind=kind))
    winner = next(outcome for outcome in outcomes if isinstance(outcome, Receipt))
    loser = next(outcome for outcome in outcomes if outcome is not winner)

    assert isinstance(loser, ConflictError | BusyError), outcomes
    if isinstance(loser, ConflictError):
        assert loser.winner == winner.identity
    assert await place.held() in (place.files, other)
    async with place.syncer() as syncer:
        assert (await syncer.verify(f"{place.location}/tree")).ok
    assert place.open == 0


def _pushing(
    place: PeerPlace, source: Path, outcomes: list[Outcome], **how: Any
) -> Callable[[], Coroutine[Any, Any, None]]:
    async def push() -> None:
        await _push(place, source, outcomes, **how)

    return push


@pytest.mark.parametrize("pace", [1, 2, 3])
async def test_two_attempts_of_one_source_come_to_an_end(
    place: PeerPlace, pace: int, monkeypatch: Patch
) -> None:
    _paces(monkeypatch, pace)
    outcomes: list[Outcome] = []
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(_pushing(place, place.source, outcomes))

    assert any(isinstance(outcome, Receipt) for outcome in outcomes)
    assert all(isinstance(outcome, Receipt | BusyError) for outcome in outcomes)
    assert await place.held() == place.files
    assert place.open == 0


# -- trees that are updated


async def test_a_rolling_tree_goes_through_a_head_and_only_what_changed_is_sent(
    place: PeerPlace,
) -> None:
    await place.up(kind="rolling")
    newer = {**place.files, "a": b"another one"}
    await place.make(newer)
    sent = place.proxy.passed_bytes["request"]
    receipt = await place.up(kind="rolling")
    unchanged = await place.up(kind="rolling")

    assert receipt.sent_files == 1
    assert unchanged.sent_files == 0
    assert await place.held() == newer
    assert place.proxy.passed_bytes["request"] - sent < 20_000


async def test_a_rolling_tree_that_is_restored_while_it_is_updated_is_one_of_its_versions(
    place: PeerPlace,
) -> None:
    versions = [{**place.files, "a": b"%d" % n, "b": b"%d" % n} for n in range(6)]
    await place.make(versions[0])
    await place.up(kind="rolling")
    restored: list[object] = []

    async def restore() -> None:
        for number in range(6):
            async with place.syncer() as syncer:
                try:
                    target = place.tmp_path / f"back{number}"
                    await syncer.sync_down(f"{place.location}/tree", target)
                except (TransientError, AsyncSyncError) as exc:
                    restored.append(exc)
                else:
                    restored.append(await to_thread.run_sync(content, target))

    async with anyio.create_task_group() as group:
        group.start_soon(restore)
        for version in versions[1:]:
            await place.make(version)
            await place.up(kind="rolling")

    whole = [found for found in restored if not isinstance(found, AsyncSyncError)]
    assert all(found in versions for found in whole)
    assert whole
    assert await place.held() == versions[-1]


# -- a worker that has stopped, and goes on too late


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
async def test_a_worker_that_slept_for_too_long_is_told_and_commits_nothing(
    tmp_path: Path, monkeypatch: Patch, kind: str
) -> None:
    use_small_chunks(monkeypatch)
    clock = FakeClock()
    async with peer_place(tmp_path, monkeypatch, clock=clock) as place:
        other = {**place.files, "a": b"of another"}
        source, second = await _sources(place, other)
        sleeping, awake = anyio.Event(), anyio.Event()

        async def sleep(name: str, number: int) -> None:
            if name == "commit" and not sleeping.is_set():
                sleeping.set()
                await awake.wait()

        Hooked(monkeypatch, sleep)
        outcomes: list[Outcome] = []
        async with anyio.create_task_group() as group:
            group.start_soon(_pushing(place, source, outcomes, kind=kind))
            await sleeping.wait()
            await clock.advance(61)
            await _push(place, second, outcomes, kind=kind)
            awake.set()

    assert isinstance(outcomes[0], Receipt), "the second has taken over"
    assert isinstance(outcomes[1], ConflictError | BusyError), "the first is told"
    assert await place.held() == other
    assert await place.left() == []


@pytest.mark.timeout(60)
async def test_a_token_that_ends_in_the_middle_is_taken_anew_from_its_file(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    use_small_chunks(monkeypatch)
    clock = FakeClock()
    async with peer_place(tmp_path, monkeypatch, clock=clock) as place:
        monkeypatch.delenv("ASYNCSYNC_JOIN")

        def write() -> None:
            path = joined_file(place.proxy.address, os.environ)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            line = Join(address=place.proxy.address, token=place.head.token(life_s=100)).line()
            path.write_text(line.reveal() + "\n")
            path.chmod(0o600)

        async def end(name: str, number: int) -> None:
            if number == at:
                await clock.advance(101)
                await to_thread.run_sync(write)

        for at in count(1):
            await to_thread.run_sync(write)
            before = place.proxy.passed_bytes["request"]
            with monkeypatch.context() as patch:
                hooked = Hooked(patch, end)
                await place.up(f"x{at:03}")
            sent = place.proxy.passed_bytes["request"] - before

            assert await place.held(f"x{at:03}") == place.files, at
            assert sent < place.size_bytes + 2 * CHUNK, at
            assert await place.left() == [], at
            if at >= len(hooked.names):
                break
    assert at > 5


# -- sizes


async def test_a_thousand_files_travel_in_a_few_requests(
    place: PeerPlace, monkeypatch: Patch
) -> None:
    many: dict[str, bytes] = {f"d{n % 10}/f{n}": b"%d" % n for n in range(1000)}
    await place.make(many)
    for name in place.files:
        await to_thread.run_sync(os.unlink, place.source / name)

    async def nothing(name: str, number: int) -> None:
        await anyio.lowlevel.checkpoint()

    hooked = Hooked(monkeypatch, nothing)
    await place.up()
    up = len(hooked.names)
    await place.down()

    found = await place.restored()
    assert {path: data for path, data in found.items() if data is not None} == many
    assert up < 25
    assert len(hooked.names) - up < 30


async def test_a_tree_of_nothing_but_directories_goes_through_a_head(place: PeerPlace) -> None:
    hollow = place.tmp_path / "hollow"
    await to_thread.run_sync(make, hollow, {"a": None, "b/c": None})
    async with place.syncer() as syncer:
        await syncer.sync_up(hollow, f"{place.location}/tree")
        await syncer.sync_down(f"{place.location}/tree", place.tmp_path / "restored")

    assert await place.restored() == {"a": None, "b/c": None}


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_of_a_file_of_20_gib_with_holes_only_what_is_in_it_travels(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    def sparse() -> None:
        (tmp_path / "sparse").mkdir()
        with (tmp_path / "sparse" / "big").open("wb") as file:
            file.truncate(20 * GIB)
            for at in (0, 7 * GIB + 12345, 20 * GIB - 4):
                file.seek(at)
                file.write(b"data")

    async with peer_place(tmp_path, monkeypatch) as place:
        await to_thread.run_sync(sparse)
        async with place.syncer(max_requests=4, max_files=4) as syncer:
            await syncer.sync_up(tmp_path / "sparse", f"{place.location}/tree")
            up = dict(place.proxy.passed_bytes)
            await syncer.sync_down(f"{place.location}/tree", tmp_path / "restored")

        head, restored = place.root / "exp" / "tree" / "big", tmp_path / "restored" / "big"
        for path in (head, restored):
            found = await to_thread.run_sync(path.stat)
            assert found.st_size == 20 * GIB
            assert found.st_blocks * 512 < MIB
        assert up["request"] < 4 * MIB
        assert place.proxy.passed_bytes["response"] < 8 * MIB


async def test_a_tree_that_is_replaced_while_it_is_verified_is_verified_as_it_is_then(
    place: PeerPlace, monkeypatch: Patch, tmp_path: Path
) -> None:
    source = await to_thread.run_sync(make, tmp_path / "one", {"w": b"old"})
    other = await to_thread.run_sync(make, tmp_path / "other", {"w": b"new"})
    outcomes: list[Outcome] = []
    await _push(place, source, outcomes)

    async def replace(name: str, number: int) -> None:
        if name == "open" and len(outcomes) == 1:
            await _push(place, other, outcomes, replace=True)

    Hooked(monkeypatch, replace)
    async with place.syncer() as syncer:
        report = await syncer.verify(f"{place.location}/tree")

    assert report.ok
    assert isinstance(outcomes[1], Receipt)
    assert report.identity == outcomes[1].identity


@pytest.mark.parametrize("name", ["commit", "recall"])
async def test_what_takes_the_head_longer_than_anybody_waits_is_asked_for_again(
    name: str, place: PeerPlace, monkeypatch: Patch, tmp_path: Path
) -> None:
    """The request that stands still is over long before the disk of the head is ready."""
    calls, ready = list[str](), threading.Event()
    what: Any = {"commit": Attempt, "recall": Stage}[name]
    slow = getattr(what, name)

    def waits(*args: Any) -> Any:
        calls.append(name)
        assert ready.wait(10)
        return slow(*args)

    async def third(asked: str, number: int) -> None:
        if hooked.names.count(name) == 3:
            ready.set()

    source = await to_thread.run_sync(make, tmp_path / "one", {"w": os.urandom(3 * CHUNK)})
    outcomes: list[Outcome] = []
    if name == "recall":  # something is there to go on with
        async with _interrupted(place, monkeypatch):
            await _push(place, source, outcomes)
        assert isinstance(outcomes.pop(), TransientError)
    monkeypatch.setattr(what, name, waits)
    monkeypatch.setattr(lasting, "_ANSWER_S", 0.02)
    hooked = Hooked(monkeypatch, third)
    await _push(place, source, outcomes)

    assert isinstance(outcomes[0], Receipt)
    assert calls == [name]
    assert hooked.names.count(name) >= 3
    assert await place.held("tree") == await to_thread.run_sync(content, source)


@asynccontextmanager
async def _interrupted(place: PeerPlace, monkeypatch: Patch) -> AsyncIterator[None]:
    """No commit gets through."""
    once = Link._once

    async def failing(link: Link, opened: object, name: str, *rest: object) -> object:
        if name == "commit":
            raise TransientError("away")
        return await once(link, opened, name, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Link, "_once", failing)
        yield


async def test_a_part_is_left_also_if_the_head_is_started_anew_before_it_says_so(
    place: PeerPlace, monkeypatch: Patch
) -> None:
    once, lost = Link._once, list[str]()

    async def losing(link: Link, opened: object, name: str, *rest: object) -> object:
        answer = await once(link, opened, name, *rest)  # type: ignore[arg-type]
        if name == "commit" and not lost:
            lost.append(name)
            await place.restart()
            raise TransientError("the answer is lost")
        return answer

    monkeypatch.setattr(Link, "_once", losing)
    await place.make()
    receipt = await place.up(group=Group(id="one", rank=0, size=1))

    assert lost == ["commit"]
    assert receipt.durability == "head-fsync"
    assert await place.held() == place.files


async def test_who_asks_again_while_the_first_time_is_under_way_begins_once(
    place: PeerPlace, monkeypatch: Patch
) -> None:
    once, room = Link._once, Space.room
    both, waiting = anyio.Event(), count(1)

    async def twice(link: Link, opened: Any, name: str, *rest: Any) -> Any:
        if name != "begin":
            return await once(link, opened, name, *rest)
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await once(link, opened, name, *rest))

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(ask)
        return answers[-1]

    async def at_once(space: Space) -> Any:
        if next(waiting) == 2:
            both.set()
        await both.wait()
        return await room(space)

    monkeypatch.setattr(Link, "_once", twice)
    monkeypatch.setattr(Space, "room", at_once)
    async with place.syncer(max_requests=2) as syncer:
        await syncer.sync_up(place.source, f"{place.location}/tree")

    assert await place.held() == place.files
    assert await place.left() == []
    assert place.open == 0


async def test_a_commit_is_acknowledged_also_if_it_is_deleted_at_once(
    place: PeerPlace, monkeypatch: Patch
) -> None:
    async def gone(store: LocalTrees, tree: str) -> Any:
        raise NotFoundError(f"nothing at {tree}")

    monkeypatch.setattr(LocalTrees, "read_header", gone)
    await place.make()

    assert (await place.up()).durability == "head-fsync"
    with pytest.raises(ConflictError, match="group one was committed, and that commit has been"):
        await place.up("other", group=Group(id="one", rank=0, size=1))
