"""The tree suite over local disk, bare and with everything that goes around it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncsync.concurrency import Threads
from asyncsync.storage import Backoff, Rate, TreeStore
from asyncsync.storage.local import HeldRoot, LocalTrees, fs
from asyncsync.storage.wrappers import equip_trees
from asyncsync.testing import FakeClock, TreeStoreContract


class OnDisk(TreeStoreContract):
    """Looks at the disk behind the store's back."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        self.top = tmp_path / "store"
        self.top.mkdir()
        return self.top

    async def plant(self, store: TreeStore, tree: str, path: str, data: bytes | None) -> None:
        place = self.top / tree / path
        if data is None:
            place.unlink()
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)

    async def raw(self, store: TreeStore, tree: str) -> dict[str, bytes]:
        base = os.path.join(self.top, tree)
        return {
            os.path.relpath(os.path.join(above, name), base): Path(above, name).read_bytes()
            for above, _, names in os.walk(base)
            for name in names
        }


class TestLocal(OnDisk):
    @pytest.fixture
    async def store(self, root: Path) -> TreeStore:
        return LocalTrees(str(root), Threads(4))


class TestLocalHeld(OnDisk):
    """Relative to a held directory: the way that a head keeps the trees of others."""

    @pytest.fixture
    async def store(self, root: Path) -> AsyncIterator[TreeStore]:
        threads = Threads(4)
        store = LocalTrees(await threads.run(HeldRoot, str(root)), threads)
        yield store
        await store.aclose()


@pytest.mark.one_loop
class TestLocalHeldWithoutOpenat2(TestLocalHeld):
    @pytest.fixture(autouse=True)
    def old_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fs, "_has_openat2", lambda: False)


class TestLocalInOneThread(OnDisk):
    @pytest.fixture
    async def store(self, root: Path) -> TreeStore:
        return LocalTrees(str(root), Threads(1))


class TestLocalEquipped(OnDisk):
    @pytest.fixture
    async def store(self, root: Path) -> TreeStore:
        clock = FakeClock()
        return equip_trees(
            LocalTrees(str(root), Threads(4)),
            clock=clock,
            backoff=Backoff(attempts=1),
            max_requests=2,
            rate=Rate(1e12, clock),
        )
