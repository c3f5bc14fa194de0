"""What a head knows, and what it is asked: the frame of every request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from aiohttp import web

from ..clock import Clock
from ..concurrency import Budget, ByteBudget, Threads
from ..errors import ConfigError, FormatError
from ..manifest import Manifest, encode
from ..names import check_path
from ..secrets import Secret
from ..storage import Group, NewFile, TreeStore
from ..units import MIB
from ..wire import messages as m
from ..wire.claims import Claims
from ..wire.limits import Limits
from ..wire.names import check_tree_name
from .audit import Entry
from .bodies import Bodies
from .guard import check_scope
from .known import Known
from .listings import Ledger
from .onward import Onward
from .pushes import Push
from .queues import Queue
from .quotas import Quotas
from .sessions import Read, Session, Sessions
from .space import Space
from .turns import Turns

__all__ = [
    "Answer",
    "Call",
    "Handler",
    "Head",
    "answer",
    "group_of",
    "listed",
    "message",
    "new_file",
    "text_of",
    "texts",
]

T = TypeVar("T")
S = TypeVar("S", bound=Session)

_WINDOW_BYTES = 32 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all handlers of one server work with.

    Attributes:
        walks: through directories; half of the threads are always there for the rest.
        hashing: chunks, or batches.
    """

    store: TreeStore
    limits: Limits
    threads: Threads
    memory: ByteBudget
    memory_bytes: int
    walks: Budget
    hashing: Budget
    bodies: Bodies
    space: Space
    reads: Sessions[Read]
    pushes: Sessions[Push]
    ledger: Ledger
    known: Known
    turns: Turns
    quotas: Quotas
    onward: Onward
    clock: Clock
    root: str
    run: str
    readonly: bool
    authority: Callable[[], str]
    renew: Callable[[Secret], Secret]

    @property
    def share_bytes(self) -> int:
        """What of the memory one token may hold: half of it is always there for the others."""
        return self.memory_bytes // 2

    @property
    def some_bytes(self) -> int:
        """For what nobody knows the size of before it is there: a few of those at once."""
        return self.share_bytes // 4

    @property
    def announced_bytes(self) -> int:
        """What is going to arrive."""
        return sum(push.left_bytes for push in self.pushes.all)


class Call(NamedTuple):
    """A request that may be answered.

    Attributes:
        entry: what is noted of it.
        queue: what all requests with its token share.
        holds: what it holds until its answer has been sent.
        number, blob: of the session and of the file that it names.
    """

    @asynccontextmanager
    async def memory(self, head: Head, size_bytes: int) -> AsyncIterator[None]:
        """Hold that much; a body that is larger than the share of a token holds that."""
        size_bytes = min(size_bytes, head.share_bytes)
        async with self.queue.memory.borrow(size_bytes), head.memory.borrow(size_bytes):
            yield

    @asynccontextmanager
    async def walk(self, head: Head) -> AsyncIterator[None]:
        """Go through directories, when it is the turn of this token, and of others no more."""
        async with self.queue.walks.borrow(), head.walks.borrow():
            yield

    async def hold(self, head: Head, size_bytes: int) -> None:
        """Hold as much until the answer has been sent. Once: two halves may wait for each other."""
        await self.holds.enter_async_context(self.memory(head, size_bytes))

    request: web.BaseRequest
    entry: Entry
    claims: Claims
    route: m.Route
    queue: Queue
    holds: AsyncExitStack
    number: str = ""
    blob: int = 0

    @property
    def token(self) -> Secret:
        """What let it in."""
        return Secret(self.request.headers["Authorization"].removeprefix("Bearer "))

    def session(self, sessions: Sessions[S]) -> S:
        """The session that it names, if that is its own."""
        found = sessions.get(self.number, self.claims.id)
        self.entry.tree = found.tree
        check_scope(self.claims, found.tree, self.route.needs)
        return found

    def tree(self, name: str) -> str:
        """A name of a tree, once it is known that the token reaches that far."""
        check_tree_name(name)
        self.entry.tree = name
        check_scope(self.claims, name, self.route.needs)
        return name


class Answer(NamedTuple):
    """What a handler answers with, before it is sent."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = {}


Handler = Callable[[Head, Call], Awaitable[Answer | web.StreamResponse]]


async def message(head: Head, call: Call, kind: type[T]) -> T:
    """The body of a request, as a message."""
    limits = head.limits
    text = await head.bodies.whole(
        call.request, limits.max_json_bytes, within_s=limits.json_deadline_s
    )
    return m.decode(text, kind)


def answer(reply: object) -> Answer:
    """A message as an answer."""
    return Answer(m.encode(reply))


def listed(found: Iterable[NewFile]) -> list[m.FileLine]:
    return [m.FileLine(m.text_of(f.path), f.size_bytes, f.mode, f.mtime_ns) for f in found]


def new_file(line: m.FileLine, limits: Limits) -> NewFile:
    path = m.path_of(line.path)
    check_path(path)
    limits.check_path(path)
    line.check()
    return NewFile(path, line.size_bytes, line.mode & 0o777, line.mtime_ns)


def texts(paths: Iterable[str]) -> list[m.Text]:
    return [m.text_of(path) for path in paths]


def group_of(member: m.Member) -> Group:
    """A writer of a group, as it was sent. FormatError: it makes no sense."""
    try:
        return Group(id=member.id, rank=member.rank, size=member.size)
    except ConfigError as exc:
        raise FormatError(str(exc)) from None


def window(text: bytes, start: int) -> Answer:
    """As much of the text of a manifest, from there on, as goes into one answer."""
    return Answer(text[start : start + _WINDOW_BYTES], headers={m.TOTAL: str(len(text))})


async def text_of(head: Head, found: Manifest) -> bytes:
    """The text of a manifest."""
    return await head.threads.run(lambda: b"".join(encode(found)))
