"""The engine: its bounds hold, its order is kept, and failures come out as what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio
import anyio.lowlevel
import pytest

from asyncsync.digest import CHUNK_BYTES, chunk_count, tree_digest
from asyncsync.errors import AccessDeniedError, DeviceError, TransferError
from asyncsync.events import Event, Moved, ignore
from asyncsync.manifest import Manifest
from asyncsync.storage import Block, Durability, NewFile, Stored
from asyncsync.storage.objects import Data
from asyncsync.transfer import Bounds, Engine, Outcome, Tally
from asyncsync.transfer.engine import batches
from asyncsync.transfer.pieces import Moving, Piece

KIB, MIB = 1024, 1024**2
SMALL_BYTES = 256 * KIB  # above this, a file moves in chunks of its own
BATCH_FILES, BATCH_BYTES = 64, 4 * MIB

_ZEROS = memoryview(bytes(CHUNK_BYTES))  # one buffer for all content: only sizes count here
_DIGEST = "0" * 64


class World:
    """A source and a writer in one, which sees what is in flight between them.

    Attributes:
        most_files, most_requests, most_bytes: the highest that was ever in flight.
        beside: for each path, the most bytes of others that were in flight beside its own.
        begun: paths in the order in which they were first read, a batch by its first.
        batches: the paths of each batch.
        written: how many bytes of each path have been written.
        discarded: paths that the engine gave up.
    """

    def __init__(
        self, *, moving: Sequence[str] = (), failing: Mapping[str, Exception] | None = None
    ) -> None:
        self._moving, self._failing = moving, failing or {}
        self.most_files = self.most_requests = self.most_bytes = 0
        self.beside: dict[str, int] = {}
        self.begun: list[str] = []
        self.batches: list[list[str]] = []
        self.written: dict[str, int] = {}
        self.discarded: list[str] = []
        self._files: set[str] = set()
        self._flying: dict[tuple[str, int], int] = {}
        self._about_to_fail: set[str] = set()
        self._together = anyio.Event()

    # -- the source

    async def read_many(self, files: Sequence[NewFile]) -> list[Piece | Moving]:
        names = [file.path for file in files]
        self.batches.append(names)
        await self._take_off(names[0], 0, sum(file.size_bytes for file in files))
        if set(names) <= set(self._moving):
            self._land(names[0], 0)
            self._files.remove(names[0])
        return [Moving(f.path) if f.path in self._moving else _piece(f.size_bytes) for f in files]

    async def read(self, file: NewFile, number: int, into: memoryview) -> Piece:
        assert len(into) == min(CHUNK_BYTES, file.size_bytes - number * CHUNK_BYTES)
        offset = number * CHUNK_BYTES
        size_bytes = min(CHUNK_BYTES, file.size_bytes - offset)
        await self._take_off(file.path, offset, size_bytes)
        if file.path in self._moving and number == chunk_count(file.size_bytes) - 1:
            raise Moving(file.path)
        return _piece(size_bytes)

    async def confirm(self, file: NewFile, chunks: Sequence[str]) -> None:
        assert list(chunks) == [_DIGEST] * chunk_count(file.size_bytes)
        self._files.remove(file.path)

    # -- the writer

    resumes = False

    async def recall(
        self, files: Sequence[tuple[NewFile, Mapping[int, Stored]]]
    ) -> list[frozenset[int]]:
        raise AssertionError("recalling is not the engine's affair")

    async def write(self, file: NewFile, offset: int, block: Block) -> str:
        await _a_while()
        self.written[file.path] = self.written.get(file.path, 0) + len(block.data)
        self._land(file.path, offset)
        return ""

    async def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> list[str]:
        await _a_while()
        self.written |= {file.path: len(data) for file, data in files}
        first = next(names[0] for names in self.batches if files[0][0].path in names)
        self._land(first, 0)
        self._files.remove(first)
        return [""] * len(files)

    async def finish(self, file: NewFile) -> str:
        assert self.written[file.path] == file.size_bytes
        return ""

    async def discard(self, path: str) -> None:
        self.discarded.append(path)

    async def commit(self, manifest: Manifest) -> Durability:
        raise AssertionError("committing is not the engine's affair")

    # -- what is in flight

    async def _take_off(self, path: str, offset: int, size_bytes: int) -> None:
        if path not in self.begun:
            self.begun.append(path)
        self._files.add(path)
        self._flying[path, offset] = size_bytes
        self._look()
        await _a_while()
        self._look()
        if path in self._failing:
            await self._all_that_fail(path)
            raise self._failing[path]

    async def _all_that_fail(self, path: str) -> None:
        """Wait for one another, to fail at the same moment."""
        self._about_to_fail.add(path)
        if self._about_to_fail == set(self._failing):
            self._together.set()
        else:
            await self._together.wait()

    def _look(self) -> None:
        total = sum(self._flying.values())
        self.most_files = max(self.most_files, len(self._files))
        self.most_requests = max(self.most_requests, len(self._flying))
        self.most_bytes = max(self.most_bytes, total)
        for (path, _), size_bytes in self._flying.items():
            self.beside[path] = max(self.beside.get(path, 0), total - size_bytes)

    def _land(self, path: str, offset: int) -> None:
        del self._flying[path, offset]


def _piece(size_bytes: int) -> Piece:
    return Piece(Block(_ZEROS[:size_bytes]), _DIGEST)


async def _a_while() -> None:
    """Long enough for everything else that may start to have started."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def _files(count: int, size_bytes: int, name: str = "f") -> list[NewFile]:
    return [NewFile(f"{name}{n:04}", size_bytes) for n in range(count)]


