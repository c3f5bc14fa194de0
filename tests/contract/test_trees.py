"""The TreeStore suite over the adapter, and over stores that lie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncsync.digest import CHUNK_BYTES
from asyncsync.errors import AsyncSyncError, NotCommittedError
from asyncsync.manifest import Manifest, encode
from asyncsync.names import MANIFEST, is_ours
from asyncsync.storage.behaviours import Rate
from asyncsync.storage.committed import CommittedTrees, place
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.objects import Capabilities, Data
from asyncsync.storage.retrying import Backoff
from asyncsync.storage.trees import (
    Block,
    Deleted,
    Durability,
    Glance,
    Intent,
    NewFile,
    Sighting,
    Stored,
    TreeCapabilities,
    TreeReader,
    TreeStore,
    TreeWriter,
)
from asyncsync.storage.wrappers import equip_objects, equip_trees
from asyncsync.testing import FakeClock, TreeStoreContract
from asyncsync.testing.values import BIG, make_manifest


class OverMemory(TreeStoreContract):
    """The hooks, for any TreeStore over one MemoryObjects."""

    @pytest.fixture
    def objects(self) -> MemoryObjects:
        self.memory = MemoryObjects()
        return self.memory

    async def plant(self, store: TreeStore, tree: str, path: str, data: bytes | None) -> None:
        if data is None:
            await self.memory.delete(f"{tree}/{path}")
        else:
            await self.memory.put(f"{tree}/{path}", data)

    async def raw(self, store: TreeStore, tree: str) -> dict[str, bytes]:
        assert [upload async for upload in self.memory.scan_uploads("")] == []
        prefix = f"{tree}/" if tree else ""
        keys = [info.key async for info in self.memory.scan(prefix)]
        return {key[len(prefix) :]: bytes((await self.memory.get(key)).data) for key in keys}


class TestCommitted(OverMemory):
    @pytest.fixture
    async def store(self, objects: MemoryObjects) -> TreeStore:
        return CommittedTrees(objects, clock=FakeClock())


class TestCommittedManifestInParts(OverMemory):
    """As those of very many files are written."""

    @pytest.fixture
    async def store(self, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch) -> TreeStore:
        monkeypatch.setattr(place, "_WHOLE_ENTRIES", 0)
        return CommittedTrees(objects, clock=FakeClock())


class TestCommittedEquipped(OverMemory):
    @pytest.fixture
    async def store(self, objects: MemoryObjects) -> TreeStore:
        clock = FakeClock()
        equipped = equip_objects(objects, clock=clock, max_requests=2, rate=Rate(1e12, clock))
        return CommittedTrees(equipped, clock=clock)


class TestCommittedWithoutConditions(OverMemory):
    groups = False

    @pytest.fixture
    def objects(self) -> MemoryObjects:
        none = Capabilities(create_only=False, if_match=False, multipart_conditions=False)
        self.memory = MemoryObjects(none)
        return self.memory

    @pytest.fixture
    async def store(self, objects: MemoryObjects) -> TreeStore:
        return CommittedTrees(objects, clock=FakeClock())


class TestEquippedTrees(OverMemory):
    @pytest.fixture
    async def store(self, objects: MemoryObjects) -> TreeStore:
        clock = FakeClock()
        trees = CommittedTrees(objects, clock=clock)
        # A busy tree stays busy here: nobody moves this clock.
        backoff = Backoff(attempts=1)
        return equip_trees(
            trees, clock=clock, backoff=backoff, max_requests=2, rate=Rate(1e12, clock)
        )


# ---------------------------------------------------------------- the suite, caught lying


class Liar(CommittedTrees):
    """Behaves, until a subclass does one thing wrong."""

    def __init__(self, memory: MemoryObjects) -> None:
        super().__init__(memory, clock=FakeClock())
        self.memory = memory

    @asynccontextmanager
    async def begin(self, tree: str, intent: Intent) -> AsyncIterator[TreeWriter]:
        async with super().begin(tree, intent) as writer:
            yield self.wrap(writer, tree)

    def wrap(self, writer: TreeWriter, tree: str) -> TreeWriter:
        return writer


class LyingWriter:
    def __init__(self, writer: TreeWriter, liar: Liar, tree: str) -> None:
        self.inner, self.liar, self.tree = writer, liar, tree

    @property
    def resumes(self) -> bool:
        return self.inner.resumes

    async def recall(
        self, files: Sequence[tuple[NewFile, Mapping[int, Stored]]]
    ) -> list[frozenset[int]]:
        return await self.inner.recall(files)

    async def write(self, file: NewFile, offset: int, block: Block) -> str:
        return await self.inner.write(file, offset, block)

    async def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> list[str]:
        return await self.inner.write_many(files)

    async def finish(self, file: NewFile) -> str:
        return await self.inner.finish(file)

    async def discard(self, path: str) -> None:
        await self.inner.discard(path)

    async def commit(self, manifest: Manifest) -> Durability:
        return await self.inner.commit(manifest)


class CommitsBeforeTheLastFile(Liar):
    class Writer(LyingWriter):
        async def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> list[str]:
            tokens = await self.inner.write_many(files)
            there = make_manifest({file.path: bytes(data) for file, data in files})
            text = b"".join(encode(there))
            await self.liar.memory.put(f"{self.tree}/{MANIFEST}", text)
            return tokens

    def wrap(self, writer: TreeWriter, tree: str) -> TreeWriter:
        return self.Writer(writer, self, tree)


class KeepsStaleExtras(Liar):
    class Writer(LyingWriter):
        async def commit(self, manifest: Manifest) -> Durability:
            memory = self.liar.memory
            before = [info.key async for info in memory.scan(f"{self.tree}/")]
            data = {key: (await memory.get(key)).data for key in before}
            level = await self.inner.commit(manifest)
            for key in before:
                path = key.removeprefix(f"{self.tree}/")
                if path not in manifest.files and not is_ours(path):
                    await memory.put(key, data[key])
            return level

    def wrap(self, writer: TreeWriter, tree: str) -> TreeWriter:
        return self.Writer(writer, self, tree)


class CommitsWhatNeverArrived(Liar):
    class Writer(LyingWriter):
        async def commit(self, manifest: Manifest) -> Durability:
            for path, entry in manifest.files.items():
                await self.liar.memory.put(f"{self.tree}/{path}", bytes(entry.size_bytes))
            text = b"".join(encode(manifest))
            await self.liar.memory.put(f"{self.tree}/{MANIFEST}", text)
            return "memory"

    def wrap(self, writer: TreeWriter, tree: str) -> TreeWriter:
        return self.Writer(writer, self, tree)


class AppendsPartsAsTheyCome(Liar):
    class Writer(LyingWriter):
        at = 0

        async def write(self, file: NewFile, offset: int, block: Block) -> str:
            if file.size_bytes == len(block.data):
                return await self.inner.write(file, offset, block)
            offset, self.at = self.at, self.at + CHUNK_BYTES
            return await self.inner.write(file, offset, block)

    def wrap(self, writer: TreeWriter, tree: str) -> TreeWriter:
        return self.Writer(writer, self, tree)


class ForgetsToDiscard(Liar):
    class Writer(LyingWriter):
        async def discard(self, path: str) -> None: ...

    def wrap(self, writer: TreeWriter, tree: str) -> TreeWriter:
        return self.Writer(writer, self, tree)


class LeavesTemporaryFiles(Liar):
    @asynccontextmanager
    async def begin(self, tree: str, intent: Intent) -> AsyncIterator[TreeWriter]:
        async with super().begin(tree, intent) as writer:
            try:
                yield writer
            except BaseException:
                await self.memory.put(f"{tree}/a.part", b"half")
                raise


class ReplacesWhateverIsThere(Liar):
    @asynccontextmanager
    async def begin(self, tree: str, intent: Intent) -> AsyncIterator[TreeWriter]:
        try:
            expect: str | None = (await self.read_header(tree)).identity
        except AsyncSyncError:
            expect = None
        intent = Intent(attempt=intent.attempt, expect=expect, in_place=intent.in_place)
        async with super().begin(tree, intent) as writer:
            yield writer


class OverwritesForeignFiles(Liar):
    @asynccontextmanager
    async def begin(self, tree: str, intent: Intent) -> AsyncIterator[TreeWriter]:
        for file in intent.files:
            await self.memory.delete(f"{tree}/{file.path}")
        async with super().begin(tree, intent) as writer:
            yield writer


class MovesBeforeItRefuses(Liar):
    @asynccontextmanager
    async def begin(self, tree: str, intent: Intent) -> AsyncIterator[TreeWriter]:
        intent = Intent(attempt=intent.attempt, expect=intent.expect, in_place=intent.in_place)
        async with super().begin(tree, intent) as writer:
            yield writer


class DeletesByPrefix(Liar):
    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        for info in [i async for i in self.memory.scan(tree)]:
            await self.memory.delete(info.key)
        return Deleted()


class DeletesEverythingInside(Liar):
    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        deleted = await super().delete(tree, expect=expect, uncommitted=uncommitted)
        for path in deleted.kept:
            await self.memory.delete(f"{tree}/{path}")
        return deleted


class NeedsNoPermission(Liar):
    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        return await super().delete(tree, expect=expect, uncommitted=True)


class IgnoresWhatIsExpected(Liar):
    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        return await super().delete(tree, uncommitted=uncommitted)


class RemembersManifests(Liar):
    async def read_manifest(self, tree: str) -> Manifest:
        remembered: dict[str, Manifest] = self.__dict__.setdefault("remembered", {})
        if tree not in remembered:
            remembered[tree] = await super().read_manifest(tree)
        return remembered[tree]

    def wrap(self, writer: TreeWriter, tree: str) -> TreeWriter:
        class Remembering(LyingWriter):
            async def commit(self, manifest: Manifest) -> Durability:
                self.liar.__dict__.setdefault("remembered", {})[self.tree] = manifest
                return await self.inner.commit(manifest)

        return Remembering(writer, self, tree)


class TakesFilesForCommits(Liar):
    async def read_manifest(self, tree: str) -> Manifest:
        try:
            return await super().read_manifest(tree)
        except NotCommittedError:
            return make_manifest({})


class FillsUpWhatIsShort(Liar):
    @asynccontextmanager
    async def open(self, tree: str, manifest: Manifest | None) -> AsyncIterator[TreeReader]:
        memory = self.memory

        class Reader:
            async def read(
                self, file: NewFile, start: int, end: int, into: memoryview | None = None
            ) -> Block:
                data = bytes((await memory.get(f"{tree}/{file.path}", start, end)).data)
                return Block(data.ljust(end - start, b"\0"))

            async def read_many(self, files: Sequence[NewFile]) -> list[bytes]:
                return [bytes((await self.read(f, 0, f.size_bytes)).data) for f in files]

        yield Reader()


class ProbesAndLeaves(Liar):
    async def probe(self, tree: str) -> TreeCapabilities:
        await self.memory.put(f"{tree}/.asyncsync-tmp-{'0' * 32}", b"probe")
        return await super().probe(tree)


class FindsTooMuch(Liar):
    async def find(self, tree: str) -> AsyncIterator[Sighting]:
        for info in [i async for i in self.memory.scan(tree)]:
            if info.key.endswith(MANIFEST):
                yield Sighting(info.key.rpartition("/")[0], info.tag)


class SaysThatNothingChanged(Liar):
    async def find(self, tree: str) -> AsyncIterator[Sighting]:
        async for found in super().find(tree):
            yield Sighting(found.tree, "always")


class GlancesAtNothing(Liar):
    async def glance(self, tree: str) -> Glance:
        return Glance("", frozenset())


class GlancesTooDeep(Liar):
    async def glance(self, tree: str) -> Glance:
        names = [info.key async for info in self.memory.scan(f"{tree}/")]
        return Glance("", frozenset(names))


LIES: dict[type[Liar], tuple[str, dict[str, Any]]] = {
    CommitsBeforeTheLastFile: ("test_nothing_is_visible_before_the_commit", {}),
    KeepsStaleExtras: (
        "test_a_replaced_tree_leaves_no_bytes_of_the_old_one",
        {"in_place": False},
    ),
    CommitsWhatNeverArrived: ("test_a_file_that_never_arrived_is_not_committed", {}),
    AppendsPartsAsTheyCome: ("test_parts_come_in_any_order_and_at_once", {}),
    ForgetsToDiscard: ("test_half_a_big_file_can_be_discarded", {"now": BIG[: CHUNK_BYTES + 1]}),
    LeavesTemporaryFiles: (
        "test_leaving_without_a_commit_leaves_nothing",
        {"in_place": False, "end": "error"},
    ),
    ReplacesWhateverIsThere: (
        "test_a_commit_that_was_not_expected_is_a_conflict_that_names_it",
        {},
    ),
    OverwritesForeignFiles: ("test_a_new_commit_refuses_to_overwrite_a_foreign_file", {}),
    MovesBeforeItRefuses: (
        "test_a_name_that_is_not_utf8_comes_back_or_is_refused_before_anything_moves",
        {},
    ),
    DeletesByPrefix: ("test_delete_takes_the_commits_inside_and_no_sibling", {}),
    DeletesEverythingInside: ("test_delete_keeps_foreign_files_and_says_so", {}),
    NeedsNoPermission: ("test_files_without_a_commit_are_deleted_only_when_named", {}),
    IgnoresWhatIsExpected: ("test_delete_of_another_commit_than_expected_is_a_conflict", {}),
    RemembersManifests: ("test_a_damaged_manifest_is_no_commit_and_is_not_deleted", {}),
    TakesFilesForCommits: ("test_foreign_files_alone_are_not_a_commit", {}),
    FillsUpWhatIsShort: ("test_a_file_that_lost_bytes_is_not_read", {"data": b"on"}),
    ProbesAndLeaves: ("test_a_probe_leaves_nothing", {}),
    FindsTooMuch: ("test_find_names_the_tree_and_those_below", {}),
    SaysThatNothingChanged: ("test_what_is_found_has_a_tag_that_changes_with_it", {}),
    GlancesAtNothing: ("test_a_glance_sees_the_tree_and_the_names_below", {}),
    GlancesTooDeep: ("test_a_glance_sees_the_tree_and_the_names_below", {}),
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_the_suite_catches_a_store_that_lies(lie: type[Liar]) -> None:
    name, arguments = LIES[lie]
    for kind in (Liar, lie):
        suite = OverMemory()
        suite.memory = MemoryObjects()
        test = getattr(suite, name)
        if kind is Liar:
            await test(Liar(suite.memory), **arguments)
        else:
            with pytest.raises(
                (AssertionError, pytest.fail.Exception, AsyncSyncError, ExceptionGroup)
            ):
                await test(lie(suite.memory), **arguments)
