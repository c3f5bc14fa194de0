"""A sync that is interrupted goes on where it was: only what was in flight moves again."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio import to_thread

from asyncsync.errors import DeadlineError, NotFoundError, TransferError, TransientError
from asyncsync.events import Event, Moved, Observer, ignore
from asyncsync.storage.parts import is_hidden
from asyncsync.syncing import Receipt, StorageSyncer
from asyncsync.units import MIB

from ..fakes.gcs import FakeGcs
from ..fakes.s3 import FakeS3
from ..fakes.s3_faults import Effect, reset
from ..fakes.s3_wire import Request
from . import gcs_place, s3_place
from .s3_place import Hurry, Place
from .trees import content, make, temporary

pytestmark = pytest.mark.one_loop

AT_ONCE = 2
STORES = ["s3", "gs", "file"]

Patch = pytest.MonkeyPatch
Act = Callable[[StorageSyncer], Awaitable[Receipt]]


class World:
    """A place to sync with, and syncers that know nothing of each other."""

    def __init__(self, tmp_path: Path, location: str, chunk: int, place: Place | None) -> None:
        self.tmp_path, self.location, self.chunk, self.place = tmp_path, location, chunk, place
        self.files: dict[str, bytes] = {
            "a": b"one",
            "d/b": b"two",
            "empty": b"",
            "big": random.Random(1).randbytes(5 * chunk - 9),
            "large": random.Random(2).randbytes(4 * chunk + 1),
        }

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.files.values()))

    async def run(
        self, act: Act, observe: Observer = ignore, *, sync_timeout: float | None = None
    ) -> Receipt:
        async with StorageSyncer(
            isolation="loop",
            clock=Hurry(),
            max_requests=AT_ONCE,
            max_files=AT_ONCE,
            observe=observe,
            sync_timeout=sync_timeout,
        ) as syncer:
            return await act(syncer)

    async def up(self, syncer: StorageSyncer) -> Receipt:
        return await syncer.sync_up(self.tmp_path / "source", self.location)

    async def roll(self, syncer: StorageSyncer) -> Receipt:
        return await syncer.sync_up(self.tmp_path / "source", self.location, kind="rolling")

    async def down(self, syncer: StorageSyncer) -> Receipt:
        return await syncer.sync_down(self.location, self.tmp_path / "restored")

    def left(self) -> list[str]:
        """What is there of attempts that are not over."""
        if self.place is None:
            return temporary(self.tmp_path)
        uploads = list(self.place.fake.uploads) if isinstance(self.place.fake, FakeS3) else []
        return [*uploads, *filter(is_hidden, self.place.held())]

    async def make(self, files: Mapping[str, bytes | None] | None = None) -> None:
        await to_thread.run_sync(make, self.tmp_path / "source", files or self.files)

    async def prepared(self, direction: str) -> Act:
        """What is to be interrupted, with everything in place for it."""
        await self.make()
        if direction == "up":
            return self.up
        if direction == "update":
            await self.make({"a": b"two", "d/b": b"three", "big": b"x", "large": b"y"})
            await self.run(self.roll)
            await self.make()
            return self.roll
        await self.run(self.up)
        return self.down

    async def interrupted(self, act: Act, moves: int) -> int:
        """Cancel it after that many pieces have moved; the bytes that it was told have moved."""
        moved: list[int] = []
        with anyio.CancelScope() as scope:

            def observe(event: Event) -> None:
                if isinstance(event, Moved):
                    moved.append(event.moved_bytes)
                    if len(moved) == moves:
                        scope.cancel()

            await self.run(act, observe)
        return moved[-1] if scope.cancelled_caught else -1

    async def clear(self) -> None:
        """As it was in the beginning."""
        async with StorageSyncer(isolation="loop") as syncer:
            await syncer.delete(self.location)
        for name in ("restored", "source"):
            await to_thread.run_sync(_remove, self.tmp_path / name)

    async def check(self, direction: str) -> None:
        """It is whole, and nothing of an attempt is left."""
        if self.place is not None and direction != "down":
            await self.place.check(self.files)
        await self.run(self.down)
        restored = await to_thread.run_sync(content, self.tmp_path / "restored")
        assert restored == self.files
        assert await to_thread.run_sync(temporary, self.tmp_path) == []


@pytest.fixture(params=STORES)
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Patch
) -> AsyncIterator[World]:
    async with _world(request.param, tmp_path, monkeypatch) as one:
        yield one


@asynccontextmanager
async def _world(store: str, tmp_path: Path, monkeypatch: Patch) -> AsyncIterator[World]:
    if store == "s3":
        s3_place.use_small_chunks(monkeypatch)
        async with s3_place.s3_place(tmp_path, monkeypatch) as s3:
            yield World(tmp_path, s3.location, s3_place.CHUNK, s3)
    elif store == "gs":
        gcs_place.use_small_chunks(monkeypatch)
        async with gcs_place.gcs_place(tmp_path, monkeypatch) as gcs:
            yield World(tmp_path, gcs.location, gcs_place.CHUNK, gcs)
    else:
        s3_place.use_small_chunks(monkeypatch)
        yield World(tmp_path, str(tmp_path / "target" / "ckpt_7"), s3_place.CHUNK, None)


@pytest.mark.parametrize(
    "direction", ["up", pytest.param("update", marks=pytest.mark.slow), "down"]
)
async def test_after_every_interruption_only_what_was_in_flight_moves_again(
    direction: str, world: World
) -> None:
    moves = 0
    while True:
        moves += 1
        act = await world.prepared(direction)
        moved = await world.interrupted(act, moves)
        if moved < 0:
            break
        receipt = await world.run(act)

        assert receipt.resumed_bytes >= moved
        assert receipt.sent_bytes + receipt.resumed_bytes == world.size_bytes
        await world.check(direction)
        await world.clear()
    assert moves > 6


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_after_several_interruptions_nothing_moves_a_second_time(
    direction: str, world: World
) -> None:
    act, moves, moved = await world.prepared(direction), 0, 0
    while moved >= 0:
        before, moves = moved, moves + 3  # those of the attempts before are told of, too
        moved = await world.interrupted(act, moves)
        assert moved < 0 or moved >= before
    assert moves > 6
    await world.check(direction)


async def test_the_parts_of_a_file_travel_once(tmp_path: Path, monkeypatch: Patch) -> None:
    async with _world("s3", tmp_path, monkeypatch) as world:
        assert isinstance(world.place, s3_place.S3Place)
        act = await world.prepared("up")
        await world.interrupted(act, 4)
        await world.run(act)

        parts = [r for r in world.place.fake.requests if r.operation == "UploadPart"]
        again = len(parts) - len({(r.key, r.query["partNumber"]) for r in parts})
        assert again <= AT_ONCE


@pytest.mark.slow
async def test_when_the_network_goes_at_any_request_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """As after a crash: nothing can be tidied up in the store either."""
    async with _world("s3", tmp_path, monkeypatch) as world:
        assert isinstance(world.place, s3_place.S3Place)
        fake, number, failed = world.place.fake, 0, True
        while failed:
            number += 1
            act, start, moved = await world.prepared("up"), len(fake.requests), [0]

            async def hook(request: Request, last: int = start + number) -> Effect | None:
                return reset() if request.number > last else None

            fake.hook = hook
            try:
                await world.run(act, _last_moved(moved))
                failed = False
            except (TransientError, TransferError):
                pass
            fake.hook = None
            if failed:
                receipt = await world.run(act)
                assert receipt.resumed_bytes + receipt.skipped_bytes >= moved[0]
            await world.check("up")
            await world.clear()
        assert number > 15


def _last_moved(moved: list[int]) -> Observer:
    def observe(event: Event) -> None:
        if isinstance(event, Moved):
            moved[0] = event.moved_bytes

    return observe


async def test_a_file_that_has_changed_since_is_sent_anew(world: World) -> None:
    act = await world.prepared("up")
    moved = await world.interrupted(act, 6)
    world.files["big"] = world.files["big"][::-1]
    await world.make()
    receipt = await world.run(act)

    assert receipt.resumed_bytes >= moved - len(world.files["big"])
    assert receipt.sent_bytes >= len(world.files["big"])
    await world.check("up")


async def test_a_file_of_which_only_the_date_has_changed_is_not_sent_again(world: World) -> None:
    act = await world.prepared("up")
    moved = await world.interrupted(act, 6)
    for name in world.files:
        os.utime(world.tmp_path / "source" / name, ns=(1, 1))
    receipt = await world.run(act)

    assert receipt.resumed_bytes >= moved
    await world.check("up")


async def test_a_file_that_is_gone_leaves_nothing(world: World) -> None:
    act = await world.prepared("up")
    await world.interrupted(act, 6)
    del world.files["big"]
    (world.tmp_path / "source" / "big").unlink()
    await world.run(act)

    await world.check("up")


async def test_above_another_commit_all_begins_anew(world: World) -> None:
    act = await world.prepared("update")
    await world.interrupted(act, 4)
    others = await to_thread.run_sync(make, world.tmp_path / "other", {"a": b"theirs"})
    await world.run(lambda s: s.sync_up(others, world.location, kind="rolling", replace=True))
    receipt = await world.run(
        lambda s: s.sync_up(world.tmp_path / "source", world.location, replace=True)
    )

    assert receipt.resumed_bytes == 0
    await world.check("up")


async def test_somebody_elses_commit_takes_away_what_was_left(world: World) -> None:
    act = await world.prepared("up")
    await world.interrupted(act, 4)
    world.files = {"a": b"theirs"}
    others = await to_thread.run_sync(make, world.tmp_path / "other", world.files)
    await world.run(lambda s: s.sync_up(others, world.location))

    await world.check("up")


async def test_a_delete_takes_away_what_was_left(world: World) -> None:
    act = await world.prepared("up")
    await world.interrupted(act, 4)
    assert world.left()
    async with StorageSyncer(isolation="loop") as syncer:
        with suppress(NotFoundError):
            await syncer.delete(world.location)

    assert not world.left()


async def test_uploads_that_have_expired_are_begun_anew(tmp_path: Path, monkeypatch: Patch) -> None:
    async with _world("s3", tmp_path, monkeypatch) as world:
        assert isinstance(world.place, s3_place.S3Place)
        act = await world.prepared("up")
        await world.interrupted(act, 5)
        world.place.fake.uploads.clear()
        receipt = await world.run(act)

        assert receipt.resumed_bytes == 0
        await world.check("up")


async def test_parts_that_somebody_deleted_are_sent_again(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    async with _world("gs", tmp_path, monkeypatch) as world:
        assert world.place is not None
        act = await world.prepared("up")
        await world.interrupted(act, 6)
        parts = [key for key in world.place.objects if is_hidden(key) and key[-5:] != "00000"]
        del world.place.objects[parts[0]]
        receipt = await world.run(act)

        assert receipt.resumed_bytes > 0
        await world.check("up")


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_what_was_damaged_on_the_disk_meanwhile_moves_again(
    direction: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    async with _world("file", tmp_path, monkeypatch) as world:
        act = await world.prepared(direction)
        await world.interrupted(act, 6)
        left = await to_thread.run_sync(_damaged, tmp_path)
        receipt = await world.run(act)

        assert left
        assert 0 < receipt.resumed_bytes < world.size_bytes
        await world.check(direction)


def _damaged(directory: Path) -> list[Path]:
    """Change a byte in every file of every stage but one."""
    left = [p for p in directory.glob("**/.*.asyncsync-tmp-*/tree/**/*") if p.is_file()]
    for path in left[1:]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 1] = b"#"
        path.chmod(0o600)
        path.write_bytes(data)
    return left


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_hole_takes_the_place_of_what_an_old_stage_holds(
    direction: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The first chunk is the same in both versions, the others were data and are holes now."""
    async with _world("file", tmp_path, monkeypatch) as world:
        act = await world.prepared(direction)
        await world.interrupted(act, 9)
        big = world.files["big"][: world.chunk]
        world.files["big"] = big + bytes(4 * world.chunk - 9)
        path = tmp_path / "source" / "big"
        path.unlink()
        path.write_bytes(big)
        os.truncate(path, 5 * world.chunk - 9)
        if direction == "up":
            [journal] = _journals()
            journal.write_bytes(_without(journal.read_bytes(), b"big", after=1))
        else:
            await world.run(lambda s: s.sync_up(path.parent, world.location, replace=True))
        await world.run(act)

        await world.check(direction)


