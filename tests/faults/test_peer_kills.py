"""SIGKILL of workers and heads at every request, and of a head at every step on its disk."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Any

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from asyncsync.concurrency import Threads
from asyncsync.digest import digest
from asyncsync.errors import BusyError, DeadlineError, NotCommittedError, NotFoundError
from asyncsync.storage import Group, NewFile
from asyncsync.storage.local import LocalTrees
from asyncsync.syncing import Receipt, StorageSyncer
from asyncsync.testing import FakeClock
from asyncsync.wire.claims import Claims, Operation
from asyncsync.wire.joining import Join
from asyncsync.wire.tokens import HeadKey, KeyRing

from ..servers import free_port
from ..system.peer_place import CHUNK, PeerPlace, peer_place, use_small_chunks
from ..system.s3_place import Hurry
from ..system.trees import make, temporary
from .peer_victims import DISK, Victims

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Patch = pytest.MonkeyPatch
Tree = dict[str, bytes]

NEW: Tree = {"a": b"one", "d/b": b"two", "big": bytes(range(256)) * (5 * CHUNK // 512) + b"end"}
OLD: Tree = {**NEW, "a": b"old", "gone": b"x", "big": NEW["big"][::-1]}
KINDS = {"new": ("sealed", None), "replace": ("sealed", OLD), "roll": ("rolling", OLD)}
"""What is pushed, and over what."""


async def _ended(place: PeerPlace) -> None:
    """Wait until the head has dealt with what it was asked by whoever is gone."""
    with anyio.fail_after(20):
        while any(session.requests for those in place.sessions for session in those.all):
            await checkpoint()


async def _look(root: Path, tree: str) -> Tree | None:
    """What a reader finds on the disk of the head; every byte is compared with its digest."""
    threads = Threads(1)
    store = LocalTrees(str(root), threads)
    try:
        for _ in range(2):
            with suppress(BusyError):  # who comes next finishes what was begun
                manifest = await store.read_manifest(tree)
                break
        else:
            raise AssertionError("it stays busy")
        files = [NewFile(e.path, e.size_bytes) for e in manifest.files.values()]
        async with store.open(tree, manifest) as reader:
            found = dict(zip([f.path for f in files], await reader.read_many(files), strict=True))
    except NotCommittedError:
        raise
    except NotFoundError:
        return None
    finally:
        threads.close()
    for path, data in found.items():
        pieces = [data[at : at + CHUNK] for at in range(0, max(1, len(data)), CHUNK)]
        entry = manifest.files[path]
        committed = [entry.chunk_digest(number) for number in range(len(pieces))]
        assert [digest(piece) for piece in pieces] == committed, path
    return found


async def _make(folder: Path, files: Tree) -> None:
    await to_thread.run_sync(rmtree, folder, True)
    await to_thread.run_sync(make, folder, files)


# -- workers


@pytest.fixture
async def victims() -> AsyncIterator[Victims]:
    async with Victims() as victims:
        yield victims


@pytest.mark.parametrize("when", ["before", "sent", "answered"])
@pytest.mark.parametrize("name", KINDS)
async def test_a_worker_killed_at_any_request_leaves_a_whole_tree_and_the_next_goes_on(
    name: str, when: str, tmp_path: Path, monkeypatch: Patch, victims: Victims
) -> None:
    use_small_chunks(monkeypatch)
    kind, old = KINDS[name]
    killed = []
    async with peer_place(tmp_path, monkeypatch) as place:
        for number in count(1):
            tree = f"x{number:03}"
            location = f"{place.location}/{tree}"
            if old is not None:
                await _make(place.source, old)
                await place.up(tree, kind=kind)
            await _make(place.source, NEW)
            order = {"source": str(place.source), "location": location, "kind": kind}
            said, status = await victims.run(
                role="worker", when=when, number=number, replace=old is not None, **order
            )
            point = f"killed {when} request {number}"
            if status:
                await _ended(place)
            seen = await _look(place.root, f"exp/{tree}")
            before = place.proxy.passed_bytes["request"]
            again = await place.up(tree, kind=kind, replace=old is not None)
            sent = place.proxy.passed_bytes["request"] - before

            assert status in (0, -signal.SIGKILL), point
            assert seen in ((NEW,) if said else (old, NEW)), point
            assert not said or said == f"committed {again.identity}", point
            assert await place.held(tree) == NEW, point
            assert await place.left() == [], point
            assert place.open == 0, point
            if status == 0:
                break
            killed.append(sent)
    assert len(killed) > 5
    # What had arrived of the large file is not sent again by whoever comes next.
    assert min(sent for sent in killed if sent > CHUNK // 2) < len(NEW["big"]) - CHUNK


PARTS: list[Tree] = [
    {"a": b"one", "same": b"in two"},
    {"big": NEW["big"], "d/e": b""},
    {},
    {"same": b"in two", "d/b": b"two"},
]
WHOLE: Tree = {path: data for part in PARTS for path, data in part.items()}
LAST = len(PARTS) - 1


@pytest.mark.parametrize("when", ["before", "sent", "answered"])
@pytest.mark.parametrize("victim", range(len(PARTS)))
async def test_a_rank_of_a_group_may_be_killed_at_any_request(
    victim: int, when: str, tmp_path: Path, monkeypatch: Patch, victims: Victims
) -> None:
    use_small_chunks(monkeypatch)
    for number, part in enumerate(PARTS):
        await _make(tmp_path / f"rank{number}", part)
    async with peer_place(tmp_path, monkeypatch) as place:
        for number in count(1):
            tree = f"x{number:03}"
            location = f"{place.location}/{tree}"

            async def leave(rank: int, location: str = location) -> Receipt | None:
                source, group = tmp_path / f"rank{rank}", Group(**_member(rank))
                with suppress(DeadlineError):
                    async with place.syncer() as syncer:
                        return await syncer.sync_up(source, location, group=group)
                return None

            for before in range(victim):
                assert await leave(before) is None
            order = {"source": str(tmp_path / f"rank{victim}"), "location": location}
            said, status = await victims.run(
                role="worker", when=when, number=number, kind=None, replace=False,
                group=_member(victim), **order,
            )  # fmt: skip
            point = f"killed {when} request {number}"
            if status:
                await _ended(place)
            seen = await _look(place.root, f"exp/{tree}")
            for rank in range(len(PARTS)):
                await leave(rank)
            receipts = [await leave(rank) for rank in range(len(PARTS))]

            assert status in (0, -signal.SIGKILL), point
            assert seen in ((None, WHOLE) if victim == LAST else (None,)), point
            assert not said.startswith("committed") or seen == WHOLE, point
            assert len({receipt and receipt.identity for receipt in receipts}) == 1, point
            assert await place.held(tree) == WHOLE, point
            assert await place.left() == [], point
            assert place.open == 0, point
            if status == 0:
                break
        assert number > 5


def _member(rank: int) -> dict[str, Any]:
    return {"id": "one", "rank": rank, "size": len(PARTS), "deadline_s": 1.0}


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
async def test_a_worker_that_was_stopped_and_goes_on_too_late_is_told_and_commits_nothing(
    kind: str, tmp_path: Path, monkeypatch: Patch, victims: Victims
) -> None:
    use_small_chunks(monkeypatch)
    clock = FakeClock()
    async with peer_place(tmp_path, monkeypatch, clock=clock) as place:
        location = f"{place.location}/tree"
        for number in count(1):
            await _make(place.source, NEW)
            tree = f"x{number:03}"
            order = {"source": str(place.source), "location": f"{place.location}/{tree}"}
            await victims.start(
                role="worker", when="stop", number=number, kind=kind, replace=False, **order
            )
            stopped = await _wait_stopped(victims)
            other = {**NEW, "a": b"of another", "big": NEW["big"][::-1]}
            if stopped:
                await clock.advance(61)
                await _make(tmp_path / "second", other)
                await _push(tmp_path / "second", f"{place.location}/{tree}", kind)
                os.kill(victims.pid, signal.SIGCONT)
            said = [await victims.said()]
            while not said[-1].startswith("ended"):
                said.append(await victims.said())
            if not stopped:
                break

            assert said[-1] == "ended 0", number
            assert said[0] in _TOLD, number
            assert await place.held(tree) == other, number
            assert await place.left() == [], number
    assert number > 4
    assert location.startswith("peer://")


_TOLD = ("failed ConflictError", "failed BusyError")


async def _wait_stopped(victims: Victims) -> bool:
    """Wait for another program to stop or to end: there is no event, so look every millisecond."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        state = await to_thread.run_sync(_state, victims.pid)
        if state in "TZX":
            return state == "T"
        await anyio.sleep(0.001)
    raise AssertionError("it neither stops nor ends")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # before it is read, or while it is
        return "X"


