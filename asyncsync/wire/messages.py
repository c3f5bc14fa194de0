"""What the two ends of a peer transfer say to each other. Pure; see docs/formats/peer.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, TypeVar

import msgspec

from ..errors import FormatError
from ..manifest import MAX_FILE_BYTES
from ..names import path_from_json, path_to_json
from .routes import BASE, ROUTES, VERSION, Need, Route

__all__ = [
    "BASE",
    "CONTENT_TYPE",
    "DURABILITY",
    "EXTENTS",
    "OFFSET",
    "REQUEST_ID",
    "ROUTES",
    "TOTAL",
    "VERSION",
    "VERSION_HEADER",
    "Begin",
    "Begun",
    "Blobs",
    "Clean",
    "Cleaned",
    "Delete",
    "Deletion",
    "Fault",
    "FileLine",
    "Gather",
    "Gathered",
    "Held",
    "HeldLine",
    "Hello",
    "Id",
    "Leave",
    "Level",
    "Mark",
    "Marked",
    "Member",
    "Need",
    "Open",
    "Opened",
    "PartWindow",
    "Planned",
    "Probed",
    "Receipt",
    "Renewed",
    "Route",
    "Seen",
    "Sent",
    "Sight",
    "Text",
    "TreeName",
    "Turn",
    "Window",
    "Word",
    "decode",
    "encode",
    "lines_of",
    "path_of",
    "text_of",
]

VERSION_HEADER = "Asyncsync-Version"
REQUEST_ID = "Asyncsync-Request"
OFFSET = "Upload-Offset"
EXTENTS = "Asyncsync-Extents"
TOTAL = "Asyncsync-Total"
DURABILITY = "Asyncsync-Durability"
CONTENT_TYPE = "application/vnd.asyncsync"

_MODES, _TIMES = 2**16, 2**63

T = TypeVar("T")


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """What all messages have in common: what is not known is refused."""


Text = str | list[str]
"""A path: text, or base64 in a list where it is not UTF-8."""


Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""What tells one attempt, or one reader, from all others. A head names directories by it."""


Word = Annotated[str, msgspec.Meta(max_length=256)]
"""What is remembered of a request, and is no longer than a digest by much."""


class TreeName(Message, kw_only=True):
    """A request about a tree."""

    tree: str


class Window(TreeName, kw_only=True):
    """A request for the manifest from byte `start` of its text on."""

    start: int = 0


class Delete(TreeName, kw_only=True):
    """See `TreeStore.delete`."""

    expect: Word | None = None
    uncommitted: bool = False


class Clean(TreeName, kw_only=True):
    """See `TreeStore.clean`."""

    older_than_s: float


class Mark(TreeName, kw_only=True):
    """See `TreeStore.mark_root`; `marker` is base64."""

    marker: bytes


class Open(TreeName, kw_only=True):
    """Files of a tree shall be read: those of the commit `identity`, or whatever lies there."""

    identity: Word | None = None


class Member(Message, kw_only=True):
    """One writer of a group; see `Group`."""

    id: Word
    rank: int
    size: int


class Begin(TreeName, kw_only=True):
    """The first line of a plan; the files follow, a `FileLine` each. See `Intent`."""

    attempt: Id
    expect: Word | None = None
    in_place: bool = False
    writer: Word = ""
    keep: bool = False
    group: Member | None = None


class PartWindow(Window, kw_only=True):
    """A request for what one writer of a group has left, as for a manifest."""

    group: Member


class Gather(TreeName, kw_only=True):
    """See `TreeStore.gather`."""

    attempt: Id
    expect: Word | None = None
    writer: Word = ""
    group: Member


class Blobs(Message, kw_only=True):
    """Files by their numbers."""

    blobs: list[int]


class Leave(Message, kw_only=True):
    """A push is left without a commit; `keep`: what arrived stays for the next attempt."""

    keep: bool = False