async def _send(files: Sequence[NewFile], world: World, **bounds: int) -> Outcome:
    return await Engine(Bounds(**bounds)).send(files, world, world, Tally(ignore))


# ---------------------------------------------------------------- bounds


async def test_no_more_files_are_in_progress_than_allowed() -> None:
    world = World()
    outcome = await _send(_files(40, MIB) + _files(400, KIB, "small"), world, max_files=3)

    assert world.most_files == 3
    assert len(outcome.entries) == 440


async def test_no_more_requests_are_in_progress_than_allowed() -> None:
    world = World()
    await _send(_files(4, 6 * CHUNK_BYTES) + _files(400, KIB, "small"), world, max_requests=5)

    assert world.most_requests == 5


async def test_no_more_bytes_are_in_memory_than_allowed() -> None:
    world = World()
    files = _files(4, 3 * CHUNK_BYTES + MIB) + _files(300, 100 * KIB, "small")
    await _send(files, world, memory_bytes=40 * MIB)

    assert world.most_bytes <= 40 * MIB
    assert world.most_bytes > 32 * MIB


async def test_what_is_larger_than_the_whole_budget_moves_alone() -> None:
    world = World()
    files = [NewFile("big", CHUNK_BYTES), *_files(20, 2 * MIB)]
    outcome = await _send(files, world, memory_bytes=5 * MIB)

    assert world.beside["big"] == 0
    assert world.most_bytes == CHUNK_BYTES
    assert max(world.beside[file.path] for file in files[1:]) == 2 * MIB
    assert len(outcome.entries) == 21


async def test_two_syncs_of_one_engine_share_its_requests() -> None:
    world = World()
    engine = Engine(Bounds(max_files=3, max_requests=2, memory_bytes=6 * MIB))
    async with anyio.create_task_group() as group:
        for name in ("one", "two"):
            files = _files(20, MIB, name)
            group.start_soon(engine.send, files, world, world, Tally(ignore))

    assert world.most_files <= 3
    assert world.most_requests == 2
    assert len(world.written) == 40


async def test_two_syncs_of_one_engine_share_its_files() -> None:
    world = World()
    engine = Engine(Bounds(max_files=3))
    async with anyio.create_task_group() as group:
        for name in ("one", "two"):
            files = _files(20, MIB, name)
            group.start_soon(engine.send, files, world, world, Tally(ignore))

    assert world.most_files == 3


async def test_a_check_keeps_the_same_bounds_and_writes_nothing() -> None:
    world = World()
    engine = Engine(Bounds(max_requests=1))
    outcome = await engine.check([NewFile("big", CHUNK_BYTES + 1)], world, Tally(ignore))

    assert world.written == {}
    assert outcome.entries["big"].digest == tree_digest([_DIGEST, _DIGEST])


