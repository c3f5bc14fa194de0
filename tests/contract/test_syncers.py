"""StorageSyncer keeps the contract of all syncers, on a disk and in an object store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncsync.syncing import StorageSyncer
from asyncsync.testing import SyncerContract


class TestToALocalDisk(SyncerContract):
    @pytest.fixture
    async def syncer(self) -> AsyncIterator[StorageSyncer]:
        async with StorageSyncer() as syncer:
            yield syncer

    @pytest.fixture
    def remote(self, tmp_path: Path) -> str:
        return str(tmp_path / "remote")


class TestToMemory(TestToALocalDisk):
    @pytest.fixture
    def remote(self) -> str:
        return f"memory://{os.urandom(8).hex()}/trials"
