"""The tree suite over a head in the same process, on loopback."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncsync.concurrency import Threads
from asyncsync.errors import IntegrityError
from asyncsync.peer import PeerServer
from asyncsync.peer.certificates import Certificates, prepare_certificates, server_context
from asyncsync.storage import Intent, NewFile, TreeStore
from asyncsync.storage.peer import open_trees
from asyncsync.testing.values import load, make_manifest, save
from asyncsync.wire.claims import Operation
from asyncsync.wire.joining import Join

from .test_local import OnDisk


class TestPeer(OnDisk):
    any_tree = False

    @pytest.fixture
    async def head(self, root: Path) -> AsyncIterator[PeerServer]:
        async with PeerServer(str(root)) as head:
            yield head

    @pytest.fixture
    async def store(
        self, head: PeerServer, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[TreeStore]:
        token = head.token(operations=frozenset(Operation))
        join = Join(address=head.address, token=token)
        monkeypatch.setenv("ASYNCSYNC_JOIN", join.line().reveal())
        threads = Threads(4)
        store = open_trees(head.address, secure=False, threads=threads, max_requests=8)
        yield store
        await store.aclose()
        threads.close()

    async def test_what_was_announced_and_never_came_is_missing_though_a_file_of_that_size_is_there(
        self, store: TreeStore
    ) -> None:
        old = await save(store, "tree", {"a": b"old", "b": b"b"}, in_place=True)
        new = make_manifest({"a": b"new", "b": b"b"}, kind="rolling")
        intent = Intent(
            attempt=new.header.attempt,
            expect=old.identity,
            in_place=True,
            files=(NewFile("a", 3),),
        )
        async with store.begin("tree", intent) as writer:
            with pytest.raises(IntegrityError) as caught:
                await writer.commit(new)

        assert caught.value.paths == ("a",)
        assert await load(store, "tree") == {"a": b"old", "b": b"b"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("head") / "tls"
    return prepare_certificates(folder, ["127.0.0.1"], now=time.time())


@pytest.fixture
def tls(certificates: Certificates) -> ssl.SSLContext:
    return server_context(certificates.file)


@pytest.mark.slow
class TestPeerOverTls(TestPeer):
    @pytest.fixture
    async def head(
        self, root: Path, certificates: Certificates, tls: ssl.SSLContext
    ) -> AsyncIterator[PeerServer]:
        async with PeerServer(str(root), tls=tls, authority=certificates.authority) as head:
            yield head

    @pytest.fixture
    async def store(
        self, head: PeerServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[TreeStore]:
        token = head.token(operations=frozenset(Operation))
        join = Join(address=head.address, token=token, fingerprint=certificates.fingerprint)
        monkeypatch.setenv("ASYNCSYNC_JOIN", join.line().reveal())
        threads = Threads(4)
        store = open_trees(head.address, secure=True, threads=threads, max_requests=8)
        yield store
        await store.aclose()
        threads.close()
