"""The ObjectStore suite over every ObjectStore, and over some that lie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from anyio.lowlevel import checkpoint

from asyncsync.storage import ObjectStore
from asyncsync.storage.behaviours import Rate
from asyncsync.storage.memory import MemoryObjects, memory_objects
from asyncsync.storage.objects import (
    Capabilities,
    Condition,
    Data,
    Fetched,
    ObjectInfo,
    Part,
    Upload,
)
from asyncsync.storage.wrappers import equip_objects
from asyncsync.testing import FakeClock, ObjectStoreContract


class TestMemory(ObjectStoreContract):
    @pytest.fixture
    async def store(self) -> ObjectStore:
        return MemoryObjects()


class TestMemoryWithoutConditions(ObjectStoreContract):
    @pytest.fixture
    async def store(self) -> ObjectStore:
        none = Capabilities(create_only=False, if_match=False, multipart_conditions=False)
        return MemoryObjects(none)


class TestEquippedMemory(ObjectStoreContract):
    @pytest.fixture
    async def store(self) -> ObjectStore:
        clock = FakeClock()
        return equip_objects(MemoryObjects(), clock=clock, max_requests=2, rate=Rate(1e12, clock))


async def test_a_namespace_is_one_store_for_the_whole_process() -> None:
    await memory_objects("one").put("k", b"x")

    assert memory_objects("one") is memory_objects("one")
    assert memory_objects("one") is not memory_objects("two")


# ---------------------------------------------------------------- the suite, caught lying


class ShowsHalfAPut(MemoryObjects):
    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        await super().put(key, data[: len(data) // 2], condition=condition)
        await checkpoint()
        return await super().put(key, data)


class IgnoresConditions(MemoryObjects):
    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        return await super().put(key, data)


class IgnoresConditionsOfUploads(MemoryObjects):
    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        return await super().complete_upload(upload, parts)


class IgnoresTheTagOfADelete(MemoryObjects):
    async def delete(self, key: str, *, tag: str | None = None) -> None:
        await super().delete(key)


class DeletesByPrefix(MemoryObjects):
    async def delete(self, key: str, *, tag: str | None = None) -> None:
        for info in [i async for i in self.scan(key)]:
            await super().delete(info.key)


class CountsTheEndIn(MemoryObjects):
    async def get(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        tag: str | None = None,
        into: memoryview | None = None,
    ) -> Fetched:
        return await super().get(key, start, None if end is None else end + 1, tag=tag, into=into)


class KeepsOneTag(MemoryObjects):
    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        return (await super().put(key, data, condition=condition))._replace(tag="same")


class ScansAsItLikes(MemoryObjects):
    async def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        found = [info async for info in super().scan(prefix)]
        for info in reversed(found):
            yield info


class ShowsParts(MemoryObjects):
    async def put_part(self, upload: Upload, number: int, data: Data) -> Part:
        await self.put(upload.key, data)
        return await super().put_part(upload, number, data)


class AbortsNothing(MemoryObjects):
    async def abort_upload(self, upload: Upload) -> None:
        await checkpoint()


class HidesUploads(MemoryObjects):
    async def scan_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        for upload in list[Upload]():
            yield upload


LIES: dict[type[MemoryObjects], str] = {
    ShowsHalfAPut: "test_a_reader_sees_one_version_or_another",
    IgnoresConditions: "test_create_only_leaves_what_is_there",
    IgnoresConditionsOfUploads: "test_completing_keeps_the_conditions",
    IgnoresTheTagOfADelete: "test_delete_can_demand_one_version",
    DeletesByPrefix: "test_delete_removes_one_key_and_may_be_repeated",
    CountsTheEndIn: "test_a_range_ends_where_the_object_ends",
    KeepsOneTag: "test_put_replaces_and_the_tag_changes",
    ScansAsItLikes: "test_scan_gives_every_key_below_a_prefix_in_order",
    ShowsParts: "test_an_upload_shows_nothing_before_it_completes",
    AbortsNothing: "test_an_aborted_upload_is_gone_and_aborting_may_be_repeated",
    HidesUploads: "test_unfinished_uploads_can_be_found_below_a_prefix",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_the_suite_catches_a_store_that_lies(lie: type[MemoryObjects]) -> None:
    test = getattr(ObjectStoreContract(), LIES[lie])
    await test(MemoryObjects())

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await test(lie())
