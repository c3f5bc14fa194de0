"""Pushes that are under way: what of a tree has arrived, and what becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
from anyio.abc import TaskStatus

from ..clock import Clock
from ..digest import CHUNK_BYTES, chunk_count
from ..errors import FormatError, IntegrityError, quote
from ..manifest import Manifest
from ..storage import Block, Durability, Intent, NewFile, Stored, TreeStore, TreeWriter
from ..wire.failures import WorkingError
from .sessions import Session, file_at

__all__ = ["Push"]

_Said = Sequence[tuple[NewFile, Mapping[int, Stored]]]
_Chunk = tuple[str, int]
"""A path and the number of a chunk."""

_COMPARED_AT_ONCE = 2000  # files, before others have their turn


class _Arrived(dict[int, str]):
    """The digests of the chunks of a file that have arrived, and how long it is."""

    __slots__ = ("size_bytes",)

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self.size_bytes = size_bytes


class Push(Session):
    """One attempt to write a tree, and the digests of what has arrived.

    `left_bytes` is what has been announced and has not arrived; `sizes` are those of its files;
    `resumes` says whether something of an earlier attempt is there.

    A commit goes on when whoever asked for it has hung up, and ends the attempt.
    """

    writer: TreeWriter
    resumes: bool

    def __init__(
        self, tree: str, owner: str, clock: Clock, intent: Intent, files: Sequence[NewFile]
    ) -> None:
        super().__init__(tree, owner, clock)
        self.intent, self.files = intent, list(files)
        self.sizes = [file.size_bytes for file in self.files]
        self.left_bytes = self.size_bytes = sum(self.sizes)
        self._digests: dict[str, _Arrived] = {}
        self._moving: set[_Chunk] = set()
        self._dropping: set[str] = set()
        self._moved = anyio.Event()
        self._whole = anyio.Lock()
        self._failure: Exception | None = None  # of the last that looked at all of it
        self._recalled: tuple[str, list[frozenset[int]]] | None = None
        self._receipt: tuple[str, Durability] | None = None

    async def _hold(self, store: TreeStore, task_status: TaskStatus[None]) -> None:
        async with store.begin(self.tree, self.intent) as self.writer:
            self.resumes = self.writer.resumes
            await self._until_over(task_status)
        del self.writer  # it has a list of all files as well, and what was committed is remembered

    @property
    def left_files(self) -> int:
        """How many have been announced of which nothing has arrived."""
        return sum(file.path not in self._digests for file in self.files)

    def file(self, blob: int) -> NewFile:
        """The file of that number."""
        return file_at(self.files, blob)

    def extend(self, files: Iterable[NewFile]) -> int:
        """Add files to the plan; the number of the first of them."""
        first = len(self.files)
        self.files += files
        self.sizes += [file.size_bytes for file in self.files[first:]]
        more_bytes = sum(self.sizes[first:])
        self.size_bytes += more_bytes
        self.left_bytes += more_bytes
        return first

    def forget(self) -> None:
        self.intent = replace(self.intent, files=())
        self.files, self.sizes, self._digests, self._recalled = [], [], {}, None

    def _arrived(self, file: NewFile, chunk: int, found: str) -> None:
        """A chunk is stored, and has that digest."""
        arrived = self._digests.setdefault(file.path, _Arrived(file.size_bytes))
        arrived[chunk] = found  # a plan may name a file twice, and with another size
        self.left_bytes -= _chunk_bytes(arrived.size_bytes, chunk)

    def _forget(self, path: str) -> None:
        """Nothing of a file has arrived."""
        if (arrived := self._digests.pop(path, None)) is not None:
            self.left_bytes += sum(_chunk_bytes(arrived.size_bytes, chunk) for chunk in arrived)

    @asynccontextmanager
    async def _alone(self, chunks: set[_Chunk]) -> AsyncIterator[None]:
        """Write these; whoever sends one of them again waits, and finds that it has arrived.

        Raises:
            WorkingError: all of it is being looked at; what came now would not be.
        """
        paths = {path for path, _ in chunks}
        while self._moving & chunks or self._dropping & paths:
            await self._moved.wait()
        self._refuse_busy()
        self._moving |= chunks
        try:
            with self.using():
                yield
        finally:
            self._moving -= chunks
            self._tell_moved()

    def _tell_moved(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()

    @property
    def busy(self) -> bool:
        """Whether a commit or a recall is under way."""
        return self._whole.locked()

    def _refuse_busy(self) -> None:
        if self.busy:
            raise WorkingError("the head looks at all that has arrived; ask again")

    async def idle(self) -> None:
        """Wait for the commit or the recall that is under way; raises what it fails with."""
        async with self._whole:
            if self._failure is not None:
                raise self._failure

    @asynccontextmanager
    async def _all_of_it(self) -> AsyncIterator[None]:
        """Look at all that has arrived: nothing arrives or goes meanwhile."""
        async with self._whole:
            while self._moving or self._dropping:
                await self._moved.wait()
            self._failure = None
            try:
                yield
            except Exception as exc:
                self._failure = exc
                raise

    def _has(self, path: str, chunk: int) -> bool:
        return chunk in self._digests.get(path, ())

    async def write(self, blob: int, offset: int, block: Block, found: str) -> str:
        """Store a chunk with that digest; returns the digest of what is there.

        One that has arrived already is not touched: its answer was lost, and if it was damaged on
        its way, the commit will say so.
        """
        file, number = self.file(blob), offset // CHUNK_BYTES
        async with self._alone({(file.path, number)}):
            if not self._has(file.path, number):
                await self.writer.write(file, offset, block)
                self._arrived(file, number, found)
        return self._digests[file.path][number]

    async def write_many(self, files: Sequence[tuple[NewFile, memoryview, str]]) -> list[str]:
        """Store whole files with these digests; returns and treats them as `write`."""
        async with self._alone({(file.path, 0) for file, _, _ in files}):
            new = [one for one in files if not self._has(one[0].path, 0)]
            if new:
                await self.writer.write_many([(file, data) for file, data, _ in new])
            for file, _, found in new:
                self._arrived(file, 0, found)
        return [self._digests[file.path][0] for file, _, _ in files]

    async def recall(self, files: _Said, asked: str) -> list[frozenset[int]]:
        """See `TreeWriter.recall`. Reading it all takes long: whoever asks again waits for that.

        Args:
            asked: what differs for other `files`.

        Raises:
            FormatError: something has arrived already, which would be forgotten.
        """
        async with self._all_of_it():
            if self._recalled is None or self._recalled[0] != asked:
                if self._digests:
                    raise FormatError("a recall comes before anything is sent")
                with self.using():
                    self._recalled = asked, await self.writer.recall(files)
                for (file, chunks), found in zip(files, self._recalled[1], strict=True):
                    for number in found:
                        if not self._has(file.path, number):
                            self._arrived(file, number, chunks[number].digest)
            return self._recalled[1]

    async def discard(self, path: str) -> None:
        """See `TreeWriter.discard`. WorkingError: as for what is written."""
        while path in self._dropping or any(moving == path for moving, _ in self._moving):
            await self._moved.wait()
        self._refuse_busy()
        self._dropping.add(path)
        try:
            await self._drop(path)
        finally:
            self._dropping.remove(path)
            self._tell_moved()

    async def _drop(self, path: str) -> None:
        with self.using():
            await self.writer.discard(path)
        self._forget(path)

    async def commit(self, manifest: Manifest) -> Durability:
        """Make it the tree. Again, with the same: the same answer.

        Raises:
            IntegrityError: files are not what the manifest says; they have to be sent again.
        """
        async with self._all_of_it():
            if self._receipt is None:
                await self._refuse_changed(manifest)
                with self.using():
                    self._receipt = manifest.identity, await self.writer.commit(manifest)
                self._over.set()
            identity, durability = self._receipt
            if identity != manifest.identity:
                raise FormatError("this push has been committed as something else")
        await self._ended.wait()
        return durability

    @property
    def answers(self) -> bool:
        return self._receipt is not None

    async def _refuse_changed(self, manifest: Manifest) -> None:
        wrong = []
        for count, (path, chunks) in enumerate(list(self._digests.items())):
            if count % _COMPARED_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
            entry = manifest.files.get(path)
            if entry is not None and any(
                n >= chunk_count(entry.size_bytes) or entry.chunk_digest(n) != found
                for n, found in chunks.items()
            ):
                wrong.append(path)
        for path in wrong:
            await self._drop(path)
        if wrong:
            raise IntegrityError(
                f"{quote(wrong[0])} did not arrive as it was sent; it has to be sent again",
                side="target",
                paths=wrong,
            )


def _chunk_bytes(size_bytes: int, chunk: int) -> int:
    return max(0, min(CHUNK_BYTES, size_bytes - chunk * CHUNK_BYTES))
