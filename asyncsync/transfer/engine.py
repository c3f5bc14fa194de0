"""Moving files: bounded in files, requests and bytes; largest first; no barrier between files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import anyio

from ..concurrency import ByteBudget, each, each_bounded
from ..digest import CHUNK_BYTES, chunk_count, tree_digest
from ..events import Moved, Observer
from ..manifest import FileEntry
from ..names import is_commit_file
from ..storage import Block, NewFile, TreeWriter
from ..units import KIB, MIB
from .failures import one_error
from .source import Moving, Piece

__all__ = ["Bounds", "Engine", "Outcome", "Source", "Tally"]

_SMALL_BYTES = 256 * KIB
_BATCH_FILES = 64
_BATCH_BYTES = 4 * MIB


class File(Protocol):
    """What the engine needs to know of a file."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


F_contra = TypeVar("F_contra", bound=File, contravariant=True)
F = TypeVar("F", bound=File)


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


class Tally:
    """Counts what has been moved and reports it; the totals grow when files are sent again."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self.moved_bytes = self.total_bytes = self.moved_files = self.total_files = 0

    def expect(self, files: Sequence[File]) -> None:
        """These are going to be moved."""
        self.total_files += len(files)
        self.total_bytes += sum(file.size_bytes for file in files)

    def settle(self) -> None:
        """Nothing more of what was expected will move: it is gone, or expected anew."""
        self.total_bytes, self.total_files = self.moved_bytes, self.moved_files

    def moved(self, path: str, size_bytes: int, *, files: int) -> None:
        """That many bytes have arrived, and completed that many files."""
        self.moved_bytes += size_bytes
        self.moved_files += files
        self._observe(
            Moved(
                path=path,
                size_bytes=size_bytes,
                moved_bytes=self.moved_bytes,
                total_bytes=self.total_bytes,
                moved_files=self.moved_files,
                total_files=self.total_files,
            )
        )


class _Use(Generic[F]):
    """What happens to bytes that were read: here they are only counted."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    async def part(self, file: F, offset: int, block: Block) -> None:
        done = offset + len(block.data) == file.size_bytes
        self._tally.moved(file.path, len(block.data), files=int(done))

    async def many(self, batch: Sequence[tuple[F, Piece]]) -> None:
        size = sum(file.size_bytes for file, _ in batch)
        self._tally.moved(batch[-1][0].path, size, files=len(batch))


class _Writing(_Use[F]):
    """They are written, then counted."""

    def __init__(self, writer: TreeWriter, tally: Tally) -> None:
        super().__init__(tally)
        self._writer = writer

    async def part(self, file: F, offset: int, block: Block) -> None:
        await self._writer.write(_new(file), offset, block)
        await super().part(file, offset, block)

    async def many(self, batch: Sequence[tuple[F, Piece]]) -> None:
        await self._writer.write_many([(_new(f), piece.block.data) for f, piece in batch])
        await super().many(batch)


class Engine:
    """The bounds that all transfers of one syncer share."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._budget = ByteBudget(bounds.memory_bytes)
        self._files = anyio.Semaphore(bounds.max_files)
        self._requests = anyio.Semaphore(bounds.max_requests)

    async def send(
        self, files: Sequence[F], source: Source[F], writer: TreeWriter, tally: Tally
    ) -> Outcome:
        """Read every file, and write it; frameworks' own commit files after all others.

        Returns:
            The entries of what was written, and the paths of files that moved under our eyes:
            nothing of them is in the tree.

        Raises:
            AsyncSyncError: the first failure; the others are cancelled. TransferError when
                several failed before they could be.
        """
        tally.expect(files)
        use = _Writing[F](writer, tally)
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

        with one_error():
            await each_bounded(self._bounds.max_files, batches(files), act)
        done = outcome.entries.keys() | set(outcome.moving)
        if left := [file.path for file in files if file.path not in done]:
            # A task group takes a CancelledError from inside for the end of that task.
            raise RuntimeError(f"a CancelledError was raised while {left[0]!r} was moved")

    async def _large(self, file: F, source: Source[F], use: _Use[F], outcome: Outcome) -> None:
        try:
            outcome.entries[file.path] = await self._by_chunks(file, source, use)
        except Moving:
            outcome.moving.append(file.path)

    async def _small(
        self, batch: list[F], source: Source[F], use: _Use[F], outcome: Outcome
    ) -> None:
        async with self._requests, self._budget.borrow(sum(f.size_bytes for f in batch)):
            read = list(zip(batch, await source.read_many(batch), strict=True))
            whole = [(file, piece) for file, piece in read if isinstance(piece, Piece)]
            if whole:
                await use.many(whole)
        outcome.entries |= {f.path: _entry(f, [piece.digest]) for f, piece in whole}
        outcome.moving += [file.path for file, piece in read if isinstance(piece, Moving)]

    async def _by_chunks(self, file: F, source: Source[F], use: _Use[F]) -> FileEntry:
        chunks = [""] * chunk_count(file.size_bytes)

        async def act(number: int) -> None:
            start = number * CHUNK_BYTES
            size = min(CHUNK_BYTES, file.size_bytes - start)
            async with self._requests, self._budget.buffer(size) as buffer:
                piece = await source.read(file, number, buffer)
                chunks[number] = piece.digest
                await use.part(file, start, piece.block)

        await each(range(len(chunks)), act, limit=self._bounds.max_requests)
        await source.confirm(file, chunks)
        return _entry(file, chunks)


def batches(files: Sequence[F]) -> Iterator[list[F]]:
    """Large files alone, the largest first; then small ones, many at a time. Pure."""
    batch: list[F] = []
    size = 0
    for file in sorted(files, key=lambda f: -f.size_bytes):
        if file.size_bytes > _SMALL_BYTES:
            yield [file]
            continue
        if batch and (len(batch) == _BATCH_FILES or size + file.size_bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size_bytes
    if batch:
        yield batch


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
