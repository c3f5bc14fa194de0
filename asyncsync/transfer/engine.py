"""Moving files: bounded in files, requests and bytes; largest first; no barrier between files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, NamedTuple, Protocol, TypeVar

import anyio

from ..clock import Clock, SystemClock
from ..concurrency import ByteBudget, each, each_bounded
from ..digest import CHUNK_BYTES, chunk_count, tree_digest
from ..manifest import FileEntry
from ..names import is_commit_file
from ..storage import File, NewFile, Stored, TreeWriter
from ..units import KIB, MIB
from .failures import one_error
from .pieces import Moving, Piece
from .tally import STALL_S, Tally

__all__ = ["Arrived", "Bounds", "Engine", "Note", "Outcome", "Source"]

_SMALL_BYTES = 256 * KIB
_BATCH_FILES = 64, 128  # at least and at most, so that several are under way of any tree
_BATCHES = 16
_BATCH_BYTES = 4 * MIB
_SLOW_LINK = 4 * MIB  # bytes per second; a slower one looks as if it stood still


F_contra = TypeVar("F_contra", bound=File, contravariant=True)
F = TypeVar("F", bound=File)


Note = Callable[[Sequence[tuple[F, int, Stored]]], Awaitable[None]]
"""Hears which chunks of which files have been stored."""


class Arrived(NamedTuple):
    """What an interrupted attempt has stored of a file.

    Attributes:
        chunks: their digests, by number.
        current: the source is known to hold the same; otherwise it is read and compared.
    """

    chunks: Mapping[int, str]
    current: bool


_NOTHING: Mapping[str, Arrived] = MappingProxyType({})


class Source(Protocol[F_contra]):
    """Where bytes come from, each piece with its digest."""

    async def read_many(self, files: Sequence[F_contra]) -> list[Piece | Moving]: ...
    async def read(self, file: F_contra, number: int, into: memoryview) -> Piece: ...
    async def confirm(self, file: F_contra, chunks: Sequence[str]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one engine may use at once."""

    memory_bytes: int = 256 * MIB
    max_files: int = 64
    max_requests: int = 32


@dataclass
class Outcome:
    """What became of the files: an entry for each that was read, or that it was moving."""

    entries: dict[str, FileEntry] = field(default_factory=dict)
    moving: list[str] = field(default_factory=list)