def _without(data: bytes, path: bytes, *, after: int) -> bytes:
    """The journal as a kill leaves it that comes before the later chunks of a file are noted."""
    kept = b""
    while data:
        end = 8 + int.from_bytes(data[:4], "big")
        body = msgspec.msgpack.decode(data[8:end])
        rows = [row for row in body if isinstance(row, list)]
        if all(row[0] != path or row[2] < after for row in rows):
            kept += data[:end]
        data = data[end:]
    return kept


async def test_a_directory_that_has_become_a_file_is_no_obstacle(world: World) -> None:
    act = await world.prepared("up")
    await world.interrupted(act, 7)
    (world.tmp_path / "source" / "d" / "b").unlink()
    (world.tmp_path / "source" / "d").rmdir()
    del world.files["d/b"]
    world.files["d"] = b"a file"
    await world.make()
    await world.run(act)

    await world.check("up")


async def test_a_file_that_has_shrunk_is_sent_anew(world: World) -> None:
    act = await world.prepared("up")
    await world.interrupted(act, 5)
    for name in ("big", "large"):
        world.files[name] = world.files[name][:10]
    await world.make()
    await world.run(act)

    await world.check("up")


async def test_a_replacement_that_had_begun_to_be_visible_goes_on(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """The commit that it replaces is gone by then, and some files have their new version."""
    async with _world("s3", tmp_path, monkeypatch) as world:
        assert isinstance(world.place, s3_place.S3Place)
        fake, files = world.place.fake, dict(world.files)

        async def replaces(syncer: StorageSyncer) -> Receipt:
            return await syncer.sync_up(tmp_path / "source", world.location, replace=True)

        await world.make({name: data[::-1] + b"x" for name, data in files.items()})
        await world.run(replaces)
        await world.make()

        async def hook(request: Request) -> Effect | None:
            seen = [r for r in fake.requests if r.operation == "CompleteMultipartUpload"]
            return reset() if len(seen) > 4 else None

        fake.hook = hook
        with pytest.raises((TransientError, TransferError)):
            await world.run(replaces)
        fake.hook = None
        receipt = await world.run(replaces)

        assert receipt.resumed_bytes == world.size_bytes
        await world.check("up")


# -- the journal


def _journals() -> list[Path]:
    return sorted(Path(os.environ["ASYNCSYNC_CACHE_DIR"]).glob("**/*.journal"))


async def test_a_journal_is_for_its_owner_only_and_goes_with_success(world: World) -> None:
    act = await world.prepared("up")
    await world.interrupted(act, 3)
    [journal] = _journals()
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.parent.stat().st_mode) == 0o700
    await world.run(act)

    assert _journals() == []


