"""GcsObjects: a bucket of Google Cloud Storage as an ObjectStore."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress

from ...clock import Clock
from ...concurrency import Threads, each
from ...errors import (
    AccessDeniedError,
    ConfigError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    RefusedError,
    TransientError,
    quote,
    quote_some,
)
from ...units import MIB
from ..objects import Capabilities, Condition, Data, Examined, Fetched, ObjectInfo, Part, Upload
from ..parts import (
    MARKER,
    MAX_KEY_BYTES,
    MAX_PARTS,
    check_part_number,
    check_parts,
    is_hidden,
    new_upload,
    part_key,
    parts_prefix,
    uploads_among,
)
from .answers import DroppedError, Stored, UnsupportedError
from .bucket import Bucket
from .connection import Connection
from .joining import Joining, chosen, whole_of

__all__ = ["GcsObjects"]

_OPTIONS = {"endpoint_url"}
_READ_BYTES = 16 * MIB  # of an object whose size is not known yet, or while parts are joined


class GcsObjects:
    """One bucket. Making it does no I/O; the first request connects.

    A multipart upload is kept as temporary objects beside the key (see `parts`), which `compose`
    then joins; where the server lacks that, they are read and written as one.

    Args:
        options: `endpoint_url`, another server that speaks the JSON API and wants credentials.
        max_requests: connections at most.

    Raises:
        ConfigError: an option that there is not.
    """

    def __init__(
        self,
        bucket: str,
        options: Mapping[str, str],
        *,
        threads: Threads,
        clock: Clock,
        max_requests: int = 32,
    ) -> None:
        if unknown := options.keys() - _OPTIONS:
            raise ConfigError(f"gs:// has no option {quote_some(sorted(unknown))}; leave it out")
        self._connection = Connection(
            options.get("endpoint_url"), threads=threads, clock=clock, max_requests=max_requests
        )
        self._bucket = Bucket(bucket, self._connection, threads=threads, clock=clock)
        self._threads = threads
        self._composes = True

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            assured=self._connection.at_google,
            min_part_bytes=1,
            max_parts=MAX_PARTS,
            max_key_bytes=MAX_KEY_BYTES,
            refused_characters="\r\n",
        )

    # -- objects

    async def head(self, key: str) -> ObjectInfo:
        return (await self._bucket.describe(key)).info

    async def get(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        tag: str | None = None,
        into: memoryview | None = None,
    ) -> Fetched:
        if end is not None and end <= start:
            return await self._bucket.nothing(key, tag)
        limit = start + (_READ_BYTES if into is None else len(into))
        first_end = limit if end is None else min(limit, end)
        first = await self._bucket.read(key, start, first_end, tag=tag, into=into)
        size = first.info.size_bytes
        end = size if end is None else min(size, end)
        if into is not None or end <= first_end:
            return first
        whole = memoryview(bytearray(end - start))
        whole[: len(first.data)] = first.data
        rest = whole[len(first.data) :]
        await self._bucket.read(key, first_end, end, tag=first.info.tag, into=rest)
        return Fetched(first.info, whole)

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        self._check_key(key)
        if len(data) > self.capabilities.max_put_bytes:
            raise PermanentError(f"object {quote(key)} is too large for one put; use an upload")
        return (await self._bucket.write(key, data, condition)).info

    async def delete(self, key: str, *, tag: str | None = None) -> None:
        await self._bucket.delete(key, tag=tag)

    def _check_key(self, key: str) -> None:
        if set(self.capabilities.refused_characters).intersection(key):
            raise RefusedError(
                f"Google Cloud Storage keeps no line breaks in names; rename {quote(key[:200])}"
            )
        if len(key.encode()) > MAX_KEY_BYTES:
            raise PermanentError(f"key {quote(key[:200])} is longer than {MAX_KEY_BYTES} bytes")

    # -- listings

    async def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async with aclosing(self._bucket.pages(prefix)) as pages:
            async for page in pages:
                for found in page:
                    if not is_hidden(found.info.key):
                        yield found.info

    async def scan_level(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async with aclosing(self._bucket.pages(prefix, delimiter="/")) as pages:
            async for page in pages:
                for found in page:
                    if not is_hidden(found.info.key):
                        yield found.info

    async def scan_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        names: list[str] = []
        async with aclosing(self._bucket.pages(prefix)) as pages:
            async for page in pages:
                names += [found.info.key for found in page if is_hidden(found.info.key)]
        for upload in uploads_among(names):
            yield upload

    # -- multipart

    async def create_upload(self, key: str) -> Upload:
        self._check_key(key)
        upload = new_upload(key)
        await self._bucket.write(part_key(upload, MARKER), b"")
        return upload

    async def put_part(self, upload: Upload, number: int, data: Data) -> Part:
        check_part_number(number)
        done = await self._bucket.write(part_key(upload, number), data)
        return Part(number, done.info.tag, len(data))

    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        check_parts(upload.key, parts)
        kept = await self._temporary(upload)
        if not kept:
            raise NotFoundError(f"no upload of {quote(upload.key)}; begin it again")
        sources = chosen(upload, parts, kept)
        whole = await self._threads.run(whole_of, sources)
        joining = Joining(self._bucket, upload, sources, whole, condition)
        done = await self._joined(joining)
        leftovers = {found.info.key for found in kept} | joining.made
        with suppress(TransientError):  # the object is there; `scan_uploads` shows what is left
            await each(leftovers, self._bucket.delete)
        return done.info

    async def abort_upload(self, upload: Upload) -> None:
        try:
            kept = await self._temporary(upload)
        except NotFoundError:
            return
        await each([found.info.key for found in kept], self._bucket.delete)

    async def _temporary(self, upload: Upload) -> list[Stored]:
        async with aclosing(self._bucket.pages(parts_prefix(upload))) as pages:
            return [found async for page in pages for found in page if is_hidden(found.info.key)]

    async def _joined(self, joining: Joining) -> Stored:
        if self._composes:
            try:
                return await joining.by_compose()
            except (DroppedError, NotFoundError, PermanentError) as exc:
                if not await self._lacks_compose(exc):
                    raise
                self._composes = False
        return await joining.by_copying()

    async def _lacks_compose(self, exc: Exception) -> bool:
        """Emulators show in many ways that they cannot compose."""
        if isinstance(exc, PreconditionError | AccessDeniedError):
            return False
        return isinstance(exc, UnsupportedError) or await self._connection.emulated()

    # -- the rest

    async def examine(self) -> Examined:
        return await self._bucket.examine()

    async def aclose(self) -> None:
        await self._connection.aclose()