async def _push(source: Path, location: str, kind: str) -> Receipt:
    async with StorageSyncer(isolation="loop", clock=Hurry()) as syncer:
        receipt: Receipt = await syncer.sync_up(source, location, kind=kind)  # type: ignore[call-overload]
        return receipt


# -- heads


class Head:
    """A head in a process of its own; one that has died is started anew by whoever waits for it."""

    def __init__(self, victims: Victims, folder: Path) -> None:
        self._victims, self.root = victims, folder / "head"
        self._key = HeadKey.new()
        self.port = free_port()
        self.died = False

    def join(self, monkeypatch: Patch) -> None:
        ring = KeyRing((self._key,))
        claims = Claims.new("", now=time.time(), operations=frozenset(Operation))
        join = Join(address=f"127.0.0.1:{self.port}", token=ring.mint(claims))
        monkeypatch.setenv("ASYNCSYNC_JOIN", join.line().reveal())

    async def start(self, when: str = "", number: int = 0) -> None:
        await self._victims.start(
            role="head",
            root=str(self.root),
            port=self.port,
            id=self._key.id,
            secret=self._key.secret.reveal(),
            when=when,
            number=number,
        )
        while (line := await self._victims.said()) != "ready":
            assert not line.startswith("ended"), "it has died before it listened"

    async def revive(self) -> None:
        """Start it anew if it has died."""
        if await to_thread.run_sync(_state, self._victims.pid) in "ZX":
            self.died = True
            while not (await self._victims.said()).startswith("ended"):
                continue
            await self.start()

    async def end(self) -> None:
        if self._victims.pid:
            with suppress(ProcessLookupError):  # it has died, and nobody has heard of it yet
                os.kill(self._victims.pid, signal.SIGKILL)
            while not (await self._victims.said()).startswith("ended"):
                continue


