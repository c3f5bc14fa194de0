"""Reading the files of a tree that a head keeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio

from ...errors import FormatError, IntegrityError, PermanentError, TransientError, quote
from ...manifest import Manifest
from ...wire import messages as m
from ...wire.failures import GoneError
from ...wire.framing import extents_of
from ..http import Answer
from ..trees import Block, NewFile
from .link import Link
from .values import batches, range_of

__all__ = ["Reader"]


class Reader:
    """Reads blobs by their numbers; when the head has started anew, it is asked again."""

    def __init__(self, link: Link, tree: str, manifest: Manifest | None, where: str) -> None:
        self._link, self._tree, self._where = link, tree, where
        self._identity = manifest.identity if manifest else None
        self._numbers = {path: n for n, path in enumerate(manifest.files)} if manifest else {}
        self._session = ""
        self._turn = anyio.Lock()

    async def begin(self) -> None:
        """Open a session. Raises what `TreeStore.open` raises."""
        what = f"open {self._where}"
        asked = m.Open(tree=self._tree, identity=self._identity)
        opened = await self._link.told(m.Opened, "open", asked, what=what)
        session = self._link.session_of(opened.session, what)
        if self._identity is None:
            paths = (self._link.path_of_file(file, what) for file in opened.files)
            self._numbers = {path: number for number, path in enumerate(paths)}
        self._session = session

    async def end(self) -> None:
        """Close it, if it is open."""
        if self._session:
            await self._link.end("close", None, what=f"close {self._where}", session=self._session)

    async def read(
        self, file: NewFile, start: int, end: int, into: memoryview | None = None
    ) -> Block:
        if start == end:
            (data,) = await self.read_many([file])
            return Block(data)
        into = memoryview(bytearray(end - start)) if into is None else into[: end - start]
        what = f"read {quote(file.path)} of {self._where}"
        answer = await self._again(
            lambda: self._link.send(
                "read",
                what=what,
                session=self._session,
                blob=self._number(file),
                headers={"Range": f"bytes={start}-{end - 1}"},
                into=into,
            )
        )
        if answer.status != 206 or range_of(answer) != (start, end, file.size_bytes):
            raise IntegrityError(
                f"{what}: the head has sent another range, or a file of another length",
                side="source",
                paths=[file.path],
            )
        return _block(answer, into, what)

    async def read_many(self, files: Sequence[NewFile]) -> list[bytes]:
        data = list[bytes]()
        for some in batches(files, lambda file: file.size_bytes):
            data += await self._read_batch(some)
        return data

    async def _read_batch(self, files: Sequence[NewFile]) -> list[bytes]:
        what = f"read {len(files)} files of {self._where}"
        size_bytes = sum(file.size_bytes for file in files)
        into = memoryview(bytearray(size_bytes))
        answer = await self._again(
            lambda: self._link.send(
                "read_many",
                m.encode(m.Blobs(blobs=[self._number(file) for file in files])),
                what=what,
                session=self._session,
                into=into,
            )
        )
        if len(answer.body) != size_bytes:
            raise IntegrityError(f"{what}: they are not as long as committed", side="source")
        data, at = list[bytes](), 0
        for file in files:
            data.append(bytes(answer.body[at : at + file.size_bytes]))
            at += file.size_bytes
        return data

    def _number(self, file: NewFile) -> int:
        if (number := self._numbers.get(file.path)) is None:
            raise IntegrityError(
                f"{quote(file.path)} is missing in {self._where}", side="source", paths=[file.path]
            )
        return number

    async def _again(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        session = self._session
        try:
            return await ask()
        except GoneError:
            async with self._turn:
                if self._session == session:
                    await self.begin()
        return await ask()


def _block(answer: Answer, into: memoryview, what: str) -> Block:
    """The bytes where they belong: what lies in holes has not travelled."""
    text = answer.headers.get(m.EXTENTS)
    if text is None:
        if len(answer.body) != len(into):
            raise TransientError(f"{what}: {len(answer.body)} bytes have come, not {len(into)}")
        return Block(into)
    try:
        extents = extents_of(text, len(into))
    except FormatError as exc:
        raise PermanentError(f"{what}: {exc}") from None
    if len(answer.body) != sum(end - start for start, end in extents):
        raise TransientError(f"{what}: not as many bytes as there are extents")
    at = len(answer.body)
    hole = len(into)
    for start, end in reversed(extents):  # to the back first: nothing is overwritten before it went
        at -= end - start
        into[start:end] = into[at : at + end - start]
        into[end:hole] = bytes(hole - end)
        hole = start
    into[:hole] = bytes(hole)
    return Block(into, extents)
