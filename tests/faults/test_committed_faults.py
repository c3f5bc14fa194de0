"""Every call to the store fails, loses its answer or is cancelled, once or from then on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal

import anyio
import pytest

from asyncsync.errors import (
    AsyncSyncError,
    BusyError,
    IntegrityError,
    NotFoundError,
    TransientError,
)
from asyncsync.manifest import Header, Manifest
from asyncsync.names import MANIFEST, new_attempt
from asyncsync.storage import ObjectStore
from asyncsync.storage.committed import CommittedTrees, writer
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.objects import Capabilities
from asyncsync.storage.retrying import Backoff
from asyncsync.storage.trees import Block, Intent, NewFile, TreeWriter
from asyncsync.storage.wrappers import equip_objects
from asyncsync.testing import CancelAt, FailAt, FakeClock, FaultyObjects
from asyncsync.testing.contract_trees import load, make_manifest, new_files

OLD = {"a": b"old", "d/kept": b"kept in both", "d/gone": b"gone", "d/big": b"big and old"}
NEW = {"a": b"new", "d/kept": b"kept in both", "e/more": b"more", "d/big": b"big and new"}
CHUNK = 4  # so that the files of eleven bytes are big ones

When = Literal["before", "after"]
Act = Callable[[CommittedTrees], Awaitable[object]]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", CHUNK)


def sync(files: dict[str, bytes], *, in_place: bool, by: str = "me") -> Act:
    """What the engine does: look, send what differs, commit; the same content is confirmed."""

    async def act(store: CommittedTrees) -> None:
        try:
            old = await store.read_manifest("tree")
        except NotFoundError:
            old = None
        if old is not None and old.identity == make_manifest(files).identity:
            await store.confirm("tree")
        else:
            await send(store, files, old, in_place=in_place, by=by)

    return act


async def send(
    store: CommittedTrees, files: dict[str, bytes], old: Manifest | None, *, in_place: bool, by: str
) -> None:
    attempt = new_attempt()
    entries = make_manifest(files).files
    there = old.files if old else {}
    changed = {p: d for p, d in files.items() if p not in there or there[p] != entries[p]}
    manifest = Manifest.of(Header(attempt=attempt, writer=by), entries.values())
    intent = Intent(
        attempt=attempt,
        expect=old.identity if old else None,
        in_place=in_place,
        writer=by,
        files=new_files(changed),
    )
    async with store.begin("tree", intent) as target:
        await put(target, changed)
        try:
            await target.commit(manifest)
        except IntegrityError as exc:  # a dead attempt had overwritten what was to be kept
            await put(target, {path: files[path] for path in exc.paths})
            await target.commit(manifest)


async def put(target: TreeWriter, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        for at in range(0, max(1, len(data)), CHUNK):
            await target.write(NewFile(path, len(data)), at, Block(data[at : at + CHUNK]))


async def delete(store: CommittedTrees) -> None:
    try:
        await store.delete("tree")
    except NotFoundError:
        return


SCENARIOS: dict[str, tuple[dict[str, bytes] | None, Act, dict[str, bytes] | None]] = {
    "new": (None, sync(NEW, in_place=False), NEW),
    "update": (OLD, sync(NEW, in_place=True), NEW),
    "replace": (OLD, sync(NEW, in_place=False), NEW),
    "delete": (OLD, delete, None),
}


class Bench:
    """A store that holds what a scenario starts from, and an unfortunate client of it."""

    def __init__(self) -> None:
        self.memory = MemoryObjects(Capabilities(min_part_bytes=1))
        self.clock = FakeClock()

    @classmethod
    async def holding(cls, files: dict[str, bytes] | None) -> Bench:
        bench = cls()
        if files is not None:
            await sync(files, in_place=True)(bench.client(bench.memory))
        await bench.memory.put("tree/foreign", b"theirs")
        await bench.memory.put("tree2/a", b"neighbor")
        return bench

    def client(self, objects: ObjectStore) -> CommittedTrees:
        return CommittedTrees(objects, clock=self.clock)

    async def content(self) -> dict[str, bytes] | None:
        """The bytes of every file that the manifest lists; None without a manifest."""
        try:
            manifest = await self.client(self.memory).read_manifest("tree")
        except NotFoundError:
            return None
        return {path: await self.memory.get(f"tree/{path}") for path in manifest.files}

    async def finish(self, act: Act) -> None:
        """The next run, by another process; it waits until a dead attempt counts as such."""
        store = self.client(self.memory)
        try:
            await act(store)
        except BusyError as exc:
            await self.clock.advance(exc.retry_after_s or 0)
            await act(store)

    async def check_finished(self, expected: dict[str, bytes] | None) -> None:
        keys = {info.key async for info in self.memory.scan("")} - {"tree2/a", "tree/foreign"}
        names = {f"tree/{path}" for path in (*expected, MANIFEST)} if expected else set[str]()

        assert keys == names
        assert [u async for u in self.memory.scan_uploads("")] == []
        assert await self.memory.get("tree/foreign") == b"theirs"
        assert await self.memory.get("tree2/a") == b"neighbor"
        if expected is not None:
            assert await load(self.client(self.memory), "tree") == expected


def check_whole(
    found: dict[str, bytes] | None,
    old: dict[str, bytes] | None,
    new: dict[str, bytes] | None,
    *,
    in_place: bool,
) -> None:
    """Old, new or not there; in place, every file is old or new until the manifest is new."""
    if found is None:
        assert old is None or not in_place
        return
    if in_place and found.keys() == (old or {}).keys():
        assert all(data in ((old or {})[p], (new or {}).get(p)) for p, data in found.items())
        return
    assert found in (old, new)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
async def test_no_failing_call_leaves_half_a_tree_and_the_next_run_finishes(
    scenario: str, when: When, sticky: bool
) -> None:
    old, act, new = SCENARIOS[scenario]
    number = 0
    happened = True
    while happened:
        number += 1
        bench = await Bench.holding(old)
        fault = FailAt(number, lambda: TransientError("gone"), when=when, sticky=sticky)
        acknowledged = True
        try:
            await act(bench.client(FaultyObjects(bench.memory, fault)))
        except AsyncSyncError:
            acknowledged = False
        happened = fault.happened
        found = await bench.content()

        check_whole(found, old, new, in_place=scenario == "update")
        assert not acknowledged or found == new, number
        await bench.finish(act)
        await bench.check_finished(new)
    assert number > 10


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_no_cancelled_call_leaves_half_a_tree_and_the_next_run_finishes(
    scenario: str, when: When
) -> None:
    old, act, new = SCENARIOS[scenario]
    number = 0
    happened = True
    while happened:
        number += 1
        bench = await Bench.holding(old)
        with anyio.fail_after(10), anyio.CancelScope() as scope:
            fault = CancelAt(number, scope, when=when)
            await act(bench.client(FaultyObjects(bench.memory, fault)))
        happened = fault.happened
        found = await bench.content()
        uploads = [u async for u in bench.memory.scan_uploads("")]

        check_whole(found, old, new, in_place=scenario == "update")
        assert uploads == [], number
        assert happened == scope.cancelled_caught or found == new, number
        await bench.finish(act)
        await bench.check_finished(new)
    assert number > 10


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_lost_answer_that_is_retried_changes_nothing(scenario: str) -> None:
    old, act, new = SCENARIOS[scenario]
    number = 0
    happened = True
    while happened:
        number += 1
        bench = await Bench.holding(old)
        fault = FailAt(number, lambda: TransientError("gone"), when="after")
        faulty = FaultyObjects(bench.memory, fault)
        equipped = equip_objects(faulty, clock=bench.clock, backoff=Backoff(first_s=0.0))
        await act(bench.client(equipped))
        happened = fault.happened

        await bench.check_finished(new)


@pytest.mark.parametrize("scenario", ["new", "update", "replace"])
async def test_another_writer_with_other_content_finishes_too(scenario: str) -> None:
    old, act, _ = SCENARIOS[scenario]
    third = {"a": b"3", "d/kept": b"kept in both", "d/big": b"big and old"}
    number = 0
    happened = True
    while happened:
        number += 1
        bench = await Bench.holding(old)
        fault = FailAt(number, lambda: TransientError("gone"), when="after", sticky=True)
        with suppress(TransientError):
            await act(bench.client(FaultyObjects(bench.memory, fault)))
        happened = fault.happened
        await bench.finish(sync(third, in_place=scenario == "update", by="somebody else"))

        await bench.check_finished(third)
