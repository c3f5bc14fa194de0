"""The suites over file systems of fsspec: in memory, on disk, and WebHDFS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from asyncsync.concurrency import Threads
from asyncsync.errors import ClashError
from asyncsync.storage import ObjectStore
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.fsspec_objects import FsspecObjects
from asyncsync.storage.trees import TreeStore
from asyncsync.testing import FakeClock, ObjectStoreContract, TreeStoreContract
from tests.fakes.webhdfs import FakeWebHdfs


@pytest.fixture
def threads() -> Iterator[Threads]:
    pool = Threads(4)
    yield pool
    pool.close()


def empty_memory() -> Any:
    """fsspec's memory file system, not the one that the whole process shares."""
    memory = import_module("fsspec.implementations.memory")
    return memory.MemoryFileSystem(global_store=False, skip_instance_cache=True)


class OnFiles(ObjectStoreContract):
    """A file system cannot hold an object below another, and says so."""

    async def test_delete_removes_one_key_and_may_be_repeated(self, store: ObjectStore) -> None:
        for key in ("trial_1", "trial_10"):
            await store.put(key, b"")
        with pytest.raises(ClashError, match="trial_1 is an object"):
            await store.put("trial_1/x", b"")
        await store.delete("trial_1")
        await store.delete("trial_1")
        await store.put("trial_1/x", b"")
        await store.delete("trial_1")
        with pytest.raises(ClashError, match="trial_1 is a directory"):
            await store.put("trial_1", b"")

        assert [info.key async for info in store.scan("")] == ["trial_1/x", "trial_10"]


class TestMemory(OnFiles):
    @pytest.fixture
    def store(self, threads: Threads) -> ObjectStore:
        return FsspecObjects("memory", "/bucket", threads=threads, filesystem=empty_memory())


class TestLocal(OnFiles):
    @pytest.fixture
    async def store(self, threads: Threads, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        store = FsspecObjects("file", str(tmp_path), threads=threads)
        yield store
        await store.aclose()


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeWebHdfs]:
    with FakeWebHdfs() as fake:
        yield fake


class TestWebHdfs(OnFiles):
    @pytest.fixture
    async def store(self, threads: Threads, cluster: FakeWebHdfs) -> AsyncIterator[ObjectStore]:
        cluster.clear()
        store = FsspecObjects("webhdfs", cluster.host, threads=threads)
        yield store
        await store.aclose()


class Trees(TreeStoreContract):
    groups = False

    @pytest.fixture
    def objects(self, threads: Threads) -> FsspecObjects:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, objects: FsspecObjects) -> TreeStore:
        self.objects_ = objects
        return CommittedTrees(objects, clock=FakeClock())

    async def plant(self, store: TreeStore, tree: str, path: str, data: bytes | None) -> None:
        if data is None:
            await self.objects_.delete(f"{tree}/{path}")
        else:
            await self.objects_.put(f"{tree}/{path}", data)

    async def raw(self, store: TreeStore, tree: str) -> dict[str, bytes]:
        assert [upload async for upload in self.objects_.scan_uploads("")] == []
        prefix = f"{tree}/" if tree else ""
        keys = [info.key async for info in self.objects_.scan(prefix)]
        return {key[len(prefix) :]: bytes((await self.objects_.get(key)).data) for key in keys}


class TestTreesInMemory(Trees):
    @pytest.fixture
    def objects(self, threads: Threads) -> FsspecObjects:
        return FsspecObjects("memory", "/bucket", threads=threads, filesystem=empty_memory())


class TestTreesOnDisk(Trees):
    @pytest.fixture
    def objects(self, threads: Threads, tmp_path: Path) -> FsspecObjects:
        return FsspecObjects("file", str(tmp_path), threads=threads)
