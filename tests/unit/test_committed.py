from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TypeVar

import anyio
import msgspec
import pytest

from asyncsync.digest import CHUNK_BYTES
from asyncsync.errors import (
    AsyncSyncError,
    BusyError,
    ClashError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    RefusedError,
    TransientError,
)
from asyncsync.events import Event, Reduced
from asyncsync.location import Location
from asyncsync.manifest import Header, Manifest, NestedEntry, encode
from asyncsync.names import ATTEMPT, MANIFEST, new_attempt
from asyncsync.storage.committed import CommittedTrees, place
from asyncsync.storage.committed.record import Lease, Record, Sightings, read_record
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.objects import (
    Capabilities,
    Condition,
    Data,
    Fetched,
    ObjectInfo,
    Part,
    Upload,
)
from asyncsync.storage.trees import Block, Intent, NewFile, TreeWriter
from asyncsync.syncing.commits import find_commits
from asyncsync.testing import FakeClock, FaultyObjects, settle
from asyncsync.testing.values import (
    BIG,
    NEW,
    OLD,
    Files,
    load,
    make_manifest,
    new_files,
    save,
    write,
)

T = TypeVar("T")

TTL_S = 60.0


class Network:
    """A fault for all calls at once: up or down."""

    down = False

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.down:
            raise TransientError("gone")
        return await call()


class LosesTheManifest(FaultyObjects):
    """The network goes down, while the manifest is on its way, for as long as the test likes."""

    def __init__(self, memory: MemoryObjects, network: Network, *, for_good: bool = True) -> None:
        super().__init__(memory, network)
        self.network, self.for_good = network, for_good

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        if not key.endswith(MANIFEST):
            return await super().put(key, data, condition=condition)
        self.network.down = self.for_good
        raise TransientError("gone")


def trees(memory: MemoryObjects | FaultyObjects, clock: FakeClock | None = None) -> CommittedTrees:
    """Another process each time: nothing is shared but the store."""
    return CommittedTrees(memory, clock=clock or FakeClock())


def intent(*, writer: str = "", expect: str | None = None, in_place: bool = False) -> Intent:
    return Intent(attempt=new_attempt(), expect=expect, in_place=in_place, writer=writer)


async def keys(memory: MemoryObjects) -> list[str]:
    return [info.key async for info in memory.scan("")]


async def write_and_commit(writer: TreeWriter, files: Files) -> None:
    await write(writer, files)
    await writer.commit(make_manifest(files))


async def abandon(memory: MemoryObjects, files: Files, *, writer: str = "") -> None:
    """Write `files` and die without cleaning up: from one call on, nothing gets through."""
    network = Network()
    store = trees(FaultyObjects(memory, network))
    async with store.begin("tree", intent(writer=writer)) as target:
        await write(target, files)
        network.down = True


# -- who may write


async def test_the_attempt_of_another_is_left_alone_until_it_shows_no_life_for_a_minute() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    await abandon(memory, {"a": b"half", "b": b"half"}, writer="dead")
    store = trees(memory, clock)
    with pytest.raises(BusyError, match="try again in 60 s") as first:
        await save(store, "tree", NEW, writer="alive")
    await clock.advance(TTL_S - 1)
    with pytest.raises(BusyError) as second:
        await save(store, "tree", NEW, writer="alive")
    await clock.advance(1)
    await save(store, "tree", NEW, writer="alive")

    assert (first.value.retry_after_s, second.value.retry_after_s) == (TTL_S, 1.0)
    assert await load(store, "tree") == NEW
    assert await keys(memory) == sorted(f"tree/{path}" for path in (*NEW, MANIFEST))


async def test_an_attempt_that_writes_shows_life() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    mine, other = trees(memory, clock), trees(memory, clock)
    files = {str(n): b"x" for n in range(9)}
    manifest = make_manifest(files)
    begin = Intent(attempt=new_attempt(), writer="slow", files=new_files(files))
    async with mine.begin("tree", begin) as writer:
        for number in range(9):
            await write(writer, {str(number): b"x"})
            with pytest.raises(BusyError):
                await save(other, "tree", NEW, writer="waiting")
            await clock.advance(TTL_S / 2)
        await writer.commit(manifest)

    assert await other.read_manifest("tree") == manifest


async def test_what_the_same_writer_left_behind_is_taken_over_at_once() -> None:
    memory = MemoryObjects()
    await abandon(memory, {"a": b"half", "stale": b"half"}, writer="me")
    await save(trees(memory), "tree", NEW, writer="me")

    assert await load(trees(memory), "tree") == NEW
    assert "tree/stale" not in await keys(memory)


async def test_writers_without_a_name_are_not_the_same() -> None:
    memory = MemoryObjects()
    await abandon(memory, {"a": b"half"})

    with pytest.raises(BusyError):
        await save(trees(memory), "tree", NEW)


