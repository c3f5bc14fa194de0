"""Making one object of the parts of an upload: by compose, or by reading and writing them."""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

from ...concurrency import each
from ...errors import NotFoundError, quote
from ...units import MIB
from ..checksums import combine_crc32c
from ..objects import Condition, Data, Part, Upload
from ..parts import FIRST_JOINED, part_key
from .answers import Stored
from .bucket import Bucket

__all__ = ["Joining", "Whole", "chosen", "whole_of"]

_SOURCES = 32  # in one compose request
_CHUNK_BYTES = 16 * MIB

T = TypeVar("T")


class Whole(NamedTuple):
    """What an object made of others has to be; no checksum where one of theirs is unknown."""

    size_bytes: int
    crc32c: int | None


def whole_of(pieces: Iterable[Stored]) -> Whole:
    """What `pieces`, one after the other, make. Pure; thousands take some milliseconds."""
    size_bytes, crc = 0, _crc("AAAAAA==")
    for piece in pieces:
        own, own_bytes = _crc(piece.crc32c), piece.info.size_bytes
        crc = None if crc is None or own is None else combine_crc32c(crc, own, own_bytes)
        size_bytes += own_bytes
    return Whole(size_bytes, crc)


def _crc(text: str | None) -> int | None:
    try:
        return None if text is None else int.from_bytes(base64.b64decode(text), "big")
    except ValueError:
        return None


def chosen(upload: Upload, parts: Sequence[Part], kept: Iterable[Stored]) -> list[Stored]:
    """The temporary objects that hold `parts`, out of all that an upload has.

    Raises:
        NotFoundError: a part is missing, or another one was put in its place since.
    """
    names = {found.info.key: found for found in kept}
    found = [names.get(part_key(upload, part.number)) for part in parts]
    for part, one in zip(parts, found, strict=True):
        if one is None or one.info.tag != part.tag:
            raise NotFoundError(
                f"part {part.number} of {quote(upload.key)} is not the one stored; begin again"
            )
    return [one for one in found if one is not None]


class Joining:
    """One object in the making.

    Attributes:
        made: names of the objects that were made on the way.
    """

    def __init__(
        self,
        bucket: Bucket,
        upload: Upload,
        sources: Sequence[Stored],
        whole: Whole,
        condition: Condition | None,
    ) -> None:
        self._bucket, self._upload = bucket, upload
        self._sources, self._whole, self._condition = list(sources), whole, condition
        self.made: set[str] = set()

    # -- in the store

    async def by_compose(self) -> Stored:
        """Let the store do it, level by level where there are too many for one request.

        Errors as for `Bucket.compose`.
        """
        pieces = self._sources
        while len(pieces) > _SOURCES:
            pieces = await self._next_level(pieces)
        return await self._bucket.compose(
            self._upload.key,
            [piece.info.key for piece in pieces],
            *self._whole,
            condition=self._condition,
        )

    async def _next_level(self, pieces: Sequence[Stored]) -> list[Stored]:
        first = FIRST_JOINED + len(self.made)
        groups = [pieces[at : at + _SOURCES] for at in range(0, len(pieces), _SOURCES)]
        names = [part_key(self._upload, first + at) for at in range(len(groups))]
        self.made.update(names)
        done: dict[str, Stored] = {}

        async def make(item: tuple[str, Sequence[Stored]]) -> None:
            name, group = item
            sources = [piece.info.key for piece in group]
            done[name] = await self._bucket.compose(name, sources, *whole_of(group))

        await each(zip(names, groups, strict=True), make)
        return [done[name] for name in names]

    # -- through this machine

    async def by_copying(self) -> Stored:
        """Read the parts and write them as one, a chunk in memory at a time."""
        key, (size_bytes, crc) = self._upload.key, self._whole
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, size_bytes)))

        async def read(start: int, end: int) -> Data:
            await self._fill(buffer[: end - start], start)
            return buffer[: end - start]

        return await self._bucket.write_long(
            key, size_bytes, read, crc, self._condition, chunk_bytes=len(buffer)
        )

    async def _fill(self, buffer: memoryview, start: int) -> None:
        """Bytes of the whole, from `start` on, into all of `buffer`."""
        ends = list(accumulate(piece.info.size_bytes for piece in self._sources))
        at = 0
        while at < len(buffer):
            index = bisect_right(ends, start + at)
            info = self._sources[index].info
            inside = start + at - (ends[index] - info.size_bytes)
            count = min(info.size_bytes - inside, len(buffer) - at)
            await self._bucket.read(
                info.key, inside, inside + count, tag=info.tag, into=buffer[at : at + count]
            )
            at += count