def _damages(data: bytes) -> Iterator[bytes]:
    yield b""
    yield b"\xff" * 64
    yield data + b"\0\0\1"
    for at in range(1, len(data), max(1, len(data) // 20)):
        yield data[:at]
        yield data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize(
    "store",
    [
        "file",
        pytest.param("s3", marks=pytest.mark.slow),
        pytest.param("gs", marks=pytest.mark.slow),
    ],
)
async def test_a_journal_that_is_damaged_anywhere_only_costs_sending_again(
    store: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    async with _world(store, tmp_path, monkeypatch) as world:
        act = await world.prepared("up")
        await world.interrupted(act, 5)
        [journal] = _journals()
        damages = list(_damages(journal.read_bytes()))
        for damaged in damages:
            [journal] = _journals()
            journal.write_bytes(damaged)
            await world.run(act)
            await world.check("up")
            await world.clear()
            await world.prepared("up")
            await world.interrupted(act, 5)
        assert len(damages) > 20


async def test_without_a_place_for_a_journal_nothing_is_left(
    world: World, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("ASYNCSYNC_CACHE_DIR", "/dev/null/none")
    act = await world.prepared("up")
    await world.interrupted(act, 5)

    assert not world.left()
    await world.run(act)
    await world.check("up")


# -- what nobody goes on with


async def test_what_is_left_is_removed_when_it_is_old(world: World) -> None:
    act = await world.prepared("up")
    await world.interrupted(act, 5)
    async with StorageSyncer(isolation="loop") as syncer:
        too_early = await syncer.clean(world.location)
        assert world.left()
        removed = await syncer.clean(world.location, older_than_s=0)

    assert too_early == []
    assert len(removed) == 1
    assert not world.left()
    await world.run(act)
    await world.check("up")


async def test_cleaning_above_leaves_commits_and_finds_what_is_below(world: World) -> None:
    act = await world.prepared("update")
    before = await _content(world)
    await world.interrupted(act, 4)
    async with StorageSyncer(isolation="loop") as syncer:
        removed = await syncer.clean(world.location.rpartition("/")[0], older_than_s=0)

    assert len(removed) == 1
    assert not world.left()
    assert await _content(world) == before


async def _content(world: World) -> dict[str, bytes | None]:
    await world.run(lambda s: s.sync_down(world.location, world.tmp_path / "seen"))
    return await to_thread.run_sync(content, world.tmp_path / "seen")


async def test_an_upload_that_is_alive_is_not_removed(tmp_path: Path, monkeypatch: Patch) -> None:
    async with _world("s3", tmp_path, monkeypatch) as world:
        act, cleaned = await world.prepared("up"), [["not yet"]]
        going, go = anyio.Event(), anyio.Event()

        async def hook(request: Request) -> Effect | None:
            if request.operation == "UploadPart":
                going.set()
                await go.wait()
            return None

        assert isinstance(world.place, s3_place.S3Place)
        world.place.fake.hook = hook
        async with anyio.create_task_group() as group:
            group.start_soon(world.run, act)
            await going.wait()
            async with StorageSyncer(isolation="loop") as syncer:
                cleaned = [await syncer.clean(world.location, older_than_s=0)]
            go.set()

        assert cleaned == [[]]
        await world.check("up")


async def test_what_a_killed_delete_left_is_not_removed(tmp_path: Path) -> None:
    """Files that are not ours may be in it; the next sync or delete gives them back."""
    below = tmp_path / "run" / f".ckpt.asyncsync-trash-{'0' * 32}" / "tree"
    await to_thread.run_sync(make, below, {"mine": b"mine"})
    async with StorageSyncer(isolation="loop") as syncer:
        assert await syncer.clean(tmp_path / "run", older_than_s=0) == []

    assert (below / "mine").read_bytes() == b"mine"


async def test_a_replacement_that_has_begun_is_not_removed(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """Its files are those of two versions: only the sync that began it can make it whole."""
    async with _world("s3", tmp_path, monkeypatch) as world:
        assert isinstance(world.place, s3_place.S3Place)
        act, fake = await world.prepared("update"), world.place.fake

        async def hook(request: Request) -> Effect | None:
            completing = any(r.operation == "CompleteMultipartUpload" for r in fake.requests[:-1])
            return reset() if completing else None

        fake.hook = hook
        with pytest.raises((TransientError, TransferError)):
            await world.run(act)
        fake.hook = None
        async with StorageSyncer(isolation="loop") as syncer:
            assert await syncer.clean(world.location, older_than_s=0) == []

        await world.run(act)
        await world.check("up")


def test_the_command_line_cleans_only_when_it_is_told_to(tmp_path: Path) -> None:
    source, location = make(tmp_path / "source", {"a": b"x" * 3 * MIB}), tmp_path / "target/ckpt"
    _killed([*_command("up", source, location), "--bwlimit", "1MiB"], 1)
    [stage] = location.parent.iterdir()
    told = [
        _done(_command("doctor", location, *more))["removed"]
        for more in ((), ("--clean",), ("--clean", "--older-than", "0"))
    ]

    assert told == [None, [], [str(stage)]]
    assert not stage.exists()


# -- time limits


@pytest.mark.slow
async def test_an_upload_of_three_time_limits_is_done_in_four_attempts(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """The store takes a third of the bytes in each attempt, and then no more."""
    async with _world("s3", tmp_path, monkeypatch) as world:
        assert isinstance(world.place, s3_place.S3Place)
        act, fake, attempts = await world.prepared("up"), world.place.fake, 0
        taken, limit = 0, 0

        async def hook(request: Request) -> Effect | None:
            nonlocal taken
            if request.operation == "UploadPart":
                taken += 1
                if taken > limit:
                    await anyio.sleep_forever()
            return None

        fake.hook = hook
        while True:
            attempts, taken, limit = attempts + 1, 0, 3
            try:
                await world.run(act, sync_timeout=2.0)
                break
            except DeadlineError:
                continue
        fake.hook = None
        assert attempts <= 4
        await world.check("up")


# -- processes that are killed


def _command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "asyncsync", *map(str, argv), "--json"]


def _killed(command: list[str], moves: int) -> int:
    """Kill the command after that many pieces; the bytes that had moved, or -1."""
    seen = 0
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "moved":
                seen += 1
                if seen == moves:
                    process.kill()
                    return int(event["moved_bytes"])
    return -1


def _done(command: list[str]) -> dict[str, Any]:
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("moves", [1, 3, 5])
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("store", STORES)
async def test_a_killed_process_has_sent_nothing_in_vain(
    store: str, direction: str, moves: int, tmp_path: Path, monkeypatch: Patch
) -> None:
    files = {f"large-{n}": random.Random(n).randbytes(40 * MIB) for n in range(2)}
    files |= {f"small-{n}": b"x" * n for n in range(5)}
    source = await to_thread.run_sync(make, tmp_path / "source", files)
    async with AsyncExitStack() as stack:
        location = str(tmp_path / "target" / "ckpt")
        if store == "s3":
            s3 = await stack.enter_async_context(FakeS3())
            location = "s3://bucket/ckpt"
            for name, value in s3.environ.items():
                monkeypatch.setenv(name, value)
        elif store == "gs":
            gcs = await stack.enter_async_context(FakeGcs())
            location = "gs://bucket/ckpt"
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        command = _command("up", source, location, "--jobs", 2)
        if direction == "down":
            await to_thread.run_sync(_done, command)
            command = _command("down", location, tmp_path / "restored", "--jobs", 2)
        slowly = [*command, "--bwlimit", "60MiB"]
        moved = await to_thread.run_sync(_killed, slowly, moves)
        summary = await to_thread.run_sync(_done, command)

        assert 0 <= moved < 80 * MIB
        assert summary["resumed_bytes"] >= moved
        assert summary["resumed_bytes"] + summary["sent_bytes"] == sum(map(len, files.values()))
        restored = tmp_path / ("again" if direction == "up" else "restored")
        await to_thread.run_sync(_done, _command("down", location, restored))
        assert await to_thread.run_sync(content, restored) == files
        assert await to_thread.run_sync(temporary, tmp_path) == []


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if directory.exists():
        directory.rmdir()