async def test_who_was_taken_over_commits_nothing_and_overwrites_nothing() -> None:
    memory = MemoryObjects()
    async with trees(memory).begin("tree", intent(writer="me")) as writer:
        await write(writer, {"a": b"first", "b": b"first"})
        await save(trees(memory), "tree", NEW, writer="me")
        await writer.discard("a")
        with pytest.raises(BusyError):
            await write(writer, {"a": b"again"})
        with pytest.raises(BusyError):
            await writer.commit(make_manifest({"b": b"first"}))

    assert await load(trees(memory), "tree") == NEW
    assert ATTEMPT not in str(await keys(memory))


async def test_who_was_taken_over_while_replacing_loses_to_the_successor() -> None:
    memory = MemoryObjects()
    old = await save(trees(memory), "tree", OLD, in_place=True)
    begin = intent(writer="me", expect=old.identity, in_place=True)
    async with trees(memory).begin("tree", begin) as writer:
        await write(writer, {"a": b"late"})
        await save(trees(memory), "tree", NEW, over=old, in_place=True, writer="me")
        with pytest.raises(BusyError):
            await writer.commit(make_manifest({**OLD, "a": b"late"}))

    assert await load(trees(memory), "tree") == NEW
    assert [upload async for upload in memory.scan_uploads("")] == []


@pytest.mark.parametrize("knows_the_old_one", [False, True])
async def test_an_attempt_that_failed_while_it_published_is_open_to_everybody(
    knows_the_old_one: bool,
) -> None:
    memory = MemoryObjects()
    old = await save(trees(memory), "tree", OLD)

    unlucky = trees(LosesTheManifest(memory, Network(), for_good=False))
    with pytest.raises(TransientError):
        await save(unlucky, "tree", NEW, over=old, writer="one")
    with pytest.raises(NotFoundError):
        await trees(memory).read_manifest("tree")
    begin = intent(writer="another", expect=old.identity if knows_the_old_one else None)
    async with trees(memory).begin("tree", begin) as writer:
        await write_and_commit(writer, NEW)

    assert await load(trees(memory), "tree") == NEW
    assert await keys(memory) == sorted(f"tree/{path}" for path in (*NEW, MANIFEST))


async def test_a_record_of_another_release_is_never_overwritten() -> None:
    memory = MemoryObjects()
    for text in (b"{", b'{"asyncsync_attempt":2,"kind":"write","attempt":"x"}'):
        await memory.put(f"tree/{ATTEMPT}", text)
        with pytest.raises(FormatError, match="of another release"):
            await save(trees(memory), "tree", NEW)

        assert (await memory.get(f"tree/{ATTEMPT}")).data == text


# -- lost answers, without anybody who tries again


class LosesAnswers(FaultyObjects):
    """Puts of objects whose key has a certain end are done, and nobody hears of it."""

    def __init__(self, memory: MemoryObjects, end: str) -> None:
        super().__init__(memory, Network())
        self.end = end

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        info = await super().put(key, data, condition=condition)
        if key.endswith(self.end):
            raise TransientError("gone")
        return info


@pytest.mark.parametrize("name", [MANIFEST, ATTEMPT])
async def test_a_write_that_was_done_counts_although_its_answer_was_lost(name: str) -> None:
    memory = MemoryObjects()
    old = await save(trees(LosesAnswers(memory, name)), "tree", OLD, in_place=True)
    await save(trees(LosesAnswers(memory, name)), "tree", NEW, over=old, in_place=True)

    assert await load(trees(memory), "tree") == NEW
    assert await keys(memory) == sorted(f"tree/{path}" for path in (*NEW, MANIFEST))


async def held(memory: MemoryObjects) -> tuple[Lease, place.Place]:
    """A lease whose last rewrite arrived after it had been given up for lost."""
    clock = FakeClock()
    where = place.Place(memory, "tree", conditional=True)
    record = Record(kind="write", attempt=new_attempt())
    lease = await Lease.take(where, record, clock, Sightings(clock))
    late = msgspec.structs.replace(record, beat=7)
    await memory.put(f"tree/{ATTEMPT}", msgspec.json.encode(late))
    return lease, where


async def test_a_record_that_arrived_late_is_still_ours_to_rewrite() -> None:
    lease, where = await held(MemoryObjects())
    await lease.update(paths=["a"])
    await lease.check()
    found = await read_record(where)

    assert found is not None
    assert found.record.paths == {"a"}


async def test_a_record_that_arrived_late_is_still_ours_to_remove() -> None:
    memory = MemoryObjects()
    lease, _ = await held(memory)
    await lease.drop()

    assert await keys(memory) == []


# -- what is whose


