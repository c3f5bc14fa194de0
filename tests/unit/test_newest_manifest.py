"""A manifest that is replaced while it is read: read again, and not for ever."""

from __future__ import annotations

import pytest

from asyncsync.errors import PreconditionError, TransientError
from asyncsync.storage.committed import CommittedTrees, place
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.objects import Fetched
from asyncsync.testing import FakeClock
from asyncsync.testing.values import save

FILES = {f"f{number}": b"x" for number in range(20)}


class Replaced(MemoryObjects):
    """What is read range by range seems to be another object at each of the next `times` ranges."""

    times = requests = 0

    async def get(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        tag: str | None = None,
        into: memoryview | None = None,
    ) -> Fetched:
        self.requests += 1
        if tag is not None and self.times:
            self.times -= 1
            raise PreconditionError("412")
        return await super().get(key, start, end, tag=tag, into=into)


@pytest.fixture
async def objects(monkeypatch: pytest.MonkeyPatch) -> Replaced:
    """A store with a manifest of several ranges in it."""
    monkeypatch.setattr(place, "_RANGE_BYTES", 1024)
    objects = Replaced()
    await save(CommittedTrees(objects, clock=FakeClock()), "run/tree", FILES)
    objects.requests = 0
    return objects


async def test_a_manifest_that_was_replaced_thrice_is_read_again(objects: Replaced) -> None:
    store = CommittedTrees(objects, clock=FakeClock())
    objects.times = 3

    assert (await store.read_manifest("run/tree")).files.keys() == FILES.keys()


@pytest.mark.timeout(5)
async def test_a_manifest_that_is_replaced_at_every_range_is_given_up(objects: Replaced) -> None:
    store = CommittedTrees(objects, clock=FakeClock(), where="s3://bucket")
    objects.times = 1000
    with pytest.raises(TransientError, match=r"manifest of s3://bucket/run/tree .*; try again"):
        await store.read_manifest("run/tree")

    assert objects.requests == 4 * 2
