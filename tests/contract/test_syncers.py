"""StorageSyncer keeps the contract of all syncers wherever its work is done."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncsync.peer import PeerServer
from asyncsync.peer.certificates import Certificates, prepare_certificates, server_context
from asyncsync.syncing import Isolation, StorageSyncer
from asyncsync.testing import SyncerContract
from asyncsync.wire.claims import Operation
from asyncsync.wire.joining import Join


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


@pytest.mark.one_loop
class TestToAHead(TestToALocalDisk):
    any_tree = False

    @pytest.fixture(params=["loop", "thread", pytest.param("process", marks=pytest.mark.slow)])
    async def syncer(self, request: pytest.FixtureRequest) -> AsyncIterator[StorageSyncer]:
        async with StorageSyncer(isolation=request.param) as syncer:
            yield syncer

    @pytest.fixture
    async def remote(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
        (tmp_path / "root").mkdir()
        async with PeerServer(str(tmp_path / "root")) as head:
            token = head.token(operations=frozenset(Operation))
            join = Join(address=head.address, token=token)
            monkeypatch.setenv("ASYNCSYNC_JOIN", join.line().reveal())
            yield f"{head.location}/exp"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return prepare_certificates(tmp_path / "tls", ["127.0.0.1"], now=time.time())


@pytest.fixture
def tls(certificates: Certificates) -> ssl.SSLContext:
    return server_context(certificates.file)


@pytest.mark.slow
class TestToAHeadOverTls(TestToAHead):
    @pytest.fixture(params=["loop"])
    async def syncer(self, request: pytest.FixtureRequest) -> AsyncIterator[StorageSyncer]:
        async with StorageSyncer(isolation=request.param) as syncer:
            yield syncer

    @pytest.fixture
    async def remote(
        self,
        tmp_path: Path,
        certificates: Certificates,
        tls: ssl.SSLContext,
        monkeypatch: pytest.MonkeyPatch,
    ) -> AsyncIterator[str]:
        (tmp_path / "root").mkdir()
        authority, fingerprint = certificates.authority, certificates.fingerprint
        async with PeerServer(str(tmp_path / "root"), tls=tls, authority=authority) as head:
            token = head.token(operations=frozenset(Operation))
            join = Join(address=head.address, token=token, fingerprint=fingerprint)
            monkeypatch.setenv("ASYNCSYNC_JOIN", join.line().reveal())
            yield f"{head.location}/exp"