# ---------------------------------------------------------------- order and batches


async def test_the_largest_files_go_first() -> None:
    world = World()
    files = [NewFile(f"{mib:02}", mib * MIB) for mib in (3, 1, 20, 7, 12, 2)]
    await _send([NewFile("small", 10), *files], world, max_files=1)

    assert world.begun == ["20", "12", "07", "03", "02", "01", "small"]


def test_batches_of_small_files_are_bounded_in_number_and_in_bytes() -> None:
    found = list(batches([*_files(200, KIB, "tiny"), *_files(50, 200 * KIB, "small")]))

    assert sum(map(len, found)) == 250
    assert max(map(len, found)) == BATCH_FILES
    sizes = [sum(file.size_bytes for file in batch) for batch in found]
    assert BATCH_BYTES - SMALL_BYTES < max(sizes) <= BATCH_BYTES


def test_of_many_small_files_there_are_more_in_a_batch_and_still_many_batches() -> None:
    many = [len(batch) for batch in batches(_files(1_600, KIB, "tiny"))]
    very_many = [len(batch) for batch in batches(_files(10_000, KIB, "tiny"))]

    assert many == [100] * 16
    assert max(very_many) == 2 * BATCH_FILES


def test_only_files_above_256_kib_travel_alone() -> None:
    files = [NewFile("above", SMALL_BYTES + 1), NewFile("at", SMALL_BYTES), NewFile("empty", 0)]
    found = [[file.path for file in batch] for batch in batches(files)]

    assert found == [["above"], ["at", "empty"]]


def test_no_files_make_no_batch() -> None:
    assert list(batches([])) == []


async def test_an_empty_file_and_a_large_one_have_their_entries() -> None:
    world = World()
    files = [NewFile("empty", 0, 0o600, 5), NewFile("large", 2 * CHUNK_BYTES + 1, 0o640, 6)]
    outcome = await _send(files, world)

    empty, large = outcome.entries["empty"], outcome.entries["large"]
    assert world.written == {"empty": 0, "large": 2 * CHUNK_BYTES + 1}
    assert (empty.size_bytes, empty.chunks, empty.mode, empty.mtime_ns) == (0, (), 0o600, 5)
    assert (large.chunks, large.mode, large.mtime_ns) == ((_DIGEST,) * 3, 0o640, 6)
    assert large.digest == tree_digest([_DIGEST] * 3)


async def test_the_commit_files_of_frameworks_begin_when_all_others_have_arrived() -> None:
    world = World()
    marks = [NewFile(".metadata", 50 * MIB), NewFile("d/commit_success.txt", 0)]
    others = [*_files(3, MIB), *_files(3, KIB, "small")]
    arrived: list[set[str]] = []
    read, read_many = world.read, world.read_many

    async def note(file: NewFile, number: int, into: memoryview) -> Piece:
        arrived.extend([set(world.written)] if file in marks else [])
        return await read(file, number, into)

    async def note_many(files: Sequence[NewFile]) -> list[Piece | Moving]:
        arrived.extend([set(world.written)] if files[0] in marks else [])
        return await read_many(files)

    world.read, world.read_many = note, note_many  # type: ignore[method-assign]
    await _send([*marks, *others], world)

    assert len(arrived) == 5
    assert all(found >= {file.path for file in others} for found in arrived)


# ---------------------------------------------------------------- failures


async def test_one_failing_file_is_raised_as_itself_and_cancels_the_rest() -> None:
    world = World(failing={"f0000": DeviceError("f0000: broken")})
    with pytest.raises(DeviceError, match="f0000: broken"):
        await _send(_files(100, MIB), world, max_files=4, max_requests=4)

    assert len(world.begun) <= 4
    assert world.written == {}


@pytest.mark.parametrize("size_bytes", [KIB, MIB, 3 * CHUNK_BYTES])
async def test_a_bug_is_raised_as_itself_whatever_the_size(size_bytes: int) -> None:
    world = World(failing={"f0000": ZeroDivisionError("a bug")})
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await _send(_files(1, size_bytes), world)

    assert world.written == {}


