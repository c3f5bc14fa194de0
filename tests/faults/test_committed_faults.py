"""Every call to the store fails, loses its answer or is cancelled, once or from then on."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

import anyio
import pytest

from asyncsync.errors import (
    AsyncSyncError,
    BusyError,
    NotFoundError,
    TransientError,
)
from asyncsync.names import MANIFEST
from asyncsync.storage import ObjectStore
from asyncsync.storage.committed import CommittedTrees, place, writer
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.objects import Capabilities
from asyncsync.storage.retrying import Backoff
from asyncsync.storage.wrappers import equip_objects
from asyncsync.testing import CancelAt, FailAt, FakeClock, FaultyObjects
from asyncsync.testing.values import load

from .committed_scenarios import CHUNK, SCENARIOS, Act, check_whole, sync

When = Literal["before", "after"]


@pytest.fixture(autouse=True, params=["whole", "parts"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go in parts, and so do manifests, as those of very many files do."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", CHUNK)
    if request.param == "parts":
        monkeypatch.setattr(place, "_WHOLE_ENTRIES", 0)
        monkeypatch.setattr(place, "CHUNK_BYTES", 300)


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
        return {
            path: bytes((await self.memory.get(f"tree/{path}")).data) for path in manifest.files
        }

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
        assert (await self.memory.get("tree/foreign")).data == b"theirs"
        assert (await self.memory.get("tree2/a")).data == b"neighbor"
        if expected is not None:
            assert await load(self.client(self.memory), "tree") == expected


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
