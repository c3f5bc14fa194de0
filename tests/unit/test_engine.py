"""The engine: its bounds hold, its order is kept, and failures come out as what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import anyio
import anyio.lowlevel
import pytest

from asyncsync.digest import CHUNK_BYTES, chunk_count, tree_digest
from asyncsync.errors import AccessDeniedError, DeviceError, TransferError
from asyncsync.events import Event, Moved, ignore
from asyncsync.manifest import Manifest
from asyncsync.storage import Block, Durability, NewFile
from asyncsync.transfer import Bounds, Engine, Outcome, Tally
from asyncsync.transfer.engine import batches
from asyncsync.transfer.source import Moving, Piece

KIB, MIB = 1024, 1024**2
SMALL = 256 * KIB
_ZEROS = memoryview(bytes(CHUNK_BYTES))
_DIGEST = "0" * 64


class World:
    """A source and a writer in one, which count what is in flight between them.

    Attributes:
        most_files, most_requests, most_bytes: the highest that was ever in flight.
        begun: paths, in the order in which their first byte was read.
        written: how many bytes of each path have been written.
        discarded: paths whose parts the engine gave up.
        failing, moving: paths whose every read fails so, or finds another version.
    """

    def __init__(
        self, failing: dict[str, Exception] | None = None, moving: Iterable[str] = ()
    ) -> None:
        self.failing, self.moving = failing or {}, set(moving)
        self.most_files = self.most_requests = self.most_bytes = 0
        self.begun: list[str] = []
        self.batches: list[list[str]] = []
        self.written: dict[str, int] = {}
        self.discarded: list[str] = []
        self.alone: list[str] = []
        self._files: dict[str, int] = {}
        self._requests: list[int] = []

    # -- the source

    async def read_many(self, files: Sequence[NewFile]) -> list[Piece | Moving]:
        self.batches.append([file.path for file in files])
        self._files[files[0].path] = len(files)
        await self._enter(files[0], sum(file.size_bytes for file in files))
        self._fail(files[0])
        found = [Moving(f.path) if f.path in self.moving else _piece(f.size_bytes) for f in files]
        if all(isinstance(piece, Moving) for piece in found):
            self._leave(files[0], sum(file.size_bytes for file in files))
        return found

    async def read(self, file: NewFile, number: int) -> Piece:
        self._files.setdefault(file.path, chunk_count(file.size_bytes))
        size = min(CHUNK_BYTES, file.size_bytes - number * CHUNK_BYTES)
        await self._enter(file, size)
        self._fail(file)
        if file.path in self.moving and number:
            raise Moving(file.path)
        return _piece(size)

    async def confirm(self, file: NewFile, chunks: Sequence[str]) -> None:
        assert list(chunks) == [_DIGEST] * chunk_count(file.size_bytes)
        self._files.pop(file.path)

    # -- the writer

    async def write(self, file: NewFile, offset: int, block: Block) -> None:
        await _moment()
        self.written[file.path] = self.written.get(file.path, 0) + len(block.data)
        self._leave(file, len(block.data))

    async def write_many(self, files: Sequence[tuple[NewFile, bytes | bytearray]]) -> None:
        await _moment()
        self.written |= {file.path: len(data) for file, data in files}
        batch = next(b for b in self.batches if files[0][0].path in b)
        self._files.pop(batch[0])
        self._requests.pop()

    async def discard(self, path: str) -> None:
        self.discarded.append(path)

    async def commit(self, manifest: Manifest) -> Durability:
        raise AssertionError("committing is not the engine's affair")

    # -- counting

    async def _enter(self, file: NewFile, size_bytes: int) -> None:
        if file.path not in self.begun:
            self.begun.append(file.path)
        self._requests.append(size_bytes)
        self.most_files = max(self.most_files, len(self._files))
        self.most_requests = max(self.most_requests, len(self._requests))
        self.most_bytes = max(self.most_bytes, sum(self._requests))
        if len(self._requests) == 1:
            self.alone.append(file.path)
        await _moment()

    def _leave(self, file: NewFile, size_bytes: int) -> None:
        self._requests.remove(size_bytes)

    def _fail(self, file: NewFile) -> None:
        if file.path in self.failing:
            raise self.failing[file.path]
