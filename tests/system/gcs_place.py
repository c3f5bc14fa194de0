"""A fake Cloud Storage server, a syncer for it on which no wait takes time, and what is left."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncsync.storage.gcs import bucket
from asyncsync.syncing import StorageSyncer
from asyncsync.units import KIB

from ..fakes.gcs import FakeGcs, Fault
from . import s3_place
from .s3_place import Hurry, Place
from .trees import Events

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


class GcsPlace(Place):
    fake: FakeGcs
    location = LOCATION
    tree = TREE

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


@asynccontextmanager
async def gcs_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GcsPlace]:
    """The server takes the place of the service as an emulator does: it asks for no token."""
    async with FakeGcs() as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        clock, events = Hurry(), Events()
        async with StorageSyncer(
            isolation="loop", clock=clock, observe=events, max_requests=8
        ) as syncer:
            yield GcsPlace(fake, fake.objects, syncer, clock, events, tmp_path)


def use_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of more than 576 KiB travel in parts, and a part as a large object does."""
    s3_place.use_small_chunks(monkeypatch, CHUNK)
    monkeypatch.setattr(bucket, "_AT_ONCE_BYTES", GRANULE)
