"""A head and a worker in one process, with a network between them that can fail."""

from __future__ import annotations

import asyncio
import atexit
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from anyio import to_thread

from asyncsync import digest
from asyncsync.clock import Clock
from asyncsync.events import Observer, ignore
from asyncsync.peer import PeerServer, push_calls, pushes, read_calls, sessions
from asyncsync.peer.certificates import Certificates, prepare_certificates, server_context
from asyncsync.storage.local import stage, unfinished
from asyncsync.storage.local import store as local_store
from asyncsync.storage.peer import link, writer
from asyncsync.syncing import Receipt, StorageSyncer
from asyncsync.testing import FaultProxy
from asyncsync.transfer import committed, engine, source
from asyncsync.units import KIB
from asyncsync.wire import framing
from asyncsync.wire.claims import Operation
from asyncsync.wire.joining import Join
from asyncsync.wire.limits import Limits
from asyncsync.wire.tokens import HeadKey, KeyRing

from .s3_place import Hurry
from .trees import content, make, temporary

__all__ = ["CHUNK", "PeerPlace", "peer_place", "use_short_stalls", "use_small_chunks"]

CHUNK = 256 * KIB
EVERYTHING = frozenset(Operation)
_CHUNKED = (digest, engine, source, committed, stage, unfinished, local_store)
_CHUNKED_PEERS = (pushes, push_calls, read_calls, writer, framing)


def use_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of more than that travel in many chunks, as very large ones do."""
    for module in (*_CHUNKED, *_CHUNKED_PEERS):
        monkeypatch.setattr(module, "CHUNK_BYTES", CHUNK)


def use_short_stalls(monkeypatch: pytest.MonkeyPatch, stall_s: float) -> None:
    """A worker gives up a request in which nothing moves after `stall_s`."""
    monkeypatch.setattr(link, "_STALL_S", stall_s)


class PeerPlace:
    """Where a worker syncs to.

    Attributes:
        head: the one that runs now.
        proxy: stands before it; what is pushed to `location` goes through it.
        files: the source.
    """

    def __init__(
        self,
        tmp_path: Path,
        limits: Limits | None,
        clock: Clock | None,
        certificates: Certificates | None,
    ) -> None:
        self.tmp_path, self.root = tmp_path, tmp_path / "head"
        self._limits, self._clock = limits, clock
        self._certificates = certificates
        self._keys = KeyRing((HeadKey.new(),))
        self.port = 0
        self.files: dict[str, bytes] = {
            "a": b"one",
            "d/b": b"two",
            "empty": b"",
            "big": bytes(range(256)) * (5 * CHUNK // 512) + b"end",
        }
        self.sessions: list[sessions.Sessions[Any]] = []
        self.head: PeerServer
        self.proxy: FaultProxy

    @property
    def source(self) -> Path:
        return self.tmp_path / "source"

    @property
    def location(self) -> str:
        return f"{'peers' if self._certificates else 'peer'}://{self.proxy.address}/exp"

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.files.values()))

    async def start(self) -> None:
        """Start a head, on the same port as the one before."""
        tls = None
        if self._certificates is not None:
            tls = await to_thread.run_sync(server_context, self._certificates.file)
        self.head = PeerServer(
            str(self.root),
            port=self.port,
            keys=self._keys,
            limits=self._limits,
            clock=self._clock,
            tls=tls,
            authority=self._certificates.authority if self._certificates else "",
        )
        await self.head.__aenter__()
        self.port = int(self.head.address.rpartition(":")[2])

    async def restart(self) -> None:
        """The head ends, and another one starts in its place."""
        await self.head.aclose()
        await self.start()

    def join(self, monkeypatch: pytest.MonkeyPatch, scope: str = "", **token: Any) -> None:
        """Let workers in by the environment."""
        shown = self.head.token(scope, **{"operations": EVERYTHING, **token})
        known = self._certificates.fingerprint if self._certificates else None
        line = Join(address=self.proxy.address, token=shown, fingerprint=known).line()
        monkeypatch.setenv("ASYNCSYNC_JOIN", line.reveal())

    @asynccontextmanager
    async def syncer(self, **settings: Any) -> AsyncIterator[StorageSyncer]:
        async with StorageSyncer(
            isolation="loop",
            clock=settings.pop("clock", None) or Hurry(),
            max_requests=settings.pop("max_requests", 1),
            max_files=settings.pop("max_files", 1),
            **settings,
        ) as syncer:
            yield syncer

    async def up(self, tree: str = "tree", *, observe: Observer = ignore, **how: Any) -> Receipt:
        async with self.syncer(observe=observe) as syncer:
            receipt: Receipt = await syncer.sync_up(self.source, f"{self.location}/{tree}", **how)
            return receipt

    async def down(self, tree: str = "tree", *, to: str = "restored", **how: Any) -> Receipt:
        async with self.syncer() as syncer:
            return await syncer.sync_down(f"{self.location}/{tree}", self.tmp_path / to, **how)

    async def make(self, files: Mapping[str, bytes | None] | None = None) -> None:
        """Write the source."""
        await to_thread.run_sync(make, self.source, files or self.files)

    async def held(self, tree: str = "tree") -> dict[str, bytes | None]:
        """What the head has on its disk."""
        return await to_thread.run_sync(content, self.root / "exp" / tree)

    async def restored(self, name: str = "restored") -> dict[str, bytes | None]:
        return await to_thread.run_sync(content, self.tmp_path / name)

    async def left(self) -> list[str]:
        """What attempts have left on the disk of the head, or where a tree was restored."""
        return await to_thread.run_sync(temporary, self.tmp_path)

    @property
    def open(self) -> int:
        """How many reads and pushes heads hold open."""
        return sum(len(those.all) for those in self.sessions)


@cache
def _certificates() -> Certificates:
    """Those of all heads of this process."""
    folder = tempfile.mkdtemp()
    atexit.register(rmtree, folder, ignore_errors=True)
    return prepare_certificates(Path(folder) / "tls", ["127.0.0.1"], now=time.time())


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[sessions.Sessions[Any]]:
    """The sessions of all heads that are started from now on."""
    found: list[sessions.Sessions[Any]] = []
    begin = sessions.Sessions.__init__

    def noted(self: sessions.Sessions[Any], *args: Any, **settings: Any) -> None:
        begin(self, *args, **settings)
        found.append(self)

    monkeypatch.setattr(sessions.Sessions, "__init__", noted)
    return found


@asynccontextmanager
async def peer_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    limits: Limits | None = None,
    clock: Clock | None = None,
    secure: bool = False,
) -> AsyncIterator[PeerPlace]:
    """A head with nothing in it, over TLS if so, and a token for everything."""
    certificates = await to_thread.run_sync(_certificates) if secure else None
    place = PeerPlace(tmp_path, limits, clock, certificates)
    place.sessions = _watched(monkeypatch)
    await to_thread.run_sync(os.mkdir, place.root)
    await place.start()
    try:
        async with _proxy(place.port) as place.proxy:
            place.join(monkeypatch)
            await place.make()
            yield place
    finally:
        await place.head.aclose()


@asynccontextmanager
async def _proxy(port: int) -> AsyncIterator[FaultProxy]:
    """A proxy in a task of its own: a fixture is left in another one than it was entered in."""
    ready: asyncio.Future[FaultProxy] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def hold() -> None:
        async with FaultProxy("127.0.0.1", port) as proxy:
            ready.set_result(proxy)
            await stop.wait()

    task = asyncio.create_task(hold())
    try:
        yield await ready
    finally:
        stop.set()
        await task
