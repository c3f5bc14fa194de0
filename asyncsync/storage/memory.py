"""MemoryObjects: the reference ObjectStore, in this process's memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import cache
from itertools import count

from anyio.lowlevel import checkpoint

from ..errors import NotFoundError, PermanentError, PreconditionError, quote
from .objects import (
    Capabilities,
    Condition,
    Data,
    Examined,
    Fetched,
    ObjectInfo,
    Part,
    Upload,
    levels,
)

__all__ = ["MemoryObjects", "memory_objects"]


class MemoryObjects:
    """Objects in a dictionary, with every condition and multipart rule enforced.

    Args:
        capabilities: what it declares; a condition that it does not declare is not looked at,
            as in stores that lack it.
    """

    def __init__(self, capabilities: Capabilities | None = None) -> None:
        self.capabilities = capabilities or Capabilities(assured=True)
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._uploads: dict[Upload, dict[int, tuple[bytes, str]]] = {}
        self._tags = map(str, count(1))

    async def head(self, key: str) -> ObjectInfo:
        await checkpoint()
        return self._info(key)

    async def get(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        tag: str | None = None,
        into: memoryview | None = None,
    ) -> Fetched:
        await checkpoint()
        info = self._info(key)
        if tag is not None and tag != info.tag:
            raise PreconditionError(f"object {quote(key)} is another one by now; read it again")
        data = self._objects[key][0][start:end]
        if into is None:
            return Fetched(info, data)
        into[: len(data)] = data
        return Fetched(info, into[: len(data)])

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        await checkpoint()
        caps = self.capabilities
        if len(key.encode()) > caps.max_key_bytes:
            raise PermanentError(
                f"key {quote(key[:200])} is longer than {caps.max_key_bytes} bytes"
            )
        if len(data) > caps.max_put_bytes:
            raise PermanentError(f"object {quote(key)} is too large for one put; use an upload")
        self._check(key, condition, works=caps.create_only, matches=caps.if_match)
        return self._store(key, bytes(data))

    async def delete(self, key: str, *, tag: str | None = None) -> None:
        await checkpoint()
        if key in self._objects and tag is not None:
            self._check(key, Condition(tag=tag), works=True, matches=self.capabilities.if_match)
        self._objects.pop(key, None)

    async def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await checkpoint()
        for key in sorted(k for k in self._objects if k.startswith(prefix)):
            if key in self._objects:
                yield self._info(key)

    async def scan_level(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for info in levels(prefix, [info async for info in self.scan(prefix)]):
            yield info

    async def create_upload(self, key: str) -> Upload:
        await checkpoint()
        upload = Upload(key, next(self._tags))
        self._uploads[upload] = {}
        return upload

    async def put_part(self, upload: Upload, number: int, data: Data) -> Part:
        await checkpoint()
        if not 1 <= number <= self.capabilities.max_parts:
            raise PermanentError(
                f"part {number} is not between 1 and {self.capabilities.max_parts}"
            )
        tag = next(self._tags)
        self._parts(upload)[number] = (bytes(data), tag)
        return Part(number, tag, len(data))

    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        await checkpoint()
        data = self._joined(upload, parts)
        works = self.capabilities.multipart_conditions
        self._check(upload.key, condition, works=works, matches=works)
        del self._uploads[upload]
        return self._store(upload.key, data)

    async def abort_upload(self, upload: Upload) -> None:
        await checkpoint()
        self._uploads.pop(upload, None)

    async def scan_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        await checkpoint()
        for upload in [u for u in self._uploads if u.key.startswith(prefix)]:
            yield upload

    async def examine(self) -> Examined:
        await checkpoint()
        return Examined()

    async def aclose(self) -> None:
        """Nothing to let go of; the objects stay."""

    # -- helpers

    def _info(self, key: str) -> ObjectInfo:
        try:
            data, tag = self._objects[key]
        except KeyError:
            raise NotFoundError(f"no object {quote(key)} in memory; check the spelling") from None
        return ObjectInfo(key, len(data), tag)

    def _store(self, key: str, data: bytes) -> ObjectInfo:
        self._objects[key] = (data, next(self._tags))
        return self._info(key)

    def _check(self, key: str, condition: Condition | None, *, works: bool, matches: bool) -> None:
        if condition is None:
            return
        found = self._objects[key][1] if key in self._objects else None
        if condition.absent and works and found is not None:
            raise PreconditionError(f"object {quote(key)} exists already; read it and compare")
        if condition.tag is not None and matches and found != condition.tag:
            raise PreconditionError(f"object {quote(key)} is another one by now; read it again")

    def _parts(self, upload: Upload) -> dict[int, tuple[bytes, str]]:
        try:
            return self._uploads[upload]
        except KeyError:
            raise NotFoundError(f"no upload of {quote(upload.key)}; begin it again") from None

    def _joined(self, upload: Upload, parts: Sequence[Part]) -> bytes:
        stored = self._parts(upload)
        numbers = [part.number for part in parts]
        if not parts or numbers != sorted(set(numbers)):
            raise PermanentError(f"the parts of {quote(upload.key)} are not in order; list them so")
        if any(stored.get(part.number, (b"", ""))[1] != part.tag for part in parts):
            raise NotFoundError(
                f"a part of {quote(upload.key)} is not the one stored; begin the upload again"
            )
        if any(part.size_bytes < self.capabilities.min_part_bytes for part in parts[:-1]):
            raise PermanentError(
                f"a part of {quote(upload.key)} is too small; only the last may be"
            )
        return b"".join(stored[number][0] for number in numbers)


@cache
def memory_objects(namespace: str) -> MemoryObjects:
    """The store behind `memory://namespace`: the same one for the life of the process."""
    del namespace  # it is the key of the cache
    return MemoryObjects()
