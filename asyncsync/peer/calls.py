"""What a head knows, and what it is asked: the frame of every request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from aiohttp import web

from ..clock import Clock
from ..concurrency import ByteBudget, Threads
from ..errors import ConfigError, FormatError
from ..manifest import MAX_FILE_BYTES, Manifest, encode
from ..names import check_path
from ..secrets import Secret
from ..storage import Durability, Group, NewFile, TreeStore
from ..units import MIB
from ..wire import messages as m
from ..wire.claims import Claims
from ..wire.limits import Limits
from ..wire.names import check_tree_name
from .bodies import Bodies
from .guard import check_scope
from .onward import Onward
from .sessions import Push, Read, Session, Sessions
from .space import Space
from .turns import Turns

__all__ = [
    "Answer",
    "Call",
    "Handler",
    "Head",
    "Known",
    "answer",
    "group_of",
    "listed",
    "manifest_window",
    "message",
    "new_file",
    "texts",
]

T = TypeVar("T")
S = TypeVar("S", bound=Session)

_KNOWN = 10_000
_MODES, _TIMES = 2**16, 2**63
_WINDOW_BYTES = 32 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all handlers of one server work with."""

    store: TreeStore
    limits: Limits
    threads: Threads
    memory: ByteBudget
    bodies: Bodies
    space: Space
    reads: Sessions[Read]
    pushes: Sessions[Push]
    known: Known
    turns: Turns
    onward: Onward
    clock: Clock
    root: str
    run: str
    readonly: bool
    authority: bytes
    renew: Callable[[Secret], Secret]

    @property
    def announced_bytes(self) -> int:
        """What is going to arrive."""
        return sum(push.left_bytes for push in self.pushes.all)


class Known:
    """Commits that this server has made durable since it started, for who asks about them again."""

    def __init__(self) -> None:
        self._levels: dict[str, tuple[str, Durability]] = {}

    def note(self, tree: str, identity: str, level: Durability) -> None:
        """That one is."""
        self._levels.pop(tree, None)
        self._levels[tree] = identity, level
        if len(self._levels) > _KNOWN:
            del self._levels[next(iter(self._levels))]

    def level(self, tree: str, identity: str) -> Durability | None:
        """What it survives; None: nobody has asked yet."""
        found = self._levels.get(tree)
        return found[1] if found and found[0] == identity else None


class Call(NamedTuple):
    """A request that may be answered.

    Attributes:
        number, blob: of the session and of the file that it names.
    """

    request: web.BaseRequest
    claims: Claims
    route: m.Route
    number: str = ""
    blob: int = 0

    def session(self, sessions: Sessions[S]) -> S:
        """The session that it names, if that is its own."""
        found = sessions.get(self.number, self.claims.id)
        check_scope(self.claims, found.tree, self.route.needs)
        return found

    def tree(self, name: str) -> str:
        """A name of a tree, once it is known that the token reaches that far."""
        check_tree_name(name)
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
    return m.decode(await head.bodies.whole(call.request, head.limits.max_json_bytes), kind)


def answer(reply: object) -> Answer:
    """A message as an answer."""
    return Answer(m.encode(reply))


def listed(found: Iterable[NewFile]) -> list[m.FileLine]:
    return [m.FileLine(m.text_of(f.path), f.size_bytes, f.mode, f.mtime_ns) for f in found]


def new_file(line: m.FileLine) -> NewFile:
    path = m.path_of(line.path)
    check_path(path)
    if not 0 <= line.size_bytes <= MAX_FILE_BYTES:
        raise FormatError("a file whose size makes no sense")
    if not (0 <= line.mode < _MODES and abs(line.mtime_ns) < _TIMES):
        raise FormatError("a file whose mode or time makes no sense")
    return NewFile(path, line.size_bytes, line.mode & 0o777, line.mtime_ns)


def texts(paths: Iterable[str]) -> list[m.Text]:
    return [m.text_of(path) for path in paths]


def group_of(member: m.Member) -> Group:
    """A writer of a group, as it was sent. FormatError: it makes no sense."""
    try:
        return Group(id=member.id, rank=member.rank, size=member.size)
    except ConfigError as exc:
        raise FormatError(str(exc)) from None


async def manifest_window(head: Head, found: Manifest, start: int) -> Answer:
    """As much of the text of a manifest, from there on, as goes into one answer."""
    if start < 0:
        raise FormatError("a window that begins before the text")
    text = await head.threads.run(lambda: b"".join(encode(found)))
    return Answer(text[start : start + _WINDOW_BYTES], headers={m.TOTAL: str(len(text))})