class _Use(Generic[F]):
    """What happens to bytes that were read: here they are only counted."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def arrived(self, file: F) -> Arrived | None:
        """What need not be moved of a file."""
        del file
        return None

    async def discard(self, file: F) -> None:
        """Forget it: the source holds another version by now."""

    async def finish(self, file: F, chunks: Sequence[str]) -> None:
        """All chunks of a file that moved alone have been used."""

    async def part(self, file: F, number: int, piece: Piece) -> None:
        size = len(piece.block.data)
        done = number * CHUNK_BYTES + size == file.size_bytes
        self.tally.moved(file.path, size, files=int(done))

    async def many(self, batch: Sequence[tuple[F, Piece]]) -> None:
        size = sum(file.size_bytes for file, _ in batch)
        self.tally.moved(batch[-1][0].path, size, files=len(batch))


class _Writing(_Use[F]):
    """They are written, noted, and counted."""

    def __init__(
        self,
        writer: TreeWriter,
        tally: Tally,
        arrived: Mapping[str, Arrived],
        note: Note[F] | None,
    ) -> None:
        super().__init__(tally)
        self._writer, self._arrived, self._note = writer, arrived, note

    def arrived(self, file: F) -> Arrived | None:
        return self._arrived.get(file.path)

    async def discard(self, file: F) -> None:
        await self._writer.discard(file.path)

    async def finish(self, file: F, chunks: Sequence[str]) -> None:
        token = await self._writer.finish(_new(file))
        if token and self._note is not None:
            await self._note([(file, len(chunks) - 1, Stored(chunks[-1], token))])

    async def part(self, file: F, number: int, piece: Piece) -> None:
        token = await self._writer.write(_new(file), number * CHUNK_BYTES, piece.block)
        if self._note is not None:
            await self._note([(file, number, Stored(piece.digest, token))])
        await super().part(file, number, piece)

    async def many(self, batch: Sequence[tuple[F, Piece]]) -> None:
        tokens = await self._writer.write_many([(_new(f), piece.block.data) for f, piece in batch])
        if self._note is not None:
            done = zip(batch, tokens, strict=True)
            await self._note([(f, 0, Stored(piece.digest, token)) for (f, piece), token in done])
        await super().many(batch)


class Engine:
    """The bounds that all transfers of one syncer share.

    Args:
        clock: by which nothing arrives any more.
        rate: bytes per second that may move.
    """

    def __init__(
        self, bounds: Bounds, clock: Clock | None = None, rate: float | None = None
    ) -> None:
        self._bounds, self._clock = bounds, clock or SystemClock()
        # Parts count when they are whole: on a slow link, all that is in flight may take long.
        self._stall_s = STALL_S + 2 * bounds.memory_bytes / (rate or _SLOW_LINK)
        self._budget = ByteBudget(bounds.memory_bytes)
        self._files = anyio.Semaphore(bounds.max_files)
        self._requests = anyio.Semaphore(bounds.max_requests)

    async def send(
        self,
        files: Sequence[F],
        source: Source[F],
        writer: TreeWriter,
        tally: Tally,
        *,
        arrived: Mapping[str, Arrived] = _NOTHING,
        note: Note[F] | None = None,
    ) -> Outcome:
        """Read every file, and write it; frameworks' own commit files after all others.

        Args:
            arrived: what `writer` holds already, by path: that is not written again.
            note: hears what is written.

        Returns:
            The entries of what was written, and the paths of files that moved under our eyes:
            nothing of them is in the tree.

        Raises:
            AsyncSyncError: the first failure; the others are cancelled. TransferError when
                several failed before they could be.
        """
        tally.expect(files)
        use = _Writing[F](writer, tally, arrived, note)
        outcome = Outcome()
        for group in (False, True):
            chosen = [file for file in files if is_commit_file(file.path) is group]
            await self._move(chosen, source, use, outcome)
        for path in outcome.moving:
            await writer.discard(path)
        if outcome.moving:
            tally.settle()
        return outcome

    async def check(self, files: Sequence[F], source: Source[F], tally: Tally) -> Outcome:
        """Read and hash every file, writing nothing. Returns and raises as `send`."""
        tally.expect(files)
        outcome = Outcome()
        await self._move(files, source, _Use[F](tally), outcome)
        return outcome

    async def _move(
        self, files: Sequence[F], source: Source[F], use: _Use[F], outcome: Outcome
    ) -> None:
        async def act(batch: list[F]) -> None:
            async with self._files:
                if batch[0].size_bytes > _SMALL_BYTES:
                    await self._large(batch[0], source, use, outcome)
                else:
                    await self._small(batch, source, use, outcome)

        before = len(outcome.entries) + len(outcome.moving)
        async with use.tally.watched(self._clock, self._stall_s):
            with one_error():
                await each_bounded(self._bounds.max_files, batches(files), act)
        if len(outcome.entries) + len(outcome.moving) < before + len(files):
            # A task group takes a CancelledError from inside for the end of that task.
            done = outcome.entries.keys() | set(outcome.moving)
            left = next(file.path for file in files if file.path not in done)
            raise RuntimeError(f"a CancelledError was raised while {left!r} was moved")

    async def _large(self, file: F, source: Source[F], use: _Use[F], outcome: Outcome) -> None:
        try:
            held = await self._arrived(file, source, use)
            outcome.entries[file.path] = await self._by_chunks(file, source, use, held)
        except Moving:
            outcome.moving.append(file.path)

    async def _small(
        self, batch: list[F], source: Source[F], use: _Use[F], outcome: Outcome
    ) -> None:
        batch = [f for f in batch if not await self._has_arrived(f, source, use, outcome)]
        if not batch:
            return
        async with self._requests, self._budget.borrow(sum(f.size_bytes for f in batch)):
            with use.tally.under_way(batch[0].path, None):
                read = list(zip(batch, await source.read_many(batch), strict=True))
                whole = [(file, piece) for file, piece in read if isinstance(piece, Piece)]
                if whole:
                    await use.many(whole)
        outcome.entries |= {f.path: _entry(f, [piece.digest]) for f, piece in whole}
        outcome.moving += [file.path for file, piece in read if isinstance(piece, Moving)]

    async def _by_chunks(
        self, file: F, source: Source[F], use: _Use[F], held: Mapping[int, str]
    ) -> FileEntry:
        count = chunk_count(file.size_bytes)
        chunks = [held.get(number, "") for number in range(count)]

        async def act(number: int) -> None:
            async with self._chunk(file, number, source, use.tally) as piece:
                chunks[number] = piece.digest
                await use.part(file, number, piece)

        whole = len(held) == count
        for number in held:
            size, last = _chunk_bytes(file, number), number == count - 1
            use.tally.resumed(file.path, size, last=last, whole=whole)
        missing = [number for number, digest in enumerate(chunks) if not digest]
        await each(missing, act, limit=self._bounds.max_requests)
        await source.confirm(file, chunks)
        await use.finish(file, chunks)
        return _entry(file, chunks)

    @asynccontextmanager
    async def _chunk(
        self, file: F, number: int, source: Source[F], tally: Tally
    ) -> AsyncIterator[Piece]:
        size = _chunk_bytes(file, number)
        part = number if file.size_bytes > CHUNK_BYTES else None
        async with self._requests, self._budget.buffer(size) as buffer:
            with tally.under_way(file.path, part):
                yield await source.read(file, number, buffer)

    # -- going on where an interrupted attempt was

    async def _has_arrived(
        self, file: F, source: Source[F], use: _Use[F], outcome: Outcome
    ) -> bool:
        """Whether a small file is there; its entry is in `outcome` then."""
        if use.arrived(file) is None:
            return False
        try:
            held = await self._arrived(file, source, use)
            if held:
                outcome.entries[file.path] = await self._by_chunks(file, source, use, held)
        except Moving:
            outcome.moving.append(file.path)
            return True
        return bool(held)

    async def _arrived(self, file: F, source: Source[F], use: _Use[F]) -> Mapping[int, str]:
        """The digests of the chunks that need not be moved.

        Raises:
            Moving: the file changed while it was compared.
        """
        held = use.arrived(file)
        if held is None:
            return {}
        if not held.current and not await self._is_same(file, source, held.chunks, use.tally):
            await use.discard(file)
            return {}
        return held.chunks

    async def _is_same(
        self, file: F, source: Source[F], chunks: Mapping[int, str], tally: Tally
    ) -> bool:
        same: list[bool] = []

        async def compare(number: int) -> None:
            async with self._chunk(file, number, source, tally) as piece:
                same.append(piece.digest == chunks[number])

        await each(chunks, compare, limit=self._bounds.max_requests)
        return all(same)


def batches(files: Sequence[F]) -> Iterator[list[F]]:
    """Large files alone, the largest first; then small ones, many at a time. Pure."""
    batch: list[F] = []
    size, (fewest, most) = 0, _BATCH_FILES
    most = min(most, max(fewest, len(files) // _BATCHES))
    for file in sorted(files, key=lambda f: f.size_bytes, reverse=True):
        if file.size_bytes > _SMALL_BYTES:
            yield [file]
            continue
        if batch and (len(batch) == most or size + file.size_bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size_bytes
    if batch:
        yield batch


def _chunk_bytes(file: File, number: int) -> int:
    return min(CHUNK_BYTES, file.size_bytes - number * CHUNK_BYTES)


def _new(file: File) -> NewFile:
    return NewFile(file.path, file.size_bytes, file.mode, file.mtime_ns)


def _entry(file: File, chunks: Sequence[str]) -> FileEntry:
    return FileEntry(
        path=file.path,
        size_bytes=file.size_bytes,
        digest=tree_digest(chunks),
        mode=file.mode,
        mtime_ns=file.mtime_ns,
        chunks=tuple(chunks) if len(chunks) > 1 else (),
    )
