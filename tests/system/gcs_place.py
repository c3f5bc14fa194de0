"""A fake Cloud Storage server, a syncer for it on which no wait takes time, and what is left."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from asyncsync import digest
from asyncsync.names import MANIFEST
from asyncsync.storage.committed import place, writer
from asyncsync.storage.gcs import bucket
from asyncsync.syncing import StorageSyncer
from asyncsync.transfer import committed, engine, source
from asyncsync.units import KIB

from ..fakes.gcs import FakeGcs, Fault
from .s3_place import Hurry
from .trees import Events, content, make

__all__ = ["CHUNK", "GRANULE", "LOCATION", "TREE", "GcsPlace", "gcs_place", "use_small_chunks"]

GRANULE = 256 * KIB
CHUNK = 2 * GRANULE + 64 * KIB
LOCATION = "gs://bucket/run/ckpt_7"
TREE: Mapping[str, bytes] = {
    "a": b"one",
    "d/b": b"two",
    "big": random.Random(7).randbytes(CHUNK + 1000),
}
"""Two small files and one of two parts, of which the first travels by a resumable upload."""


@dataclass
class GcsPlace:
    """The server, a syncer for it, and a tree on disk to sync."""

    fake: FakeGcs
    syncer: StorageSyncer
    clock: Hurry
    events: Events
    tmp_path: Path

    async def make(self, files: Mapping[str, bytes | None] = TREE, name: str = "source") -> Path:
        return await to_thread.run_sync(make, self.tmp_path / name, files)

    async def up(self, files: Mapping[str, bytes | None] = TREE) -> None:
        """Commit the tree."""
        await self.syncer.sync_up(await self.make(files), LOCATION)

    async def down(self, name: str = "restored") -> dict[str, bytes | None]:
        """Fetch the tree; what is on disk then."""
        await self.syncer.sync_down(LOCATION, self.tmp_path / name)
        return await to_thread.run_sync(content, self.tmp_path / name)

    def key(self, path: str) -> str:
        return f"{LOCATION.removeprefix('gs://bucket/')}/{path}"

    def held(self) -> dict[str, bytes]:
        """All objects below the tree, by path: the manifest, foreign and temporary ones too."""
        prefix = self.key("")
        objects = self.fake.objects
        return {k.removeprefix(prefix): o.data for k, o in objects.items() if k.startswith(prefix)}

    def fault(self, operation: str, path: str, **more: Any) -> None:
        """A fault of requests for one path of the tree, its parts not included."""
        self.fake.faults.append(Fault(operation, name=self.key(path), **more))

    def part_fault(self, operation: str, **more: Any) -> None:
        """A fault of the resumable upload of the first part of `big`.

        The marker of an upload comes before it, by a session to which no chunk is sent.
        """
        at = more.pop("at", 1) + (operation in ("start", "status"))
        self.fake.faults.append(Fault(operation, at=at, **more))

    def chunks(self) -> list[str]:
        """The ranges that were sent of the first part of `big`, in order."""
        seen = self.fake.requests
        return [r.headers["Content-Range"] for r in seen if r.operation == "chunk"]

    def count(self, operation: str, path: str) -> int:
        """How many of those requests there have been; of uploads broken off, not those."""
        seen = self.fake.requests
        return sum(r.operation == operation and r.name == self.key(path) for r in seen)

    async def check(self, files: Mapping[str, bytes] = TREE) -> None:
        """The tree is committed as it is, and nothing else is left: no record, no part."""
        self.fake.faults.clear()
        held = self.held()

        assert {p: d for p, d in held.items() if p != MANIFEST} == files
        assert MANIFEST in held
        assert (await self.syncer.verify(LOCATION)).ok


@asynccontextmanager
async def gcs_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, max_requests: int = 8
) -> AsyncIterator[GcsPlace]:
    """The server takes the place of the service as an emulator does: it asks for no token."""
    async with FakeGcs() as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        clock, events = Hurry(), Events()
        async with StorageSyncer(clock=clock, observe=events, max_requests=max_requests) as syncer:
            yield GcsPlace(fake, syncer, clock, events, tmp_path)


def use_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of more than 576 KiB travel in parts, and a part as a large object does."""
    for module in (digest, place, writer, committed, engine, source):
        monkeypatch.setattr(module, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(bucket, "_AT_ONCE_BYTES", GRANULE)