async def test_the_record_lists_what_is_about_to_be_written_before_it_is() -> None:
    seen: list[set[str]] = []

    class Watched(MemoryObjects):
        async def put(
            self, key: str, data: Data, *, condition: Condition | None = None
        ) -> ObjectInfo:
            if not key.endswith((ATTEMPT, MANIFEST)):
                record = msgspec.json.decode((await self.get(f"tree/{ATTEMPT}")).data)
                seen.append(set(record["paths"]) & {key.removeprefix("tree/")})
            return await super().put(key, data, condition=condition)

    await save(trees(Watched()), "tree", NEW)

    assert sorted(map(sorted, seen)) == sorted([path] for path in NEW)


async def test_files_that_are_announced_cost_one_record_for_all() -> None:
    class Counting(MemoryObjects):
        records = 0

        async def put(
            self, key: str, data: Data, *, condition: Condition | None = None
        ) -> ObjectInfo:
            self.records += key.endswith(ATTEMPT)
            return await super().put(key, data, condition=condition)

    memory = Counting()
    await save(trees(memory), "tree", {str(n): b"x" for n in range(50)})

    assert memory.records == 3  # taken, announced, and the fence before the manifest


async def test_a_foreign_file_with_the_same_bytes_may_stay() -> None:
    memory = MemoryObjects()
    await memory.put("tree/a", b"one")
    tag = (await memory.head("tree/a")).tag
    async with trees(memory).begin("tree", intent()) as writer:
        await write(writer, OLD)
    after_leaving = await keys(memory)
    await save(trees(memory), "tree", OLD)

    assert after_leaving == ["tree/a"]
    assert (await memory.head("tree/a")).tag == tag
    assert await load(trees(memory), "tree") == OLD


@pytest.mark.parametrize("theirs", [b"x", b"one and more"], ids=["other", "longer"])
async def test_a_foreign_file_that_appears_meanwhile_is_not_overwritten(theirs: bytes) -> None:
    memory = MemoryObjects()
    async with trees(memory).begin("tree", intent()) as writer:
        await memory.put("tree/a", theirs)
        with pytest.raises(ClashError, match="a") as caught:
            await write(writer, OLD)

    assert caught.value.paths == ("a",)
    assert await keys(memory) == ["tree/a"]
    assert (await memory.get("tree/a")).data == theirs


async def test_a_big_foreign_file_that_appears_meanwhile_is_not_overwritten() -> None:
    memory = MemoryObjects()
    theirs = bytes(len(BIG))
    async with trees(memory).begin("tree", intent()) as writer:
        await writer.write(NewFile("big", len(BIG)), 0, Block(BIG[:CHUNK_BYTES]))
        await memory.put("tree/big", theirs)
        with pytest.raises(ClashError, match="big"):
            await write_and_commit(writer, {"big": BIG})

    assert await keys(memory) == ["tree/big"]
    assert (await memory.get("tree/big")).data == theirs
    assert [upload async for upload in memory.scan_uploads("")] == []


async def test_files_of_an_abandoned_attempt_are_not_taken_for_somebodys() -> None:
    memory = MemoryObjects()
    await abandon(memory, {"a": b"half"})
    for call in (trees(memory).read_manifest, trees(memory).list_files):
        with pytest.raises(NotFoundError) as caught:
            await call("tree")

        assert not isinstance(caught.value, NotCommittedError)
    await memory.put("tree/theirs", b"x")

    assert [file.path for file in await trees(memory).list_files("tree")] == ["theirs"]


async def test_deleting_an_abandoned_attempt_removes_its_files_and_no_others() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    await abandon(memory, {"a": b"half"})
    await memory.put("tree/theirs", b"x")
    store = trees(memory, clock)
    with pytest.raises(BusyError):
        await store.delete("tree")
    await clock.advance(TTL_S)
    deleted = await store.delete("tree")

    assert (deleted.files, deleted.kept) == (1, ("theirs",))
    assert await keys(memory) == ["tree/theirs"]


async def test_deleting_an_abandoned_attempt_aborts_its_uploads() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    network = Network()
    async with trees(FaultyObjects(memory, network)).begin("tree", intent()) as writer:
        await writer.write(NewFile("big", len(BIG)), 0, Block(BIG[:CHUNK_BYTES]))
        network.down = True
    left = [upload async for upload in memory.scan_uploads("")]
    store = trees(memory, clock)
    with pytest.raises(BusyError):
        await store.delete("tree")
    await clock.advance(TTL_S)
    await store.delete("tree")

    assert len(left) == 1
    assert [upload async for upload in memory.scan_uploads("")] == []
    assert await keys(memory) == []


