"""Reading the files of a tree in an object store."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import IntegrityError, NotFoundError, quote
from ..trees import Block, NewFile
from .place import Place, each

__all__ = ["CommittedReader"]


class CommittedReader:
    """See TreeReader. Objects are found by name; the caller compares digests."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def read(self, file: NewFile, start: int, end: int) -> Block:
        # One byte more than listed shows an object that has grown.
        data = await self._get(file, start, end + (end == file.size_bytes))
        if len(data) < end - start:
            raise self._wrong(file, f"ends after {start + len(data)} of {file.size_bytes} bytes")
        if len(data) > end - start:
            raise self._wrong(file, f"is longer than the {file.size_bytes} bytes committed")
        return Block(data)

    async def read_many(self, files: Sequence[NewFile]) -> list[bytes]:
        found: dict[str, bytes] = {}

        async def read(file: NewFile) -> None:
            # One byte more than listed shows an object that has grown.
            data = await self._get(file, 0, file.size_bytes + 1)
            if len(data) != file.size_bytes:
                raise self._wrong(file, f"is not {file.size_bytes} bytes long as committed")
            found[file.path] = data

        await each(files, read)
        return [found[file.path] for file in files]

    async def _get(self, file: NewFile, start: int, end: int) -> bytes:
        try:
            return await self._place.objects.get(self._place.key(file.path), start, end)
        except NotFoundError:
            raise self._wrong(file, "is missing") from None

    def _wrong(self, file: NewFile, what: str) -> IntegrityError:
        return IntegrityError(
            f"{quote(file.path)} in {self._place.where} {what}", side="source", paths=[file.path]
        )
