"""Reading the files of a tree in an object store."""

from __future__ import annotations

from collections.abc import Sequence

from ...concurrency import each
from ...errors import IntegrityError, NotFoundError, PreconditionError, quote
from ..objects import Fetched
from ..trees import Block, NewFile
from .place import Place

__all__ = ["CommittedReader"]


class CommittedReader:
    """See TreeReader. Objects are found by name; the caller compares digests.

    All ranges of a file come from the object that the first one came from.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._tags: dict[str, str] = {}

    async def read(
        self, file: NewFile, start: int, end: int, into: memoryview | None = None
    ) -> Block:
        data = (await self._get(file, start, end, into)).data
        if len(data) < end - start:
            raise self._wrong(file, f"ends after {start + len(data)} of {file.size_bytes} bytes")
        return Block(data)

    async def read_many(self, files: Sequence[NewFile]) -> list[bytes]:
        found: dict[str, bytes] = {}

        async def read(file: NewFile) -> None:
            found[file.path] = bytes((await self._get(file, 0, file.size_bytes, None)).data)

        await each(files, read)
        return [found[file.path] for file in files]

    async def _get(self, file: NewFile, start: int, end: int, into: memoryview | None) -> Fetched:
        key, ranged = self._place.key(file.path), end - start < file.size_bytes
        tag = self._tags.get(file.path) if ranged else None
        try:
            fetched = await self._place.objects.get(key, start, end, tag=tag, into=into)
        except NotFoundError:
            raise self._wrong(file, "is missing") from None
        except PreconditionError:
            raise self._wrong(file, "was replaced while it was read") from None
        if ranged:
            self._tags.setdefault(file.path, fetched.info.tag)
        if fetched.info.size_bytes != file.size_bytes:
            raise self._wrong(
                file, f"has {fetched.info.size_bytes} bytes, not {file.size_bytes} as committed"
            )
        return fetched

    def _wrong(self, file: NewFile, what: str) -> IntegrityError:
        return IntegrityError(
            f"{quote(file.path)} in {self._place.where} {what}", side="source", paths=[file.path]
        )
