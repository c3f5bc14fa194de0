"""A sync that is interrupted goes on where it was: only what was in flight moves again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncsync.events import Event, Moved, Observer
from asyncsync.syncing import Receipt, StorageSyncer

from . import gcs_place, s3_place
from .s3_place import Hurry, Place
from .trees import content, make, temporary

pytestmark = pytest.mark.one_loop

AT_ONCE = 2
STORES = ["s3", "gs", "file"]

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

    async def run(self, act: Act, observe: Observer | None = None) -> Receipt:
        async with StorageSyncer(
            isolation="loop", clock=Hurry(), max_requests=AT_ONCE, max_files=AT_ONCE
        ) as syncer:
            syncer._observe = observe or syncer._observe
            return await act(syncer)

    async def up(self, syncer: StorageSyncer) -> Receipt:
        return await syncer.sync_up(self.tmp_path / "source", self.location)

    async def roll(self, syncer: StorageSyncer) -> Receipt:
        return await syncer.sync_up(self.tmp_path / "source", self.location, kind="rolling")

    async def down(self, syncer: StorageSyncer) -> Receipt:
        return await syncer.sync_down(self.location, self.tmp_path / "restored")

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
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    async with _world(request.param, tmp_path, monkeypatch) as one:
        yield one


@asynccontextmanager
async def _world(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
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


@pytest.mark.parametrize("direction", ["up", "update", "down"])
async def test_after_every_interruption_only_what_was_in_flight_moves_again(
    direction: str, world: World, tmp_path: Path
) -> None:
    moves, at_all = 0, world.size_bytes
    while True:
        moves += 1
        act = await world.prepared(direction)
        moved = await world.interrupted(act, moves)
        if moved < 0:
            break
        receipt = await world.run(act)

        assert receipt.resumed_bytes >= moved
        assert receipt.sent_bytes + receipt.resumed_bytes == at_all
        await world.check(direction)
        await world.run(lambda syncer: _delete(syncer, world.location))
        await to_thread.run_sync(_remove, tmp_path / "restored")
        await to_thread.run_sync(_remove, tmp_path / "source")
    assert moves > 6


async def _delete(syncer: StorageSyncer, location: str) -> Receipt:
    await syncer.delete(location)
    return Receipt(location=location, identity="", kind="sealed", files=0, size_bytes=0)


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if directory.exists():
        directory.rmdir()