async def test_failures_at_once_are_one_error_that_has_them_all() -> None:
    errors = [AccessDeniedError(f"f{n:04}: not allowed") for n in range(4)]
    world = World(failing={f"f{n:04}": error for n, error in enumerate(errors)})
    with pytest.raises(TransferError, match=r"4 files failed: .*; and 1 more") as caught:
        await _send(_files(4, MIB), world)

    assert sorted(map(str, caught.value.failures)) == [str(error) for error in errors]
    assert "\n" not in str(caught.value)


async def test_what_all_failures_say_is_said_once() -> None:
    world = World(failing={f"f{n:04}": DeviceError("broken") for n in range(4)})
    with pytest.raises(TransferError) as caught:
        await _send(_files(4, MIB), world)

    assert str(caught.value) == "4 files failed: broken"
    assert len(caught.value.failures) == 4


async def test_a_bug_wins_over_failures_at_the_same_time() -> None:
    world = World(failing={"f0000": DeviceError("broken"), "f0001": ZeroDivisionError("a bug")})

    with pytest.raises(ZeroDivisionError):
        await _send(_files(2, MIB), world)


async def test_after_a_failure_nothing_is_held_and_the_engine_works_on() -> None:
    engine = Engine(Bounds(max_files=1, max_requests=1, memory_bytes=MIB))
    broken, whole = World(failing={"f0000": DeviceError("broken")}), World()
    with pytest.raises(DeviceError):
        await engine.send(_files(3, MIB), broken, broken, Tally(ignore))
    with anyio.fail_after(5):
        outcome = await engine.send(_files(3, MIB), whole, whole, Tally(ignore))

    assert len(outcome.entries) == 3


async def test_after_a_cancellation_nothing_is_held_and_the_engine_works_on() -> None:
    engine = Engine(Bounds(max_files=1, max_requests=1, memory_bytes=MIB))
    world, whole = World(), World()
    async with anyio.create_task_group() as group:
        group.start_soon(engine.send, _files(3, MIB), world, world, Tally(ignore))
        await _a_while()
        group.cancel_scope.cancel()
    with anyio.fail_after(5):
        outcome = await engine.send(_files(3, MIB), whole, whole, Tally(ignore))

    assert world.most_requests == 1
    assert len(outcome.entries) == 3


# ---------------------------------------------------------------- what moves under our eyes


async def test_files_that_move_are_discarded_and_reported_and_the_others_arrive() -> None:
    files = [NewFile("large", 2 * CHUNK_BYTES), NewFile("still", MIB), *_files(3, KIB, "small")]
    world = World(moving=["large", "small0001"])
    outcome = await _send(files, world)

    assert sorted(outcome.moving) == sorted(world.discarded) == ["large", "small0001"]
    assert set(outcome.entries) == {"still", "small0000", "small0002"}
    assert set(world.written) - {"large"} == set(outcome.entries)


async def test_a_batch_of_which_everything_moves_writes_nothing() -> None:
    files = _files(3, KIB)
    world = World(moving=[file.path for file in files])
    outcome = await _send(files, world)

    assert (outcome.entries, world.written) == ({}, {})
    assert sorted(world.discarded) == [file.path for file in files]


async def test_what_moved_is_no_longer_expected() -> None:
    world, seen = World(moving=["f0001"]), list[Event]()
    tally = Tally(seen.append)
    await Engine(Bounds()).send(_files(3, KIB), world, world, tally)

    assert (tally.total_files, tally.total_bytes) == (2, 2 * KIB)
    assert (tally.moved_files, tally.moved_bytes) == (2, 2 * KIB)


# ---------------------------------------------------------------- progress


async def test_progress_adds_up_and_never_goes_back() -> None:
    world, seen = World(), list[Event]()
    files = [NewFile("large", 2 * CHUNK_BYTES + 5), *_files(100, KIB)]
    await Engine(Bounds()).send(files, world, world, Tally(seen.append))
    moved = [event for event in seen if isinstance(event, Moved)]

    total = sum(file.size_bytes for file in files)
    assert sum(event.size_bytes for event in moved) == total
    assert [e.moved_bytes for e in moved] == sorted(e.moved_bytes for e in moved)
    assert (moved[-1].moved_files, moved[-1].moved_bytes) == (101, total)
    assert {(event.total_files, event.total_bytes) for event in moved} == {(101, total)}