async def test_leaving_touches_no_foreign_file_that_took_an_announced_name() -> None:
    memory = MemoryObjects()
    begin = Intent(attempt=new_attempt(), files=new_files(OLD))
    async with trees(memory).begin("tree", begin):
        await memory.put("tree/a", b"theirs")

    assert await keys(memory) == ["tree/a"]


async def test_files_that_became_a_commit_of_their_own_are_not_stale() -> None:
    memory = MemoryObjects()
    files = {"log": b"1", "ckpt/a": b"one"}
    old = await save(trees(memory), "tree", files, in_place=True)
    inside = await save(trees(memory), "tree/ckpt", {"a": b"one"})
    nested = [NestedEntry("ckpt", inside.identity)]
    await save(trees(memory), "tree", {"log": b"1"}, over=old, in_place=True, others=nested)

    assert await load(trees(memory), "tree/ckpt") == {"a": b"one"}
    assert await load(trees(memory), "tree") == {"log": b"1"}


async def test_what_a_dead_update_overwrote_is_not_kept_unseen() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    old = await save(trees(memory), "tree", OLD, in_place=True)
    unlucky = trees(LosesTheManifest(memory, Network()))
    with pytest.raises(TransientError):
        await save(unlucky, "tree", NEW, over=old, in_place=True, writer="me")
    back = make_manifest({**OLD, "a": b"1"})
    begin = intent(writer="me", expect=old.identity, in_place=True)
    async with trees(memory, clock).begin("tree", begin) as writer:
        await write(writer, {"a": b"1"})
        with pytest.raises(IntegrityError, match="interrupted sync") as caught:
            await writer.commit(back)
        await write(writer, {"d/b": OLD["d/b"]})
        await writer.commit(back)

    assert caught.value.paths == ("d/b",)
    assert await load(trees(memory), "tree") == {**OLD, "a": b"1"}
    assert await keys(memory) == sorted(f"tree/{path}" for path in (*OLD, MANIFEST))


async def test_what_a_dead_update_overwrote_stays_known_when_the_next_one_gives_up() -> None:
    memory = MemoryObjects()
    old = await save(trees(memory), "tree", OLD, in_place=True)
    await memory.put("tree/a", b"by the dead one")
    record = {
        "asyncsync_attempt": 1,
        "kind": "write",
        "attempt": "0" * 32,
        "writer": "me",
        "paths": ["a", "d/b", "gone"],
        "overwritten": ["a"],
        "replaces": old.identity,
    }
    await memory.put(f"tree/{ATTEMPT}", msgspec.json.encode(record))
    begin = intent(writer="me", expect=old.identity, in_place=True)
    async with trees(memory).begin("tree", begin):
        pass  # gives up

    with pytest.raises(IntegrityError, match="a"):
        await save(trees(memory), "tree", {"a": b"one"}, over=old, in_place=True, writer="third")


# -- order


