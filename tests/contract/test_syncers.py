"""StorageSyncer keeps the contract of all syncers wherever its work is done."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncsync.syncing import Isolation, StorageSyncer
from asyncsync.testing import SyncerContract


class TestToALocalDisk(SyncerContract):
    @pytest.fixture(params=["loop", "thread", "process"])
    async def syncer(self, request: pytest.FixtureRequest) -> AsyncIterator[StorageSyncer]:
        isolation: Isolation = request.param
        async with StorageSyncer(isolation=isolation) as syncer:
            yield syncer

    @pytest.fixture
    def remote(self, tmp_path: Path) -> str:
        return str(tmp_path / "remote")


class TestToMemory(TestToALocalDisk):
    @pytest.fixture(params=["loop", "thread"])
    async def syncer(self, request: pytest.FixtureRequest) -> AsyncIterator[StorageSyncer]:
        async with StorageSyncer(isolation=request.param) as syncer:
            yield syncer

    @pytest.fixture
    def remote(self) -> str:
        return f"memory://{os.urandom(8).hex()}/trials"
