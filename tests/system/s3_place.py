"""A fake S3 server, a syncer for it on which no wait takes time, and what is left in the bucket.

What the places of all clouds share is here too.
"""

from __future__ import annotations

import random
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from asyncsync import digest
from asyncsync.errors import AsyncSyncError, TransferError
from asyncsync.names import MANIFEST
from asyncsync.storage.committed import place, recalled, writer
from asyncsync.storage.committed.record import TTL_S
from asyncsync.storage.http import Http
from asyncsync.storage.local import stage, unfinished
from asyncsync.storage.local import store as local_store
from asyncsync.storage.s3 import connection
from asyncsync.syncing import StorageSyncer
from asyncsync.transfer import committed, engine, source

from ..fakes.gcs import FakeGcs
from ..fakes.gcs_wire import Stored as GcsObject
from ..fakes.s3 import FakeS3
from ..fakes.s3_bucket import Stored as S3Object
from ..fakes.s3_faults import Effect, Fault, call
from ..fakes.s3_wire import Request
from .trees import Events, content, make

__all__ = [
    "CHUNK",
    "LOCATION",
    "TREE",
    "Hurry",
    "Place",
    "S3Place",
    "one_line",
    "raises",
    "s3_place",
    "use_short_stalls",
    "use_small_chunks",
]

E = TypeVar("E", bound=AsyncSyncError)

CHUNK = 64 * 1024
LOCATION = "s3://bucket/run/ckpt_7"
TREE: Mapping[str, bytes] = {
    "a": b"one",
    "d/b": b"two",
    "big": random.Random(7).randbytes(5 * CHUNK - 9),
}
"""Two small files and one of five parts."""


class Caught(Generic[E]):
    """What `raises` has caught."""

    value: E


class Hurry:
    """A clock on which waits are over at once, and are remembered; the date is the real one."""

    def __init__(self) -> None:
        self._time = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self._time

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        if seconds == TTL_S / 3:  # until the next sign of life, which nobody here waits for
            await anyio.sleep_forever()
        self.waits.append(seconds)
        self._time += max(0.0, seconds)
        await checkpoint()


@dataclass
class Place:
    """A server, a syncer for it, and a tree on disk to sync."""

    fake: FakeS3 | FakeGcs
    objects: MutableMapping[str, S3Object] | MutableMapping[str, GcsObject]
    syncer: StorageSyncer
    clock: Hurry
    events: Events
    tmp_path: Path
    location: ClassVar[str]
    tree: ClassVar[Mapping[str, bytes]]

    async def make(
        self, files: Mapping[str, bytes | None] | None = None, name: str = "source"
    ) -> Path:
        files = self.tree if files is None else files
        return await to_thread.run_sync(make, self.tmp_path / name, files)

    async def up(self, files: Mapping[str, bytes | None] | None = None) -> None:
        """Commit the tree."""
        await self.syncer.sync_up(await self.make(files), self.location)

    async def down(self) -> dict[str, bytes | None]:
        """Fetch the tree; what is on disk then."""
        await self.syncer.sync_down(self.location, self.tmp_path / "restored")
        return await to_thread.run_sync(content, self.tmp_path / "restored")

    async def act(self, operation: str, location: str | None = None) -> None:
        """One operation of the syncer: up, down, verify or delete."""
        source, location = await self.make(), location or self.location
        operations: dict[str, Callable[[], Awaitable[object]]] = {
            "up": lambda: self.syncer.sync_up(source, location),
            "down": lambda: self.syncer.sync_down(location, self.tmp_path / "restored"),
            "verify": lambda: self.syncer.verify(location),
            "delete": lambda: self.syncer.delete(location),
        }
        await operations[operation]()

    def key(self, path: str) -> str:
        return f"run/ckpt_7/{path}"

    def held(self) -> dict[str, bytes]:
        """All objects below the tree, by path: the manifest, foreign and temporary ones too."""
        prefix, found = self.key(""), self.objects
        return {k.removeprefix(prefix): o.data for k, o in found.items() if k.startswith(prefix)}

    async def check(self, files: Mapping[str, bytes] | None = None) -> None:
        """The tree is committed as it is, and nothing else is left: no record, no part."""
        self.fake.faults.clear()
        held = self.held()

        assert held.pop(MANIFEST)
        assert held == (self.tree if files is None else files)
        assert (await self.syncer.verify(self.location)).ok


class S3Place(Place):
    fake: FakeS3
    location = LOCATION
    tree = TREE

    def count(self, operation: str, path: str | None = None) -> int:
        """How many of those requests there have been."""
        key = None if path is None else self.key(path)
        return sum(r.operation == operation and key in (None, r.key) for r in self.fake.requests)

    def fault(
        self, effect: Effect, operation: str, path: str, *, at: int = 1, times: int | None = 1
    ) -> Fault:
        """A fault of requests for one path of the tree; not added yet."""
        return Fault(effect, operation, self.key(path), at=at, times=times)

    async def replaced(self, files: Mapping[str, bytes | None]) -> Effect:
        """Somebody else puts these files in place of the tree before the request is heard."""
        source = await self.make(files, "newer")

        async def replace(_: Request) -> None:
            async with StorageSyncer(isolation="loop") as other:
                await other.sync_up(source, self.location, replace=True)

        return call(replace, "early")

    async def check(self, files: Mapping[str, bytes] | None = None) -> None:
        """No upload is left either."""
        self.fake.hook = None

        assert not self.fake.uploads
        await super().check(files)


@asynccontextmanager
async def s3_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, max_requests: int = 8
) -> AsyncIterator[S3Place]:
    async with FakeS3() as fake:
        for name, value in fake.environ.items():
            monkeypatch.setenv(name, value)
        clock, events = Hurry(), Events()
        async with StorageSyncer(
            isolation="loop", clock=clock, observe=events, max_requests=max_requests
        ) as syncer:
            yield S3Place(fake, fake.objects["bucket"], syncer, clock, events, tmp_path)


def use_small_chunks(monkeypatch: pytest.MonkeyPatch, size_bytes: int = CHUNK) -> None:
    """Files of more than that travel in many chunks, as very large ones do."""
    for module in (digest, place, writer, recalled, committed, engine, source, stage):
        monkeypatch.setattr(module, "CHUNK_BYTES", size_bytes)
    for module in (unfinished, local_store):
        monkeypatch.setattr(module, "CHUNK_BYTES", size_bytes)


def use_short_stalls(monkeypatch: pytest.MonkeyPatch, stall_s: float) -> None:
    """A connection on which nothing moves is given up after `stall_s`."""
    monkeypatch.setattr(connection, "Http", partial(Http, stall_s=stall_s))


@contextmanager
def raises(kind: type[E]) -> Iterator[Caught[E]]:
    """Expect that error; or several at once that are all of its kind, of which it gives one."""
    caught = Caught[E]()
    try:
        yield caught
    except TransferError as several:
        caught.value = _one(several.failures, kind)
    except kind as exc:
        caught.value = exc
    else:
        pytest.fail(f"DID NOT RAISE {kind.__name__}")


def _one(failures: Sequence[AsyncSyncError], kind: type[E]) -> E:
    alike = [failure for failure in failures if isinstance(failure, kind)]
    assert len(alike) == len(failures), failures
    return alike[0]


def one_line(error: AsyncSyncError, *parts: str) -> bool:
    """Whether the message is one printable line that holds all of `parts`."""
    text = str(error)
    return text.isprintable() and len(text) < 700 and all(part in text for part in parts)