class Recording(MemoryObjects):
    """Notes every step that readers can see."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []

    def note(self, verb: str, key: str) -> None:
        if not key.endswith(ATTEMPT):
            self.steps.append(f"{verb} {key.removeprefix('tree/')}")

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        self.note("+", key)
        return await super().put(key, data, condition=condition)

    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        self.note("+", upload.key)
        return await super().complete_upload(upload, parts, condition=condition)

    async def delete(self, key: str, *, tag: str | None = None) -> None:
        self.note("-", key)
        await super().delete(key, tag=tag)


async def replaced(memory: Recording, *, in_place: bool) -> list[str]:
    old = await save(trees(memory), "tree", {".metadata": b"1", "data": b"1", "gone": b"1"})
    memory.steps.clear()
    files = {".metadata": b"2", "data": b"2"}
    manifest = make_manifest(files)
    begin = intent(expect=old.identity, in_place=in_place)
    async with trees(memory).begin("tree", begin) as writer:
        await write(writer, files)
        assert memory.steps == []
        await writer.commit(manifest)
    return memory.steps


async def test_the_manifest_of_a_new_tree_comes_last() -> None:
    memory = Recording()
    await save(trees(memory), "tree", OLD)

    assert sorted(memory.steps[:-1]) == ["+ a", "+ d/b", "+ gone"]
    assert memory.steps[-1] == f"+ {MANIFEST}"


async def test_a_tree_replaced_whole_is_unlisted_before_its_first_file_changes() -> None:
    steps = await replaced(Recording(), in_place=False)

    assert steps == [f"- {MANIFEST}", "+ data", "+ .metadata", "- gone", f"+ {MANIFEST}"]


async def test_a_tree_replaced_in_place_stays_listed_and_loses_files_last() -> None:
    steps = await replaced(Recording(), in_place=True)

    assert steps == ["+ data", "+ .metadata", f"+ {MANIFEST}", "- gone"]


async def test_delete_takes_the_manifests_before_the_data() -> None:
    memory = Recording()
    await save(trees(memory), "tree/z", {"x": b"1"})
    await save(trees(memory), "tree", {"log": b"1", "z.index.json": b"1"}, in_place=True)
    memory.steps.clear()
    await trees(memory).delete("tree")

    assert memory.steps[:3] == [f"- {MANIFEST}", f"- z/{MANIFEST}", "- z.index.json"]
    assert sorted(memory.steps[3:]) == ["- log", "- z/x"]


# -- a delete that was interrupted


@pytest.fixture
async def half_deleted() -> MemoryObjects:
    """`tree` lost its manifest and one file; the record of the delete is there."""
    memory = MemoryObjects()
    await save(trees(memory), "tree/inside", {"x": b"1"})
    old = await save(trees(memory), "tree", OLD, in_place=True)
    record = {
        "asyncsync_attempt": 1,
        "kind": "delete",
        "attempt": "0" * 32,
        "paths": [*OLD, f"inside/{MANIFEST}", "inside/x"],
        "replaces": old.identity,
        "released": True,
    }
    await memory.put(f"tree/{ATTEMPT}", msgspec.json.encode(record))
    for path in (MANIFEST, "a"):
        await memory.delete(f"tree/{path}")
    await memory.put("tree/theirs", b"x")
    return memory


async def test_the_next_delete_finishes_it(half_deleted: MemoryObjects) -> None:
    deleted = await trees(half_deleted).delete("tree")

    assert deleted.kept == ("theirs",)
    assert await keys(half_deleted) == ["tree/theirs"]


async def test_a_probe_finishes_it(half_deleted: MemoryObjects) -> None:
    await trees(half_deleted).probe("tree")

    assert await keys(half_deleted) == ["tree/theirs"]


async def test_the_next_write_finishes_it_first(half_deleted: MemoryObjects) -> None:
    await save(trees(half_deleted), "tree", {"a": b"new"})

    assert await keys(half_deleted) == [f"tree/{MANIFEST}", "tree/a", "tree/theirs"]


async def test_a_delete_that_had_only_been_announced_deletes_nothing() -> None:
    memory = MemoryObjects()
    await save(trees(memory), "tree/inside", {"x": b"1"})
    old = await save(trees(memory), "tree", OLD, in_place=True)
    record = {
        "asyncsync_attempt": 1,
        "kind": "delete",
        "attempt": "0" * 32,
        "paths": [*OLD, f"inside/{MANIFEST}", "inside/x"],
        "released": True,
    }
    await memory.put(f"tree/{ATTEMPT}", msgspec.json.encode(record))
    await save(trees(memory), "tree", NEW, over=old, in_place=True)

    assert await load(trees(memory), "tree") == NEW
    assert await load(trees(memory), "tree/inside") == {"x": b"1"}


# -- what the store cannot do


@pytest.mark.parametrize(
    "file",
    [NewFile("caf\udce9", 1), NewFile("n" * 200, 1), NewFile("a/../b", 1)],
    ids=["not UTF-8", "too long a key", "not a name"],
)
async def test_a_name_that_makes_no_key_is_refused_before_anything_moves(file: NewFile) -> None:
    memory = MemoryObjects(Capabilities(max_key_bytes=100))
    with pytest.raises(RefusedError):
        async with trees(memory).begin(
            "tree", Intent(attempt=new_attempt(), files=(NewFile("good", 1), file))
        ):
            pytest.fail("the block was entered")

    assert await keys(memory) == []


async def test_a_file_of_too_many_parts_is_refused_before_anything_moves() -> None:
    memory = MemoryObjects(Capabilities(max_parts=2))
    for size_bytes, fits in ((2 * CHUNK_BYTES, True), (2 * CHUNK_BYTES + 1, False)):
        begin = Intent(attempt=new_attempt(), files=(NewFile("big", size_bytes),))
        entered = False
        with suppress(RefusedError):
            async with trees(memory).begin("tree", begin):
                entered = True

        assert entered == fits


async def test_a_store_that_only_pretends_to_know_conditions_is_found_out() -> None:
    class Pretends(MemoryObjects):
        async def put(
            self, key: str, data: Data, *, condition: Condition | None = None
        ) -> ObjectInfo:
            return await super().put(key, data)

    memory = Pretends()
    store = trees(memory)
    found = await store.probe("tree")
    await save(store, "tree", OLD)

    assert not found.exclusive
    assert "only one write at a time" in " ".join(found.notes)
    assert await load(store, "tree") == OLD
    assert (await trees(MemoryObjects()).probe("tree")).exclusive


class Misjudges(MemoryObjects):
    """Declares every condition and keeps only some of them."""

    def __init__(self, *, absent: bool, right: bool, stale: bool) -> None:
        super().__init__(Capabilities())
        self.absent, self.right, self.stale = absent, right, stale
        self.puts = 0

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        self.puts += 1
        tag = condition.tag if condition is not None else None
        if condition is not None and condition.absent and not self.absent:
            return await super().put(key, data)
        if tag is not None:
            there = (await self.head(key)).tag
            if there == tag and not self.right:
                raise PreconditionError("refused although it is the right one")
            if there != tag and not self.stale:
                return await super().put(key, data)
        return await super().put(key, data, condition=condition)


MISJUDGED = {
    "keeps none": {"absent": False, "right": True, "stale": False},
    "overwrites what is there": {"absent": False, "right": True, "stale": True},
    "takes any tag": {"absent": True, "right": True, "stale": False},
    "refuses the right tag": {"absent": True, "right": False, "stale": True},
}


@pytest.mark.parametrize("kept", MISJUDGED.values(), ids=MISJUDGED)
async def test_the_first_writer_finds_out_and_says_once_that_it_must_be_the_only_one(
    kept: dict[str, bool],
) -> None:
    memory = Misjudges(**kept)
    heard: list[Event] = []
    store = CommittedTrees(memory, clock=FakeClock(), where="s3://b", observe=heard.append)
    first = await save(store, "tree", OLD)
    second = await save(store, "tree", NEW, over=first)
    await save(store, "other", OLD)

    assert [(type(e), getattr(e, "where", "")) for e in heard] == [(Reduced, "s3://b")]
    assert await store.read_manifest("tree") == second
    assert await load(store, "tree") == NEW
    assert [i.key async for i in memory.scan("") if "attempt" in i.key or "tmp" in i.key] == []


async def test_a_store_that_keeps_conditions_is_tried_once_and_nothing_is_said() -> None:
    memory = Misjudges(absent=True, right=True, stale=True)
    heard: list[Event] = []
    store = CommittedTrees(memory, clock=FakeClock(), observe=heard.append)
    puts: list[int] = []
    for name in ("a", "b"):
        before = memory.puts
        await save(store, name, OLD)
        puts.append(memory.puts - before)

    assert heard == []
    assert puts[0] - puts[1] == 3  # absent, the right tag, a stale one


async def test_a_crashed_attempt_is_taken_over_on_a_store_that_refuses_the_right_tag() -> None:
    memory = Misjudges(**MISJUDGED["refuses the right tag"])
    left = Record(kind="write", attempt="0" * 32, writer="me", paths=frozenset({"half"}))
    await memory.put(f"tree/{ATTEMPT}", msgspec.json.encode(left))
    await memory.put("tree/half", b"written")
    await save(trees(memory), "tree", OLD, writer="me")

    assert await load(trees(memory), "tree") == OLD
    assert "tree/half" not in [info.key async for info in memory.scan("")]


@pytest.mark.parametrize("refused", ["absent", "tag"])
async def test_a_store_that_knows_no_conditions_and_says_so_takes_one_writer(refused: str) -> None:
    class Refuses(MemoryObjects):
        async def put(
            self, key: str, data: Data, *, condition: Condition | None = None
        ) -> ObjectInfo:
            if condition is not None and getattr(condition, refused):
                raise PermanentError("NotImplemented")
            return await super().put(key, data, condition=condition)

    memory = Refuses(Capabilities())
    heard: list[Event] = []
    store = CommittedTrees(memory, clock=FakeClock(), observe=heard.append)
    first = await save(store, "tree", OLD)
    await save(store, "tree", NEW, over=first)
    able = await store.probe("tree")

    assert [type(event) for event in heard] == [Reduced]
    assert not able.exclusive
    assert await load(store, "tree") == NEW
    assert [i.key async for i in memory.scan("") if "attempt" in i.key] == []


# -- an attempt that was taken for dead


async def begun(
    store: CommittedTrees, stack: AsyncExitStack, writer: str, over: Manifest | None = None
) -> tuple[TreeWriter, Manifest]:
    """A writer of its own content, all of it sent."""
    files = {"a": writer.encode(), writer: b"its own"}
    manifest = make_manifest(files)
    intent = Intent(
        attempt=manifest.header.attempt,
        expect=over.identity if over else None,
        writer=writer,
        files=new_files(files),
    )
    target = await stack.enter_async_context(store.begin("tree", intent))
    await write(target, files)
    return target, manifest


@pytest.mark.parametrize("over", [False, True], ids=["new", "replace"])
@pytest.mark.parametrize("second_commits", [False, True])
async def test_a_commit_that_arrives_after_its_attempt_was_taken_over_is_not_acknowledged(
    over: bool, second_commits: bool
) -> None:
    memory, clock = MemoryObjects(), FakeClock()
    held, go = anyio.Event(), anyio.Event()

    class Frozen(MemoryObjects):
        """The same store to a process that stands still before its manifest goes out."""

        async def put(
            self, key: str, data: Data, *, condition: Condition | None = None
        ) -> ObjectInfo:
            if key.endswith(MANIFEST):
                held.set()
                await go.wait()
            return await MemoryObjects.put(memory, key, data, condition=condition)

    frozen = Frozen()
    old = await save(CommittedTrees(memory, clock=clock), "tree", OLD) if over else None
    vars(frozen).update({k: v for k, v in vars(memory).items() if k != "put"})
    first = CommittedTrees(frozen, clock=FakeClock())
    second = CommittedTrees(memory, clock=clock)
    outcomes: list[BaseException] = []

    async def commit_late() -> None:
        try:
            async with AsyncExitStack() as stack:
                target, manifest = await begun(first, stack, "first", old)
                await target.commit(manifest)
        except AsyncSyncError as exc:
            outcomes.append(exc)

    async with anyio.create_task_group() as group:
        group.start_soon(commit_late)
        await held.wait()
        async with AsyncExitStack() as stack:
            with pytest.raises(BusyError):
                await begun(second, stack, "second", old)
        await clock.advance(61)
        async with AsyncExitStack() as stack:
            target, manifest = await begun(second, stack, "second", old)
            go.set()
            await settle(50)
            if second_commits:
                await target.commit(manifest)

    assert [type(exc) for exc in outcomes] == [BusyError]
    if second_commits:
        assert await load(second, "tree") == {"a": b"second", "second": b"its own"}
    else:
        with pytest.raises(NotFoundError):
            await second.read_manifest("tree")


async def test_an_attempt_shows_life_while_its_bytes_are_on_their_way() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    store = CommittedTrees(memory, clock=clock)
    async with AsyncExitStack() as stack:
        await begun(store, stack, "slow")
        for _ in range(20):  # nothing begins and nothing ends for a long time
            await clock.advance(20)
            async with AsyncExitStack() as other:
                with pytest.raises(BusyError):
                    await begun(store, other, "other")


async def test_an_attempt_that_was_taken_over_ends_at_its_next_sign_of_life() -> None:
    memory, clock, frozen = MemoryObjects(), FakeClock(), FakeClock()
    first = CommittedTrees(memory, clock=frozen)
    second = CommittedTrees(memory, clock=clock)

    async def be_frozen_and_go_on() -> None:
        async with AsyncExitStack() as stack:
            await begun(first, stack, "first")
            async with AsyncExitStack() as other:
                with pytest.raises(BusyError):
                    await begun(second, other, "second")
                await clock.advance(61)
                target, manifest = await begun(second, other, "second")
                await target.commit(manifest)
            await frozen.advance(21)
            await anyio.sleep_forever()

    with pytest.raises(BusyError, match="another sync"):
        await be_frozen_and_go_on()

    assert await load(second, "tree") == {"a": b"second", "second": b"its own"}


@pytest.mark.parametrize("whole", [0, 100_000], ids=["parts", "whole"])
@pytest.mark.parametrize(
    ("puts", "uploads"),
    [(False, False), (True, False), (True, True)],
    ids=["no conditions", "for puts", "for all"],
)
async def test_a_commit_that_came_in_between_is_seen(
    puts: bool, uploads: bool, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "_WHOLE_ENTRIES", whole)
    knows = Capabilities(create_only=puts, if_match=puts, multipart_conditions=uploads)
    memory = MemoryObjects(knows)
    there = make_manifest({"b": b"y"})
    async with trees(memory).begin("tree", intent()) as writer:
        await write(writer, {"a": b"x"})
        await memory.put("tree/b", b"y")
        await memory.put(f"tree/{MANIFEST}", b"".join(encode(there)))
        with pytest.raises(ConflictError) as caught:
            await writer.commit(make_manifest({"a": b"x"}))

    assert caught.value.winner == there.identity
    assert [upload async for upload in memory.scan_uploads("")] == []


# -- reading


async def test_a_long_manifest_is_read_in_ranges_of_one_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(place, "_RANGE_BYTES", 64)
    old = Manifest.of(Header(attempt="0" * 32), make_manifest(OLD).entries)
    new = Manifest.of(Header(attempt="1" * 32), make_manifest(NEW).entries)

    class Replaced(MemoryObjects):
        gets = 0

        async def get(
            self,
            key: str,
            start: int = 0,
            end: int | None = None,
            *,
            tag: str | None = None,
            into: memoryview | None = None,
        ) -> Fetched:
            self.gets += 1
            if self.gets == 3:
                await self.put(f"tree/{MANIFEST}", b"".join(encode(new)))
            return await super().get(key, start, end, tag=tag, into=into)

    memory = Replaced()
    await memory.put(f"tree/{MANIFEST}", b"".join(encode(old)))

    assert await trees(memory).read_manifest("tree") == new
    assert memory.gets > 10


async def test_a_manifest_that_is_absurdly_long_is_not_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(place, "MAX_MANIFEST_BYTES", 10)
    memory = MemoryObjects()
    await memory.put(f"tree/{MANIFEST}", b"x" * 11)

    with pytest.raises(IntegrityError, match="11 bytes"):
        await trees(memory).read_manifest("tree")


async def test_a_listing_that_lags_behind_makes_no_commit() -> None:
    class Lagging(MemoryObjects):
        async def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
            yield ObjectInfo(f"exp/gone/{MANIFEST}", 1, "tag")
            async for info in super().scan(prefix):
                yield info

    memory = Lagging()
    await save(trees(memory), "exp/there", OLD)

    found = await find_commits(trees(memory), Location.parse("memory://x/exp"), "exp")

    assert [commit.location for commit in found] == ["memory://x/exp/there"]


async def test_the_durability_is_what_the_store_is_said_to_have() -> None:
    store = CommittedTrees(MemoryObjects(), clock=FakeClock(), durability="cloud")
    await save(store, "tree", OLD)

    assert await store.confirm("tree") == (await store.probe("tree")).durability == "cloud"


async def test_uploads_of_a_dead_attempt_go_with_the_next_one_even_if_that_needs_none() -> None:
    memory = MemoryObjects()
    left = Record(kind="write", attempt="0" * 32, writer="me", paths=frozenset({"big"}))
    await memory.put(f"tree/{ATTEMPT}", msgspec.json.encode(left))
    await memory.create_upload("tree/big")
    theirs = await memory.create_upload("tree/foreign")
    await save(trees(memory), "tree", {"a": b"small"}, writer="me")

    assert [upload async for upload in memory.scan_uploads("")] == [theirs]


async def test_a_delete_shows_life_for_as_long_as_it_takes() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    held, go = anyio.Event(), anyio.Event()

    class Slow(MemoryObjects):
        async def delete(self, key: str, *, tag: str | None = None) -> None:
            if key == "tree/a":
                held.set()
                await go.wait()
            await super().delete(key, tag=tag)

    slow = Slow()
    vars(slow).update(vars(memory))
    await save(trees(memory), "tree", OLD)
    other = CommittedTrees(memory, clock=clock)
    async with anyio.create_task_group() as group:
        group.start_soon(CommittedTrees(slow, clock=clock).delete, "tree")
        await held.wait()
        for _ in range(10):
            await clock.advance(20)
            async with AsyncExitStack() as stack:
                with pytest.raises(BusyError):
                    await begun(other, stack, "other")
        go.set()

    with pytest.raises(NotFoundError):
        await other.read_manifest("tree")


async def test_who_was_overtaken_takes_its_later_uploads_along() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    big, half = NewFile("big", 2 * CHUNK_BYTES), Block(bytes(CHUNK_BYTES))
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(
            CommittedTrees(memory, clock=clock).begin("tree", intent(writer="me"))
        )
        await writer.write(big, 0, half)
        await save(trees(memory), "tree", NEW, writer="me")
        await writer.write(big, CHUNK_BYTES, half)

    assert [upload async for upload in memory.scan_uploads("")] == []


async def test_a_delete_takes_along_uploads_that_nobody_owns() -> None:
    memory = MemoryObjects()
    await save(trees(memory), "tree", OLD)
    await memory.create_upload("tree/a")
    theirs = await memory.create_upload("tree/theirs")

    await trees(memory).delete("tree")

    assert [upload async for upload in memory.scan_uploads("")] == [theirs]


async def test_a_delete_takes_along_what_a_probe_left_that_was_killed() -> None:
    memory = MemoryObjects()
    await save(trees(memory), "tree", OLD)
    await memory.put(f"tree/.asyncsync-tmp-{'0' * 32}/{ATTEMPT}", b"{}")

    await trees(memory).delete("tree")

    assert await keys(memory) == []


@pytest.mark.parametrize("at", range(1, 5))
async def test_one_refusal_out_of_the_blue_does_not_end_the_protection(at: int) -> None:
    class Stumbles(MemoryObjects):
        puts = 0

        async def put(
            self, key: str, data: Data, *, condition: Condition | None = None
        ) -> ObjectInfo:
            self.puts += 1
            if self.puts == at:
                raise PermanentError("NotImplemented")
            return await super().put(key, data, condition=condition)

    memory = Stumbles(Capabilities())
    heard: list[Event] = []
    store = CommittedTrees(memory, clock=FakeClock(), observe=heard.append)
    await save(store, "tree", OLD)

    assert heard == []
    assert (await store.probe("tree")).exclusive
    assert [i.key async for i in memory.scan("") if "attempt" in i.key] == []