class FileLine(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file of a plan or a listing. Its number is its place there, from 0."""

    path: Text
    size_bytes: int
    mode: int
    mtime_ns: int

    def check(self) -> None:
        """FormatError: no file can have these numbers; one that had would cost what they say."""
        if not 0 <= self.size_bytes <= MAX_FILE_BYTES:
            raise FormatError("a file whose size makes no sense")
        if not (0 <= self.mode < _MODES and abs(self.mtime_ns) < _TIMES):
            raise FormatError("a file whose mode or time makes no sense")


class HeldLine(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Chunks of a file that an interrupted attempt stored: their numbers and digests."""

    blob: int
    numbers: list[int]
    digests: list[str]


class Hello(Message, kw_only=True):
    """What a head says of itself, and of the token it was shown.

    Attributes:
        run: 32 hexadecimal digits, other ones after each start.
        forwards: whether it carries commits on, so that they survive its loss.
    """

    run: str
    readonly: bool
    scope: str
    operations: list[str]
    expires_at: float
    forwards: bool


class Renewed(Message, kw_only=True):
    """A token that allows the same for another while."""

    token: str


class Sight(msgspec.Struct, frozen=True, array_like=True):
    """A commit that was found."""

    tree: Text
    tag: str


class Seen(Message, kw_only=True):
    """See `Glance`."""

    tag: str
    names: list[Text]


class Opened(Message, kw_only=True):
    """A session for reading; `files` are those that lie there, if no commit was asked for."""

    session: str
    files: list[FileLine] = []


class Turn(TreeName, kw_only=True):
    """A reader asks where to read a commit, or says what became of it.

    Attributes:
        reader: 32 hexadecimal digits of its own.
        became: `ask`, `done` (it has the commit) or `failed` (where it was sent, it did not get
            it).
        line, held: of `done`: the join string by which others reach it, and the name of the tree
            there; empty: they cannot.
    """

    identity: Word
    reader: Id
    became: Literal["ask", "done", "failed"] = "ask"
    line: str = ""
    held: str = ""


class Sent(Message, kw_only=True):
    """Where to read: at the origin, where nothing is said but `go`; at another reader; or wait."""

    go: bool
    line: str = ""
    held: str = ""


class Begun(Message, kw_only=True):
    """A session for writing; `resumes`: there may be something to recall."""

    session: str
    resumes: bool


class Planned(Message, kw_only=True):
    """The number of the first of the files that were added to a plan."""

    first: int


class Held(Message, kw_only=True):
    """Which chunks are there, by the number of their file; what is not named is not."""

    held: list[tuple[int, list[int]]]


class Gathered(Message, kw_only=True):
    """See `Gathering`."""

    missing: list[int]
    durability: str | None = None


class Receipt(Message, kw_only=True):
    """A commit is there: which, and what it survives."""

    identity: str
    durability: str


class Level(Message, kw_only=True):
    """What the commit of a tree survives, and whether the head carries it on.

    `onward` is null: it does not; empty: it does, or has; a text: why it cannot, until somebody
    changes something.
    """

    durability: str
    onward: str | None = None


class Deletion(Message, kw_only=True):
    """See `Deleted`."""

    files: int
    kept: list[Text]


class Cleaned(Message, kw_only=True):
    """Where something was removed."""

    trees: list[Text]


class Marked(Message, kw_only=True):
    """The marker that is there."""

    marker: bytes


class Probed(Message, kw_only=True):
    """See `TreeCapabilities`."""

    durability: str
    exclusive: bool
    raw_names: bool
    case_sensitive: bool
    keeps_normalization: bool
    notes: list[str]


class Fault(Message, kw_only=True):
    """What a request failed with; see `wire.failures`.

    Attributes:
        kind: an error class by name.
        side: which end it hit, seen from the head.
        paths: files of the tree that it is about.
        winner: of a conflict, the commit that is there.
    """

    kind: str
    message: str
    side: Literal["source", "target"] | None = None
    paths: list[Text] = []
    winner: str = ""
    retry_after_s: float | None = None


encode = msgspec.json.encode


def decode(text: bytes, kind: type[T]) -> T:
    """Read a message. FormatError: it is none of that kind, whatever it is."""
    try:
        found = msgspec.json.decode(text, type=kind)
        if isinstance(found, Message):
            json.loads(text, object_pairs_hook=_refuse_doubles)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise FormatError(f"a message that is no {kind.__name__}") from None
    return found


def _refuse_doubles(fields: list[tuple[str, object]]) -> None:
    """ValueError: a field is there twice, and readers differ in which of them counts."""
    if len({name for name, _ in fields}) < len(fields):
        raise ValueError


def lines_of(messages: Iterable[object]) -> Iterator[bytes]:
    """Messages as lines of text."""
    for message in messages:
        yield encode(message) + b"\n"


def path_of(text: Text) -> str:
    """A path as it was sent. FormatError: it is none."""
    try:
        return path_from_json(text)
    except ValueError:
        raise FormatError("a path that makes no sense") from None


def text_of(path: str) -> Text:
    """A path as it is sent."""
    return path_to_json(path)