class Reviving(Hurry):
    """A clock whose waits are over when there is a head."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self._head = head

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await self._head.revive()


@pytest.fixture
async def head(tmp_path: Path, monkeypatch: Patch, victims: Victims) -> AsyncIterator[Head]:
    use_small_chunks(monkeypatch)
    head = Head(victims, tmp_path)
    await to_thread.run_sync(head.root.mkdir)
    head.join(monkeypatch)
    yield head
    await head.end()


@pytest.mark.parametrize("when", ["before", "after", *DISK])
@pytest.mark.parametrize("name", KINDS)
async def test_a_head_killed_at_any_step_of_a_push_has_all_that_it_acknowledged_and_goes_on(
    name: str, when: str, tmp_path: Path, head: Head
) -> None:
    kind, old = KINDS[name]
    source = tmp_path / "source"
    identities = set()
    points = 0
    for number in count(1):
        tree = f"x{number:03}"
        location = f"peer://127.0.0.1:{head.port}/exp/{tree}"
        head.died = False
        if old is not None:
            await _make(source, old)
            await head.start()
            await _work(head, source, location, kind)
            await head.end()
        await _make(source, NEW)
        await head.start(when, number)
        receipt = await _work(head, source, location, kind)
        point = f"killed at {when} {number}"
        await head.revive()
        await head.end()
        identities.add(receipt.identity)

        assert await _look(head.root, f"exp/{tree}") == NEW, point
        assert await to_thread.run_sync(temporary, tmp_path) == [], point
        if not head.died:
            break
        points += 1
    assert len(identities) == 1
    assert points > 0 or when in ("rename", "rmdir", "unlink", "rename_new", "exchange")


async def _work(head: Head, source: Path, location: str, kind: str) -> Receipt:
    """Push; when it fails for good, as it may when it was in doubt, once more."""
    async with StorageSyncer(
        isolation="loop", clock=Reviving(head), max_requests=1, max_files=1
    ) as syncer:
        receipt: Receipt = await syncer.sync_up(source, location, kind=kind, replace=True)  # type: ignore[call-overload]
        return receipt


async def test_a_head_killed_at_any_request_of_a_pull_costs_that_request(
    tmp_path: Path, head: Head
) -> None:
    source, location = tmp_path / "source", f"peer://127.0.0.1:{head.port}/exp/tree"
    await _make(source, NEW)
    await head.start()
    await _work(head, source, location, "sealed")
    await head.end()
    for number in count(1):
        head.died = False
        await head.start("before", number)
        target = tmp_path / f"back{number}"
        async with StorageSyncer(
            isolation="loop", clock=Reviving(head), max_requests=1, max_files=1
        ) as syncer:
            await syncer.sync_down(location, target)
        await head.revive()
        await head.end()

        found = {path: (target / path).read_bytes() for path in NEW}
        assert found == NEW
        if not head.died:
            break
    assert number > 4
