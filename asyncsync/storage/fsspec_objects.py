"""FsspecObjects: any file system that fsspec knows as an ObjectStore, one thread per call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from threading import Lock
from typing import Any, TypeVar

from ..concurrency import Threads, quietly
from ..units import MIB
from .fsspec_connection import connect, translated
from .fsspec_files import Files
from .objects import Capabilities, Condition, Data, Examined, Fetched, ObjectInfo, Part, Upload
from .parts import (
    MAX_KEY_BYTES,
    MAX_PARTS,
    check_part_number,
    check_parts,
    is_hidden,
    new_upload,
)

__all__ = ["FsspecObjects"]

T = TypeVar("T")

_JOIN_BYTES = 16 * MIB


class FsspecObjects:
    """Objects on a file system, without conditions.

    Constructing does no I/O and imports nothing; the first call connects.

    Args:
        scheme: the protocol, as fsspec calls it.
        authority: bucket, container, host or, for paths, the directory that holds the objects.
        threads: where the calls are made; one connection must serve several threads.
        filesystem: the fsspec file system to use, in which `authority` is a path; it is not closed.
    """

    capabilities = Capabilities(
        create_only=False,
        if_match=False,
        multipart_conditions=False,
        min_part_bytes=1,
        max_parts=MAX_PARTS,
        max_key_bytes=MAX_KEY_BYTES,
    )

    def __init__(
        self, scheme: str, authority: str, *, threads: Threads, filesystem: Any = None
    ) -> None:
        self._scheme, self._authority, self._threads = scheme, authority, threads
        self._given = filesystem
        self._files: Files | None = None
        self._lock = Lock()

    async def head(self, key: str) -> ObjectInfo:
        return await self._do(key, lambda files: files.info(key))

    async def get(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        tag: str | None = None,
        into: memoryview | None = None,
    ) -> Fetched:
        return await self._do(key, lambda files: files.read(key, start, end, tag, into))

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        return await self._do(key, lambda files: files.put(key, data))

    async def delete(self, key: str, *, tag: str | None = None) -> None:
        await self._do(key, lambda files: files.remove(key))

    async def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for info in await self._do(prefix, lambda files: files.walk(prefix)):
            if not is_hidden(info.key):
                yield info

    async def scan_level(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for info in await self._do(prefix, lambda files: files.level(prefix)):
            yield info

    async def create_upload(self, key: str) -> Upload:
        upload = new_upload(key)
        await self._do(key, lambda files: files.create_upload(upload))
        return upload

    async def put_part(self, upload: Upload, number: int, data: Data) -> Part:
        check_part_number(number)
        return await self._do(upload.key, lambda files: files.put_part(upload, number, data))

    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        check_parts(upload.key, parts)
        key, size_bytes = upload.key, sum(part.size_bytes for part in parts)
        joined, home = await self._do(key, lambda files: files.begin_join(upload, parts))
        try:
            for step in _steps(parts):
                await self._do(key, lambda files: files.join(joined, home, *step))  # noqa: B023
            info = await self._do(
                key, lambda files: files.end_join(joined, home, upload, size_bytes)
            )
        except BaseException:
            await quietly(lambda: self._do(key, lambda _: joined.close()))
            raise
        await quietly(lambda: self.abort_upload(upload))
        return info

    async def abort_upload(self, upload: Upload) -> None:
        await self._do(upload.key, lambda files: files.drop(upload))

    async def scan_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        for upload in await self._do(prefix, lambda files: files.uploads(prefix)):
            yield upload

    async def examine(self) -> Examined:
        await self._do("", lambda files: files.entries(""))
        return Examined(
            notes=(
                f"{self._scheme}:// has no conditional writes through fsspec: let one program at "
                "a time write there",
            )
        )

    async def aclose(self) -> None:
        files, self._files = self._files, None
        if files is not None and self._given is None:
            await self._threads.run(files.close)

    async def _do(self, key: str, action: Callable[[Files], T]) -> T:
        """Run `action` in a thread, connected, with errors of ours."""

        def run() -> T:
            with translated(self._scheme, key):
                files = self._connected()
                with files.turn:
                    return action(files)

        return await self._threads.run(run)

    def _connected(self) -> Files:
        with self._lock:
            if self._files is None:
                self._files = Files(*connect(self._scheme, self._authority, self._given))
            return self._files


def _steps(parts: Sequence[Part]) -> Iterator[tuple[int, int, int]]:
    """Which bytes of which part are copied at a time: number, start and end."""
    for part in parts:
        for start in range(0, part.size_bytes, _JOIN_BYTES):
            yield part.number, start, min(part.size_bytes, start + _JOIN_BYTES)
