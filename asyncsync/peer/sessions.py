"""Reads and pushes that are under way: each holds a tree open between requests."""

from __future__ import annotations

import secrets
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Generic, TypeVar

import anyio
import anyio.abc
from anyio.abc import TaskStatus

from ..clock import Clock
from ..digest import CHUNK_BYTES, chunk_count
from ..errors import (
    BusyError,
    FormatError,
    IntegrityError,
    PermanentError,
    SlowDownError,
    TransientError,
    quote,
)
from ..manifest import Manifest
from ..storage import (
    Block,
    Durability,
    Intent,
    NewFile,
    Stored,
    TreeReader,
    TreeStore,
    TreeWriter,
)
from ..wire.failures import GoneError
from .listings import Listing, Loan

__all__ = ["Push", "Read", "Sessions"]


_UNUSED_S = 60.0  # who is told nothing of a session, because the answer was lost, begins another

_Said = Sequence[tuple[NewFile, Mapping[int, Stored]]]
_Chunk = tuple[str, int]
"""A path and the number of a chunk."""


class _LeftError(TransientError):
    """Whoever began it has gone; what arrived may stay."""


class _DroppedError(PermanentError):
    """It is not wanted any more."""


class Session:
    """A tree that is held open in a task of its own until somebody ends it.

    Attributes:
        number: 32 hexadecimal digits that only whoever began it knows.
        owner: the id of the token that it was begun with.
        requests: that are being answered.
        touched_at: when the last one ended.
        failure: how letting go of the tree failed.
        loan: room for its list of files, until it is over.
    """

    def __init__(self, tree: str, owner: str, clock: Clock) -> None:
        self.tree, self.owner, self._clock = tree, owner, clock
        self.number = secrets.token_hex(16)
        self.requests, self.touched_at = 0, clock.monotonic()
        self._over, self._ended = anyio.Event(), anyio.Event()
        self._users, self._unused = 0, anyio.Event()
        self._why: Exception | None = None
        self._held = False
        self.failure: Exception | None = None
        self.loan: Loan | None = None

    def __enter__(self) -> None:
        """A request begins."""
        self.requests += 1

    def __exit__(self, *_: object) -> None:
        self.requests -= 1
        self.touched_at = self._clock.monotonic()

    def idle_s(self) -> float:
        """How long nobody has asked for anything."""
        return 0.0 if self.requests else self._clock.monotonic() - self.touched_at

    def allowed_s(self, idle_s: float) -> float:
        """How long that may be, where it may be `idle_s` in general."""
        return idle_s

    @contextmanager
    def using(self) -> Iterator[None]:
        """The tree is read or written now, so that nobody lets go of it before that has ended.

        Raises:
            GoneError: the session is over.
        """
        if self._over.is_set():
            raise GoneError("the session is over; begin another")
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()
                self._unused = anyio.Event()

    @property
    def answers(self) -> bool:
        """Whether it can be asked for something after it is over."""
        return False

    def forget(self) -> None:
        """Keep only what is answered when it is over."""

    async def hold(self, store: TreeStore, *, task_status: TaskStatus[None]) -> None:
        """Hold it open; says that it is by `task_status`, and raises before that if it cannot."""
        try:
            await self._hold(store, task_status)
        except (_LeftError, _DroppedError):
            pass
        except Exception as exc:
            if not self._held:
                raise
            self.failure = exc  # what it is told here, whoever began it cannot hear any more
        finally:
            self._over.set()
            self._ended.set()

    async def _hold(self, store: TreeStore, task_status: TaskStatus[None]) -> None:
        raise NotImplementedError

    async def _until_over(self, task_status: TaskStatus[None]) -> None:
        self._held = True
        task_status.started()
        await self._over.wait()
        while self._users:  # a descriptor that is closed under a thread may be another file by then
            await self._unused.wait()
        if self._why is not None:
            raise self._why

    async def end(self, *, keep: bool = True) -> None:
        """Let go of it. Again: waits only."""
        if not self._over.is_set():
            self._why = _LeftError("left") if keep else _DroppedError("dropped")
            self._over.set()
        await self._ended.wait()


