"""A committed tree as a source: every piece is compared with the manifest before it is used."""

from __future__ import annotations

from collections.abc import Sequence

from ..digest import CHUNK_BYTES, digest, zeros_digest
from ..errors import IntegrityError, quote
from ..manifest import FileEntry
from ..storage import Block, NewFile, TreeReader
from .pieces import Moving, Piece

__all__ = ["Committed", "Inspected", "Unverified"]


class Committed:
    """Reads files of a manifest; raises IntegrityError for bytes that it does not describe.

    They may have been changed on the way: so they are read twice before that is said.
    """

    def __init__(self, reader: TreeReader, where: str) -> None:
        self._reader, self._where = reader, where

    async def read_many(self, files: Sequence[FileEntry]) -> list[Piece | Moving]:
        blocks = await self._reader.read_many([_new(file) for file in files])
        pieces: list[Piece | Moving] = []
        for file, data in zip(files, blocks, strict=True):
            try:
                pieces.append(self._piece(file, 0, Block(data)))
            except IntegrityError:
                [again] = await self._reader.read_many([_new(file)])
                pieces.append(self._piece(file, 0, Block(again)))
        return pieces

    async def read(self, file: FileEntry, number: int, into: memoryview) -> Piece:
        start = number * CHUNK_BYTES
        end = min(file.size_bytes, start + CHUNK_BYTES)
        for last in (False, True):
            block = await self._reader.read(_new(file), start, end, into)
            try:
                return self._piece(file, number, block)
            except IntegrityError:
                if last:
                    raise
        raise AssertionError("unreachable: the loop returns or raises")

    async def confirm(self, file: FileEntry, chunks: Sequence[str]) -> None:
        """Nothing to do: every chunk was compared on its own."""

    def _piece(self, file: FileEntry, number: int, block: Block) -> Piece:
        expected = file.chunk_digest(number)
        hole = block.extents == ()
        found = zeros_digest(len(block.data)) if hole else digest(block.data)
        if found != expected:
            raise IntegrityError(
                f"{quote(file.path)} in {self._where} is damaged: chunk {number} does not have "
                "the digest it was committed with",
                side="source",
                paths=[file.path],
            )
        return Piece(block, found)


class Inspected(Committed):
    """The same, but what is damaged is noted and passed over, so that the rest is read too.

    Attributes:
        damaged: reasons by path.
    """

    def __init__(self, reader: TreeReader, where: str) -> None:
        super().__init__(reader, where)
        self.damaged: dict[str, str] = {}

    async def read_many(self, files: Sequence[FileEntry]) -> list[Piece | Moving]:
        try:
            return await super().read_many(files)
        except IntegrityError as exc:
            if len(files) == 1:
                return [self._note(files[0], exc)]
        return [(await self.read_many([file]))[0] for file in files]

    async def read(self, file: FileEntry, number: int, into: memoryview) -> Piece:
        try:
            return await super().read(file, number, into)
        except IntegrityError as exc:
            raise self._note(file, exc) from exc

    def _note(self, file: FileEntry, error: IntegrityError) -> Moving:
        self.damaged.setdefault(file.path, str(error))
        return Moving(file.path)


class Unverified:
    """Reads files of a tree without a manifest: nothing vouches for them."""

    def __init__(self, reader: TreeReader) -> None:
        self._reader = reader

    async def read_many(self, files: Sequence[NewFile]) -> list[Piece | Moving]:
        blocks = await self._reader.read_many(files)
        return [Piece(Block(data), digest(data)) for data in blocks]

    async def read(self, file: NewFile, number: int, into: memoryview) -> Piece:
        start = number * CHUNK_BYTES
        end = min(file.size_bytes, start + CHUNK_BYTES)
        block = await self._reader.read(file, start, end, into)
        return Piece(block, digest(block.data))

    async def confirm(self, file: NewFile, chunks: Sequence[str]) -> None:
        """Nothing to compare with."""


def _new(file: FileEntry) -> NewFile:
    return NewFile(file.path, file.size_bytes, file.mode, file.mtime_ns)
