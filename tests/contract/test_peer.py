"""The tree suite over a head in the same process, on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncsync.concurrency import Threads
from asyncsync.peer import PeerServer
from asyncsync.storage import TreeStore
from asyncsync.storage.peer import open_trees
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