class Read(Session):
    """Files of one commit, or of what lies there.

    Attributes:
        used: whether anything has been read.
    """

    reader: TreeReader

    def __init__(self, tree: str, owner: str, clock: Clock, listing: Listing) -> None:
        super().__init__(tree, owner, clock)
        self.listing, self.used = listing, False

    def file(self, blob: int) -> NewFile:
        """The file of that number."""
        self.used = True
        return _at(self.listing.files, blob)

    def allowed_s(self, idle_s: float) -> float:
        return idle_s if self.used else min(idle_s, _UNUSED_S)

    async def _hold(self, store: TreeStore, task_status: TaskStatus[None]) -> None:
        async with store.open(self.tree, self.listing.manifest) as self.reader:
            await self._until_over(task_status)


class _Arrived(dict[int, str]):
    """The digests of the chunks of a file that have arrived, and how long it is."""

    __slots__ = ("size_bytes",)

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self.size_bytes = size_bytes


class Push(Session):
    """One attempt to write a tree, and the digests of what has arrived.

    `left_bytes` is what has been announced and has not arrived; `sizes` are those of its files.

    A commit goes on when whoever asked for it has hung up, and ends the attempt.
    """

    writer: TreeWriter

    def __init__(
        self, tree: str, owner: str, clock: Clock, intent: Intent, files: Sequence[NewFile]
    ) -> None:
        super().__init__(tree, owner, clock)
        self.intent, self.files = intent, list(files)
        self.sizes = [file.size_bytes for file in self.files]
        self.left_bytes = self.size_bytes = sum(self.sizes)
        self._digests: dict[str, _Arrived] = {}
        self._moving: set[_Chunk] = set()
        self._moved = anyio.Event()
        self._committing, self._recalling = anyio.Lock(), anyio.Lock()
        self._recalled: tuple[str, list[frozenset[int]]] | None = None
        self._receipt: tuple[str, Durability] | None = None

    async def _hold(self, store: TreeStore, task_status: TaskStatus[None]) -> None:
        async with store.begin(self.tree, self.intent) as self.writer:
            await self._until_over(task_status)

    @property
    def left_files(self) -> int:
        """How many have been announced of which nothing has arrived."""
        return sum(file.path not in self._digests for file in self.files)

    def file(self, blob: int) -> NewFile:
        """The file of that number."""
        return _at(self.files, blob)

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
        self._digests.setdefault(file.path, _Arrived(file.size_bytes))[chunk] = found
        self.left_bytes -= _chunk_bytes(file.size_bytes, chunk)

    def _forget(self, path: str) -> None:
        """Nothing of a file has arrived."""
        if (arrived := self._digests.pop(path, None)) is not None:
            self.left_bytes += sum(_chunk_bytes(arrived.size_bytes, chunk) for chunk in arrived)

    @asynccontextmanager
    async def _alone(self, chunks: set[_Chunk]) -> AsyncIterator[None]:
        """Write these; whoever sends one of them again waits, and finds that it has arrived."""
        while self._moving & chunks:
            await self._moved.wait()
        self._moving |= chunks
        try:
            with self.using():
                yield
        finally:
            self._moving -= chunks
            self._moved.set()
            self._moved = anyio.Event()

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
        """
        async with self._recalling:
            if self._recalled is None or self._recalled[0] != asked:
                with self.using():
                    self._recalled = asked, await self.writer.recall(files)
                for (file, chunks), found in zip(files, self._recalled[1], strict=True):
                    for number in found:
                        if not self._has(file.path, number):
                            self._arrived(file, number, chunks[number].digest)
            return self._recalled[1]

    async def discard(self, path: str) -> None:
        """See `TreeWriter.discard`."""
        while any(moving == path for moving, _ in self._moving):
            await self._moved.wait()
        with self.using():
            await self.writer.discard(path)
        self._forget(path)

    async def commit(self, manifest: Manifest) -> Durability:
        """Make it the tree. Again, with the same: the same answer.

        Raises:
            IntegrityError: files are not what the manifest says; they have to be sent again.
        """
        async with self._committing:
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
            await self.discard(path)
        if wrong:
            raise IntegrityError(
                f"{quote(wrong[0])} did not arrive as it was sent; it has to be sent again",
                side="target",
                paths=wrong,
            )


T = TypeVar("T")
S = TypeVar("S", bound=Session)

_COMPARED_AT_ONCE = 2000  # files, before others have their turn
_REMEMBERED = 1000  # sessions that are over, for whoever has lost the answer


class Sessions(Generic[S]):
    """Those of one kind.

    Args:
        group: their tasks are in it.
        most: of one owner at once.
        idle_s: after that time without a request one is ended.
        over: awaited for each that has ended.
    """

    def __init__(
        self,
        group: anyio.abc.TaskGroup,
        store: TreeStore,
        *,
        most: int,
        idle_s: float,
        over: Callable[[S], Awaitable[object]] | None = None,
    ) -> None:
        self._settle = over
        self._group, self._store, self._most, self._idle_s = group, store, most, idle_s
        self._open: dict[str, S] = {}
        self._done: dict[str, S] = {}
        self._fenced: dict[str, None] = {}

    @property
    def all(self) -> list[S]:
        """Those that are open."""
        return list(self._open.values())

    def get(self, number: str, owner: str) -> S:
        """The session of that number.

        Raises:
            BusyError: another attempt has taken over.
            GoneError: there is none, or it is somebody else's.
        """
        found = self._done.get(number)
        if found is None and number in self._fenced:
            raise BusyError("another attempt has taken over; try again later", side="target")
        found = found or self._open.get(number)
        if found is not None and found.owner == owner:
            return found
        raise GoneError("the session is over; begin another")

    async def begin(self, session: S) -> S:
        """Open it.

        Raises:
            SlowDownError: its owner has too many.
        """
        if sum(one.owner == session.owner for one in self._open.values()) >= self._most:
            raise SlowDownError(
                f"more than {self._most} sessions with one token; end some, or wait",
                retry_after_s=1.0,
            )
        self._open[session.number] = session
        await self._group.start(self._run, session)
        return session

    async def _run(self, session: S, *, task_status: TaskStatus[None]) -> None:
        try:
            await session.hold(self._store, task_status=task_status)
        finally:
            self._open.pop(session.number, None)
            if session.loan is not None:
                session.loan.leave()
            if session.answers:
                _remember(self._done, session.number, session)
            if self._settle is not None:
                await self._settle(session)
            session.forget()

    async def fence(self, those: Callable[[S], bool]) -> None:
        """End these: another takes their place."""
        for session in filter(those, self.all):
            _remember(self._fenced, session.number, None)
            await session.end()

    async def sweep(self) -> None:
        """End those that nobody has asked for anything for too long."""
        for session in self.all:
            if session.idle_s() >= session.allowed_s(self._idle_s):
                await session.end()

    async def close(self) -> None:
        """End all of them; what has arrived stays for the next start."""
        for session in self.all:
            await session.end()


def _remember(those: dict[str, T], number: str, what: T) -> None:
    those[number] = what
    if len(those) > _REMEMBERED:
        del those[next(iter(those))]


def _at(files: Sequence[NewFile], blob: int) -> NewFile:
    if not 0 <= blob < len(files):
        raise FormatError("a file that is not in the plan")
    return files[blob]


def _chunk_bytes(size_bytes: int, chunk: int) -> int:
    return max(0, min(CHUNK_BYTES, size_bytes - chunk * CHUNK_BYTES))
