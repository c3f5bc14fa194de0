"""What is under way: each session holds a tree open between requests."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import anyio
import anyio.abc
from anyio.abc import TaskStatus

from ..clock import Clock
from ..errors import BusyError, FormatError, PermanentError, SlowDownError, TransientError
from ..storage import NewFile, TreeReader, TreeStore
from ..wire.failures import GoneError
from .lasting import in_time
from .listings import Listing, Loan
from .mishaps import tell

__all__ = ["Read", "Session", "Sessions", "file_at"]


_UNUSED_S = 60.0  # who is told nothing of a session, because the answer was lost, begins another


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
        held: whether the tree was opened.
        loan: room for its list of files, until it is over.
    """

    def __init__(self, tree: str, owner: str, clock: Clock) -> None:
        self.tree, self.owner, self._clock = tree, owner, clock
        self.number = secrets.token_hex(16)
        self.requests, self.touched_at = 0, clock.monotonic()
        self._over, self._ended = anyio.Event(), anyio.Event()
        self._users, self._unused = 0, anyio.Event()
        self._why: Exception | None = None
        self.held = False
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
            pass  # by which it was told to end
        except Exception as exc:
            if not self.held:
                raise
            tell("the head cannot let go of a tree", exc)  # whoever began it does not hear that
        finally:
            self._over.set()
            self._ended.set()

    async def _hold(self, store: TreeStore, task_status: TaskStatus[None]) -> None:
        raise NotImplementedError

    async def _until_over(self, task_status: TaskStatus[None]) -> None:
        self.held = True
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
        return file_at(self.listing.files, blob)

    def allowed_s(self, idle_s: float) -> float:
        return idle_s if self.used else min(idle_s, _UNUSED_S)

    async def _hold(self, store: TreeStore, task_status: TaskStatus[None]) -> None:
        async with store.open(self.tree, self.listing.manifest) as self.reader:
            await self._until_over(task_status)


T = TypeVar("T")
S = TypeVar("S", bound=Session)

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
            if session.held and session.loan is not None:  # else whoever began it leaves it
                session.loan.leave()
            if session.answers:
                _remember(self._done, session.number, session)
            if self._settle is not None:
                await self._settle(session)
            session.forget()

    async def in_time(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await what holds a session open, for as long as its asker waits; see `in_time`."""
        return await in_time(self._group, work)

    async def fence(self, those: Callable[[S], bool]) -> None:
        """End these, until there are none: another takes their place."""
        while (session := next(filter(those, self.all), None)) is not None:
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


def file_at(files: Sequence[NewFile], blob: int) -> NewFile:
    """The file of that number. FormatError: there is none."""
    if not 0 <= blob < len(files):
        raise FormatError("a file that is not in the plan")
    return files[blob]
